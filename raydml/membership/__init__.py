"""Who trains at a step, and which slices each worker holds: pure values, no torch and no Ray."""

from raydml.membership.roster import Roster, View
from raydml.membership.shares import Node, Tree, parents, share

__all__ = ["Node", "Roster", "Tree", "View", "parents", "share"]
