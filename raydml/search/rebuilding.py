"""Vectors of a segment -> its derived files, made anew."""

from __future__ import annotations

import shutil
from dataclasses import replace

from raydml.files import whole_folder
from raydml.search.changes import Change, write_state
from raydml.search.sealing import new_name, put_segment
from raydml.search.segments import DERIVED, SEGMENTS, Segment, derive


def rebuilt(change: Change) -> None:
    """Give every segment new derived files, in a folder of its own beside the old one; the rest is copied, checked."""
    view = change.view
    for number, part in view.parts.items():
        if not isinstance(part.rows, Segment):
            continue
        name = new_name()
        with whole_folder(view.folder / SEGMENTS / name) as draft:
            for kept in set(part.rows.described.sha256) - set(DERIVED):
                shutil.copyfile(part.rows.path(kept), draft / kept)
            described = derive(draft, name, part.rows.vectors, view.metric, part.rows.described.index.get("target"))
        put_segment(change.connection, number, described)
    write_state(change.connection, replace(view.state, sequence=change.sequence))
