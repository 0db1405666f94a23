"""raydml over HTTP: settings in, a FastAPI application out; `raydml serve` runs it.

`import api` loads neither torch nor FastAPI: the processes that keep a server alive and supervise jobs need neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from api.app import create_app
    from api.settings import Settings

__all__ = ["Settings", "create_app"]

_HOMES = {"Settings": "api.settings", "create_app": "api.app"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'api' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value
