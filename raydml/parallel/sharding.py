"""State that no worker holds whole: what a strategy or an objective offers so that it is saved, loaded and digested.

How to plug in. `JobSpec.state` must say `sharded` for the spec. Then each new view builds the worker anew (model from
the seed, strategy, objective) in the same process, with the group formed and moved: constructors may communicate and
hold the own shards only. After that the checkpoint of the view's step is loaded; nothing else has to be rebuilt.

Rows on their owner (a class-parallel head): put a `Sharded` into `Objective.sharded`, by name. Shard i of V belongs to
the worker that owns slice i, and is the file `objective.<name>-<i>.safetensors` of a checkpoint. Its tensors are in no
`state_dict`, its updates happen in `Objective.commit`, and what those keep (momentum) is among its tensors.

Whole tensors cut over a mesh (fsdp, tensor, pipeline): give the strategy a `Spread`. Model and optimiser keep the names
of one process; the first worker writes whole tensors, and every worker takes its piece of them when loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Sharded(Protocol):
    """V virtual shards, of which a worker holds those of the slices that it owns."""

    def shard(self, index: int) -> dict[str, Tensor]:
        """The live tensors of an own shard, by name; loading copies into them.

        Names, types and shapes, and the values at step 0, are a function of the index alone, never of the worker.
        """


class Spread(Protocol):
    """Named tensors of which a worker holds a piece, or that it lacks; names are those of one process."""

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What this worker holds of model and optimiser -> the whole tensors on the first worker, {} on others.

        All workers call it together. Names begin with `model.` or `optimizer.model.`; PeerLost as every collective.
        """

    def local(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors -> what this worker holds of them, as `load_state_dict` takes it; nobody communicates."""
