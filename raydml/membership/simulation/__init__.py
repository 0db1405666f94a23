"""The whole protocol in one process on a simulated clock: many machines, a bad network, and an oracle that watches."""
