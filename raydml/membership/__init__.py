"""Who trains at a step, and which slices each worker holds: pure values, no torch and no Ray."""

from raydml.membership.authority import Authority
from raydml.membership.ledger import FileLedger, Ledger, MemoryLedger, Record
from raydml.membership.link import Address, Gone, Link, Over
from raydml.membership.member import Action, Member
from raydml.membership.messages import Beat, Event, Pulse, Report, Standing, View
from raydml.membership.policy import Policy
from raydml.membership.server import Server
from raydml.membership.shares import Node, Tree, deal, parents, share

__all__ = [
    "Action",
    "Address",
    "Authority",
    "Beat",
    "Event",
    "FileLedger",
    "Gone",
    "Ledger",
    "Link",
    "Member",
    "MemoryLedger",
    "Node",
    "Over",
    "Policy",
    "Pulse",
    "Record",
    "Report",
    "Server",
    "Standing",
    "Tree",
    "View",
    "deal",
    "parents",
    "share",
]
