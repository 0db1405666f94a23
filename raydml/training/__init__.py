"""The loop, its state and checkpoints, and the Ray Train backend (the only file that imports ray.train)."""
