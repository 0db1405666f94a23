"""The name of a plug-in in; the data set, model or loss that an installed package registered under it out.

A package registers what it offers as entry points, so that a spec can name code without holding any:

    [project.entry-points."raydml.plugins.datasets"]
    faces = "my_package.data:Faces"        # called without arguments: a torch map-style Dataset
    [project.entry-points."raydml.plugins.models"]
    tiny = "my_package.models:Tiny"        # called without arguments: a torch module, inputs -> (batch, dimension)
    [project.entry-points."raydml.plugins.losses"]
    mine = "my_package.losses:Mine"        # called with num_classes= and dimension=: a torch module,
                                           # embeddings (B, D) and labels (B,) of the whole batch -> a number
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from raydml.errors import SpecError

Group = Literal["datasets", "models", "losses"]


def installed(group: str) -> list[str]:
    """Names of the plug-ins, sorted; nothing of them is imported."""
    return sorted(_found(group))


def plugged(group: Group, name: str, **known: int) -> Any:
    """The plug-in, made anew of what is known of the job.

    Raises SpecError where there is none of this name, or where it cannot be made.
    """
    found = _found(group)
    if name not in found:
        raise SpecError(
            f"no package registers {name!r} as an entry point of raydml.plugins.{group}; there are "
            f"{', '.join(sorted(found)) or 'none'}"
        )
    try:
        return found[name].load()(**known)
    except Exception as error:  # somebody else's code, run while it is imported
        raise SpecError(f"the plug-in {name} ({found[name].value}) cannot be made: {error}") from error


def _found(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"raydml.plugins.{group}")}
