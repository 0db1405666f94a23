"""How many bytes of tensors are alive at once: the same on every machine, unlike the memory of a process."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, of those made within, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage.data_ptr() not in self._sizes:
                    self._sizes[storage.data_ptr()] = storage.nbytes()
                    weakref.finalize(storage, self._sizes.pop, storage.data_ptr(), None)
        self.most = max(self.most, sum(self._sizes.values()))
        return made
