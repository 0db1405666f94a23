"""A state goes from one worker to another: every bit of it, but for frozen parameters, which both have already."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raydml.errors import RunError
from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training import handover
from raydml.training.worker import Job, Worker
from tests.distributed.harness import run_processes, small_spec, write_images

pytestmark = pytest.mark.timeout(240)


def hand_over(group: Group, given: tuple[JobSpec, str, bool]) -> tuple[str, str, list[int], str]:
    """The first of two workers trains alone and gives; digests before and after, bytes that came, what was refused."""
    spec, folder, spoiled = given
    worker = Worker(Job(spec, Path(folder), Path(folder), None), Group(0, 1, 8), torch.device("cpu"))
    state = worker.trainer.state
    sizes: list[int] = []
    if group.rank == 0:
        worker.trainer.run(3, lambda report: True)
        if spoiled:
            with torch.no_grad():
                next(state.model.backbone.parameters())[0, 0] += 1e-3
        before = state.digest()
        handover.give(worker, "lineage", [1])
        return before, state.digest(), sizes, ""
    before, named = state.digest(), handover._named
    handover._named = lambda numbers, manifest: sizes.append(len(numbers)) or named(numbers, manifest)
    try:
        assert handover.take(worker, 0) == "lineage"
    except RunError as error:
        return before, state.digest(), sizes, str(error)
    return before, state.digest(), sizes, ""


@pytest.mark.parametrize("frozen", [[], ["backbone"]], ids=["all is trained", "a frozen backbone"])
def test_the_receiver_holds_the_same_bits_and_frozen_parameters_are_not_sent(tmp_path: Path, frozen: list[str]) -> None:
    spec = small_spec(write_images(tmp_path), **{"model.frozen": frozen})
    (_, wanted, _, _), (before, found, (size,), _) = run_processes(2, hand_over, (spec, str(tmp_path), False), tmp_path)
    assert found == wanted != before
    head, backbone, running = 16 * 8 + 8, 64 * 16 + 2 * 16, 2 * 16 + 2  # the last one an int64
    trained, tensors = (head, 2) if frozen else (head + backbone, 5)
    assert size == 4 * (3 * trained + tensors + running), "AdamW keeps two more numbers for each, and counts its steps"


def test_frozen_parameters_that_differ_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    spec = small_spec(write_images(tmp_path), **{"model.frozen": ["backbone"]})
    _, (before, after, _, words) = run_processes(2, hand_over, (spec, str(tmp_path), True), tmp_path)
    assert "frozen parameters are not those of rank 0" in words
    assert before == after
