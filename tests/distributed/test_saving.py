"""A checkpoint that the first worker cannot write: every worker knows, keeps the same best step, and stops alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydml.errors import ResourceError
from raydml.parallel import Group
from raydml.training.checkpoints import Best, Checkpoints
from raydml.training.record import RunRecord, read_lines
from raydml.training.saving import Saver
from tests.distributed.harness import run_processes
from tests.unit.test_training_state import gradients, spec_of, state_of

pytestmark = pytest.mark.timeout(120)


def save_while_refused(group: Group, folder: str) -> tuple[list[int | None], str]:
    """Saves of steps 1 to 5; a file in the folder's place refuses all but the first. The best step after each."""
    run = Path(folder)
    checkpoints = Checkpoints(run / "checkpoints", 2, failed_saves=1)
    saver, state = Saver(checkpoints, RunRecord(run), group), state_of(spec_of())
    kept: list[int | None] = []
    best: Best | None = None
    for step in range(1, 6):
        state.update(gradients(state, step))
        if group.rank == 0 and step == 2:
            checkpoints.folder.rename(run / "moved")
            checkpoints.folder.touch()
        try:
            if saver.save(state, Best(step, step / 10), required=False):
                best = Best(step, step / 10)
        except ResourceError as error:
            return kept, str(error)
        kept.append(best.step if best else None)
    return kept, "went on"


def test_all_workers_agree_on_the_best_step_that_was_saved_and_stop_together(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    results = run_processes(2, save_while_refused, str(run), tmp_path)
    assert [kept for kept, _ in results] == [[1, 1]] * 2
    assert results[0] == results[1]
    assert "the checkpoint of step 3 is not saved" in results[0][1] and "(2 failed in a row" in results[0][1]
    lines = read_lines(run / "metrics.jsonl")[0]
    assert [line["step"] for line in lines] == [2] and "failed_save" in lines[0]
