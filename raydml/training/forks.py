"""A checkpoint of one run -> the first checkpoint of another one, whose spec may differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from raydml.errors import CheckpointError
from raydml.files import sha256_file, whole_folder, write_json


def copy_checkpoint(parent: Path, child: Path, step: int | None, spec_digest: str) -> int:
    """Copy the checkpoint of a step, the newest without one, and say that it belongs to the child's spec; its step.

    Raises CheckpointError where there is none, or where it is not what was saved.
    """
    known = sorted(int(path.name.removeprefix("step-")) for path in parent.glob("checkpoints/step-*"))
    chosen = step if step is not None else max(known, default=0)
    if chosen not in known:
        raise CheckpointError(f"job {parent.name} has no checkpoint of step {chosen}; there are {known or 'none'}")
    source = parent / "checkpoints" / f"step-{chosen:08d}"
    with whole_folder(child / "checkpoints" / source.name) as draft:
        try:
            shutil.copytree(source, draft, dirs_exist_ok=True)
            header = json.loads((draft / "checkpoint.json").read_text())
        except (OSError, ValueError) as error:  # dropped meanwhile, for later ones
            raise CheckpointError(f"{source} cannot be copied: {error}; choose a later one") from error
        for name, digest in {"state": header["file_sha256"], **header["parts"]}.items():
            if sha256_file(draft / f"{name}.safetensors") != digest:
                raise CheckpointError(f"{source} is damaged: the SHA-256 of {name} is not the recorded one")
        write_json(draft / "checkpoint.json", header | {"spec_digest": spec_digest, "best": None})
    return chosen
