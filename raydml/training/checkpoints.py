"""A training state -> a folder that appears whole or not at all, and back; the best and the last ones are kept.

A folder holds what all workers hold alike in one file, each part that only its owner holds in a file of its own, and a
header with the SHA-256 of all of them: nothing in it depends on how many workers there were.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from raydml.errors import CheckpointError, ResourceError
from raydml.files import remove_folder, sha256_file, sweep, whole_folder, write_bytes, write_json
from raydml.training.state import TrainingState

TENSORS = "state.safetensors"

Parts = Mapping[str, Mapping[str, Tensor]]
Gather = Callable[[Path, Parts], dict[str, str]]
"""The draft of a checkpoint, the own parts -> the SHA-256 of the files of all parts, by part, once all are written."""


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
    parts: dict[str, str] = field(default_factory=dict)  # the SHA-256 of each part's file, by name


def write_parts(draft: Path, parts: Parts) -> dict[str, str]:
    """A file for each part; their SHA-256 by part. Raises ResourceError where the disk is full or refuses."""
    digests = {}
    for name, values in parts.items():
        content = save({key: value.detach().cpu().contiguous() for key, value in values.items()})
        write_bytes(draft / _file(name), content)
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests


class Checkpoints:
    """The folder `checkpoints/` of a run, one sub-folder `step-00000100` each.

    `failed_saves` is how many saves in a row may fail in `try_save`.
    """

    def __init__(self, folder: Path, keep_last: int, failed_saves: int = 0) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.failed_saves = failed_saves
        self._failed = 0

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, whole or not, ascending. Raises CheckpointError where nobody can say."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be read: {error.strerror}") from error
        numbers = (name.removeprefix("step-") for name in names if name.startswith("step-"))
        return sorted(int(number) for number in numbers if number.isdigit())

    def path(self, step: int) -> Path:
        """Folder of the checkpoint after `step` steps."""
        return self.folder / f"step-{step:08d}"

    def save(self, state: TrainingState, best: Best | None, gather: Gather = write_parts) -> None:
        """Write the state; only then drop what is neither among the last ones nor the best.

        `gather` sees to the parts that other workers hold. Raises ResourceError where the disk is full or refuses;
        older checkpoints stay.
        """
        capture = state.capture()  # before anything that may fail on this worker alone
        self.sweep()
        try:
            with whole_folder(self.path(state.step)) as draft:
                tensors = {name: value.detach().cpu().contiguous() for name, value in capture.tensors.items()}
                (draft / TENSORS).write_bytes(save(tensors))
                parts = gather(draft, capture.parts)
                assert sorted(parts) == capture.names, (sorted(parts), capture.names)
                digest = sha256_file(draft / TENSORS)
                header = Header(state.step, state.spec.seed, state.spec.digest(), capture.sha256, digest, best, parts)
                write_json(draft / "checkpoint.json", asdict(header))
        except OSError as error:
            raise ResourceError(f"cannot write {self.path(state.step)}: {error.strerror}") from error
        self._drop(state.step, best)

    def try_save(
        self, state: TrainingState, best: Best | None, *, required: bool, gather: Gather = write_parts
    ) -> str | None:
        """Save, or say why that failed and leave it to the next save: None, or words for a warning.

        Raises ResourceError where the checkpoint is `required`, because training ends with it, and after more than
        `failed_saves` failures in a row. Older checkpoints stay whatever happens.
        """
        try:
            self.save(state, best, gather)
        except ResourceError as error:
            self._failed += 1
            problem = f"the checkpoint of step {state.step} is not saved: {error}"
            if required or self._failed > self.failed_saves:
                raise ResourceError(
                    f"{problem} ({self._failed} failed in a row, parallel.tolerate.failed_saves is "
                    f"{self.failed_saves}{', and training ends here' if required else ''}). "
                    f"The checkpoints before it are kept; the same command goes on from the last one",
                    **error.data,
                ) from error
            return f"{problem}. Training goes on; the next checkpoint will be tried again"
        self._failed = 0
        return None

    def _drop(self, step: int, best: Best | None) -> None:
        """Remove older checkpoints; one that cannot be removed costs space, not the run."""
        with suppress(OSError, CheckpointError):
            older = [known for known in self.steps() if known <= step]
            kept = {*older[-self.keep_last :], best.step if best else -1}
            for known in older:
                if known not in kept:
                    remove_folder(self.path(known))

    def sweep(self) -> None:
        """Remove what killed writers left behind; the drafts of living ones stay."""
        sweep(self.folder)

    def newest_whole(self) -> tuple[int | None, list[str]]:
        """The newest step whose files are those that were saved, and what is wrong with each newer one.

        None where no checkpoint is whole. Raises CheckpointError where the folder is unreadable.
        """
        skipped = []
        for step in reversed(self.steps()):
            try:
                self.check(step)
            except CheckpointError as error:
                skipped.append(str(error))
            else:
                return step, skipped
        return None, skipped

    def whole_one(self, run: str) -> tuple[int | None, list[str]]:
        """As `newest_whole`; None only where there is none at all.

        Raises CheckpointError where all are damaged: to begin anew would throw away what somebody may mend.
        """
        step, damaged = self.newest_whole()
        if step is None and damaged:
            raise CheckpointError(
                f"run {run} has no whole checkpoint: {'; '.join(damaged)}. Restore one, or --again to start anew"
            )
        return step, damaged

    def go_back(self, run: str) -> tuple[int, list[str]]:
        """Where a run goes on when nobody holds its state: step and what is wrong with newer ones, which are set aside.

        Step 0 where there is none. Raises CheckpointError as `whole_one`.
        """
        step, damaged = self.whole_one(run)
        self.set_aside_after(step or 0)
        return step or 0, damaged

    def set_aside_after(self, step: int) -> None:
        """Rename checkpoints of later steps to `damaged-...`: kept for a look, never counted, never loaded.

        Raises ResourceError where the folder cannot be changed.
        """
        for later in (known for known in self.steps() if known > step):
            aside = self.folder / f"damaged-{later:08d}"
            try:
                if aside.exists():
                    remove_folder(aside)
                self.path(later).rename(aside)
            except OSError as error:
                raise ResourceError(f"{self.path(later)} cannot be set aside: {error.strerror}") from error

    def check(self, step: int) -> Header:
        """What a whole checkpoint says of itself. Raises CheckpointError where it is damaged or unreadable."""
        header, folder = self.header(step), self.path(step)
        files = {TENSORS: header.file_sha256} | {_file(name): digest for name, digest in header.parts.items()}
        for name, recorded in files.items():
            try:
                digest = sha256_file(folder / name)
            except OSError as error:
                raise CheckpointError(f"{folder / name} cannot be read: {error.strerror}") from error
            if digest != recorded:
                raise CheckpointError(_damaged(folder / name))
        return header

    def header(self, step: int) -> Header:
        """What the checkpoint says of itself. Raises CheckpointError where it is missing or unreadable."""
        path = self.path(step)
        try:
            fields = json.loads((path / "checkpoint.json").read_text())
            best = fields.pop("best")
            header = Header(**fields, best=Best(**best) if best else None)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from error
        if header.step != step:
            raise CheckpointError(f"{path} is not a readable checkpoint: it says that it is of step {header.step}")
        return header

    def load(self, step: int, state: TrainingState) -> Header:
        """Put a checkpoint into the state: what all hold alike, and of the parts those that this worker owns now.

        Raises CheckpointError where what it reads is damaged or belongs to another job.
        """
        header, path = self.header(step), self.path(step)
        if header.spec_digest != state.spec.digest():
            raise CheckpointError(f"{path} belongs to a job with another spec; start anew, or under another name")
        tensors = self._read(step, TENSORS, header.file_sha256)
        own = [name for name in state.parts() if name in header.parts]
        state.load(tensors, header.step, {name: self._read(step, _file(name), header.parts[name]) for name in own})
        return header

    def _read(self, step: int, name: str, recorded: str) -> dict[str, Tensor]:
        """The tensors of a file of a checkpoint. Raises CheckpointError where it is not what was saved."""
        path = self.path(step) / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if hashlib.sha256(content).hexdigest() != recorded:
            raise CheckpointError(f"{_damaged(path)}. {self._way_out(step)}")
        return load(content)

    def _way_out(self, step: int) -> str:
        earlier = [other for other in self.steps() if other < step]
        if earlier:
            return f"Remove {self.path(step)} to resume from step {earlier[-1]}."
        return "There is no earlier checkpoint: start anew."


def _file(part: str) -> str:
    return f"{part}.safetensors"


def _damaged(path: Path) -> str:
    return f"{path} is damaged: its SHA-256 is not the recorded one"
