"""How the model runs over workers: the group, the fixed-tree reduction, batch norm, one file a strategy."""

from raydml.parallel.batch_norm import convert_batch_norm
from raydml.parallel.ddp import DataParallel
from raydml.parallel.group import Group, PeerLost
from raydml.parallel.randomness import key, keyed_randomness
from raydml.parallel.reduction import TreeAccumulator, plain_sum, tree_sum
from raydml.parallel.sharding import Sharded, Spread
from raydml.parallel.sizes import Fit, fit, unit, world_sizes
from raydml.parallel.strategies import STRATEGIES, Strategy

__all__ = [
    "STRATEGIES",
    "DataParallel",
    "Fit",
    "Group",
    "PeerLost",
    "Sharded",
    "Spread",
    "Strategy",
    "TreeAccumulator",
    "convert_batch_norm",
    "fit",
    "key",
    "keyed_randomness",
    "plain_sum",
    "tree_sum",
    "unit",
    "world_sizes",
]
