"""Who trains at a step, and which slices each worker holds: pure values, no torch and no Ray."""

from raydml.membership.authority import Authority
from raydml.membership.ledger import FileLedger, Ledger, MemoryLedger, Record
from raydml.membership.member import Action, Member
from raydml.membership.messages import Beat, Event, Pulse, Report, Standing
from raydml.membership.policy import Policy
from raydml.membership.roster import Roster, View
from raydml.membership.shares import Node, Tree, deal, parents, share

__all__ = [
    "Action",
    "Authority",
    "Beat",
    "Event",
    "FileLedger",
    "Ledger",
    "Member",
    "MemoryLedger",
    "Node",
    "Policy",
    "Pulse",
    "Record",
    "Report",
    "Roster",
    "Standing",
    "Tree",
    "View",
    "deal",
    "parents",
    "share",
]
