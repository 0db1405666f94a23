"""A document and a JSON merge patch (RFC 7396) -> the patched document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge_patch(document: Any, patch: Any) -> Any:
    """Members of the patch replace those of the document, at every depth; None drops one, a list replaces whole."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(document) if isinstance(document, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged
