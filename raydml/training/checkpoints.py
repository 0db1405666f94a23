"""A training state -> a folder that appears whole or not at all, and back; the best and the last ones are kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load, save

from raydml.errors import CheckpointError
from raydml.files import sha256_file, whole_folder, write_json
from raydml.training.state import TrainingState

TENSORS = "state.safetensors"


@dataclass(frozen=True)
class Best:
    """The best validation score so far and the step that reached it."""

    step: int
    score: float


@dataclass(frozen=True)
class Header:
    """What `checkpoint.json` says: nothing in it depends on the number of workers."""

    step: int
    seed: int
    spec_digest: str
    state_sha256: str
    file_sha256: str
    best: Best | None


class Checkpoints:
    """The folder `checkpoints/` of a run, one sub-folder `step-00000100` each."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder = folder
        self.keep_last = keep_last

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def path(self, step: int) -> Path:
        """Folder of the checkpoint after `step` steps."""
        return self.folder / f"step-{step:08d}"

    def save(self, state: TrainingState, best: Best | None) -> None:
        """Write the state; only then drop what is neither among the last ones nor the best.

        Raises ResourceError where the disk is full or refuses; older checkpoints stay.
        """
        with whole_folder(self.path(state.step)) as draft:
            tensors = {name: value.detach().cpu().contiguous() for name, value in state.tensors().items()}
            (draft / TENSORS).write_bytes(save(tensors))
            header = Header(
                state.step, state.spec.seed, state.spec.digest(), state.digest(), sha256_file(draft / TENSORS), best
            )
            write_json(draft / "checkpoint.json", asdict(header))
        kept = {*self.steps()[-self.keep_last :], best.step if best else -1}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.path(step))

    def header(self, step: int) -> Header:
        """What the checkpoint says of itself. Raises CheckpointError where it is missing or unreadable."""
        try:
            fields = json.loads((self.path(step) / "checkpoint.json").read_text())
            best = fields.pop("best")
            return Header(**fields, best=Best(**best) if best else None)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{self.path(step)} is not a readable checkpoint: {error}") from error

    def load(self, step: int, state: TrainingState) -> Header:
        """Put a checkpoint into the state. Raises CheckpointError where it is damaged or belongs to another job."""
        header, path = self.header(step), self.path(step)
        if header.spec_digest != state.spec.digest():
            raise CheckpointError(f"{path} belongs to a job with another spec; start anew, or under another name")
        try:
            content = (path / TENSORS).read_bytes()
            damaged = sha256_file(path / TENSORS) != header.file_sha256
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if damaged:
            raise CheckpointError(
                f"{path / TENSORS} is damaged: its SHA-256 is not the recorded one. {self._way_out(step)}"
            )
        state.load(load(content), header.step)
        return header

    def _way_out(self, step: int) -> str:
        earlier = [other for other in self.steps() if other < step]
        if earlier:
            return f"Remove {self.path(step)} to resume from step {earlier[-1]}."
        return "There is no earlier checkpoint: start anew."
