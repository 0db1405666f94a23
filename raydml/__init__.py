"""Distributed metric learning on Ray: one spec trains an embedding model, measures it, indexes it and searches it.

`import raydml` loads neither torch nor ray; a name loads what it needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydml.client import AsyncClient, Client
    from raydml.comparison import compare
    from raydml.models import load_model
    from raydml.run import evaluate, train
    from raydml.runs import resize
    from raydml.search import Collection
    from raydml.spec import JobSpec
    from raydml.tuning.study import tune

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "Client",
    "Collection",
    "JobSpec",
    "__version__",
    "compare",
    "evaluate",
    "load_model",
    "resize",
    "train",
    "tune",
]

_HOMES = {
    "AsyncClient": "raydml.client",
    "Client": "raydml.client",
    "Collection": "raydml.search",
    "compare": "raydml.comparison",
    "JobSpec": "raydml.spec",
    "evaluate": "raydml.run",
    "load_model": "raydml.models",
    "resize": "raydml.runs",
    "train": "raydml.run",
    "tune": "raydml.tuning.study",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raydml' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
