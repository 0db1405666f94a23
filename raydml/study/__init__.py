"""Every strategy that a job could have, tried for a few steps on this machine."""

from raydml.study.measuring import measure

__all__ = ["measure"]
