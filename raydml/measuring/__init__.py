"""Every strategy that a job could have, tried for a few steps on this machine."""

from raydml.measuring.strategies import measure

__all__ = ["measure"]
