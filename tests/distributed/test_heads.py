"""Class-parallel heads over real processes: equal to one process, one SHA-256, through saves and changing groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pytorch_metric_learning import losses
from torch import Tensor, nn

from raydml.data import SamplingPlan, open_dataset
from raydml.losses import evaluate_objective
from raydml.models import build_model
from raydml.parallel import Group
from raydml.parallel.class_vectors import head_share
from raydml.spec import JobSpec
from raydml.training.checkpoints import Checkpoints
from raydml.training.loop import StepReport
from raydml.training.record import RunRecord
from raydml.training.saving import Saver
from raydml.training.worker import Job, Worker
from tests.distributed.elastic_harness import elastic_run
from tests.distributed.harness import on_its_mesh, run_processes, small_spec, write_images
from tests.distributed.test_same_bits import digests
from tests.distributed.test_sharded_state import losses_of
from tests.unit.test_heads import DIMENSION, LIBRARY, OWN, batch, home, objective, options_of, vectors, wanted

pytestmark = pytest.mark.timeout(600)

SGD = {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
SCHEDULE = {"kind": "cosine", "warmup_steps": 3}
SAMPLED = {"kind": "arcface", "scale": 16, "class_parallel": {"sample_rate": 0.3}}


def verdicts(group: Group, cases: list[tuple[str, int]]) -> list[tuple[float, np.ndarray, np.ndarray, float]]:
    """Of each loss and number of classes: the loss, dL/d(own rows), dL/d(own class vectors), the norm of the latter."""
    found = []
    for kind, num_classes in cases:
        made = objective({"kind": kind, "class_parallel": True, **options_of(kind)}, num_classes, home(group))
        verdict = evaluate_objective(made, *batch(num_classes), 0, 0, group)
        assert verdict.head is not None
        of_vectors = torch.cat([gradient for _, gradient in verdict.head.gradients]).reshape(-1, DIMENSION)
        norm = group.gather_slices(verdict.head.norms(verdict.loss)).norm()
        found.append((float(verdict.loss), verdict.cotangents.numpy(), of_vectors.numpy(), float(norm)))
    return found


def test_any_number_of_workers_gives_value_and_gradient_of_one_process(tmp_path: Path) -> None:
    cases = [(kind, classes) for kind in (*LIBRARY, *OWN) for classes in (29, 5)]  # more of them on one worker
    cases += [("arc_face", 8), ("cos_face", 1), ("proxy_anchor", 1)]
    alone = verdicts(Group(0, 1, 8), cases)
    for size in (2, 3, 4):
        results = run_processes(size, verdicts, cases, tmp_path)
        for place, (kind, classes) in enumerate(cases):
            made = objective({"kind": kind, "class_parallel": True, **options_of(kind)}, classes)
            theirs = wanted(kind, *batch(classes), vectors(made), options_of(kind))
            parts = [result[place] for result in results]
            assert {(loss, norm) for loss, _, _, norm in parts} == {(alone[place][0], alone[place][3])}
            np.testing.assert_allclose(alone[place][3], float(theirs[2].norm()), rtol=1e-9, atol=1e-9)
            for number in (1, 2):
                whole = np.concatenate([np.asarray(part[number]) for part in parts])
                assert np.array_equal(whole, alone[place][number]), f"{kind}, {classes} classes, {size} workers"
                np.testing.assert_allclose(whole, theirs[number].numpy(), rtol=1e-9, atol=1e-9)


class Counted:
    """torch.distributed, with the numbers that this worker receives; an all-reduce counts as a ring has it."""

    def __init__(self) -> None:
        self.numbers = 0.0
        size = dist.get_world_size()
        self._replace("all_reduce", lambda value, *_: 2 * value.numel() * (1 - 1 / size))
        self._replace("all_gather_into_tensor", lambda out, own: out.numel() - own.numel())
        taken = lambda messages: sum(message.tensor.numel() for message in messages if message.op is dist.irecv)  # noqa: E731
        self._replace("batch_isend_irecv", taken)

    def _replace(self, name: str, received: Callable[..., float]) -> None:
        real = getattr(dist, name)

        def counting(*values: Any, **options: Any) -> Any:
            self.numbers += received(*values)
            return real(*values, **options)

        setattr(dist, name, counting)


def received(group: Group, documents: list[dict[str, Any]]) -> list[float]:
    """The numbers that a worker receives in a step of each loss: gathered batch, loss with gradients, their norms."""
    counted, found = Counted(), []
    for document in documents:
        made = objective(document, 29, home(group))
        embeddings, labels = batch(29)
        before = counted.numbers
        size = len(embeddings) // group.num_slices
        group.gather_slices(embeddings[group.owned.start * size : group.owned.stop * size])
        verdict = evaluate_objective(made, embeddings, labels, 0, 0, group)
        if verdict.head is not None:
            group.gather_slices(verdict.head.norms(verdict.loss))
        made.commit(embeddings, labels, verdict.head, 0)
        found.append(counted.numbers - before)
    return found


def test_workers_receive_what_the_page_on_scaling_says(tmp_path: Path) -> None:
    on, rows, slices = {"class_parallel": True}, 48, 8
    documents = [{"kind": "cos_face", **on}, {"kind": "proxy_anchor", **on}, {"kind": "center", **on}, SAMPLED]
    softmax = 3 * rows * DIMENSION + 6 * rows + slices
    numbers = [softmax, 3 * rows * DIMENSION + 2 + slices, 3 * rows * DIMENSION, softmax]
    for size in (2, 4):
        for found in run_processes(size, received, documents, tmp_path):
            # The tree's sum is padded to a multiple of W.
            np.testing.assert_allclose(found, [(1 - 1 / size) * number for number in numbers], rtol=0, atol=2 * size)
        for document, number in zip(documents, numbers, strict=True):  # the plan's, beside the gathered batch
            spec = small_spec(
                tmp_path,
                loss=document,
                batch={"classes": 12, "samples": 4, "virtual_workers": slices},
                **{"model.dimension": DIMENSION, "parallel.precision": "float64"},
            )
            share = head_share(spec, 29, size)
            assert share is not None and share.sent == int(8 * (1 - 1 / size) * (number - rows * DIMENSION))


def cases(data: Path) -> dict[str, JobSpec]:
    def case(loss: dict[str, Any], **changes: Any) -> JobSpec:
        train = {"steps": 8, "evaluate_every": 0, "clip_norm": 0.5, "schedule": SCHEDULE, **changes.pop("train", {})}
        return small_spec(data, loss=loss, train=train, **changes)

    on = {"class_parallel": True}
    return {
        "sampled arcface, sgd": case(SAMPLED, train={"optimizer": SGD}),
        "sampled cosface, adamw": case({"kind": "cosface", "class_parallel": {"sample_rate": 0.2}}),
        "sub-centers": case({"kind": "sub_center_arc_face", **on}, train={"optimizer": SGD}),
        "curricular face": case({"kind": "curricular_face", "center": {"weight": 0.01, **on}}),
        "normalised softmax, own rate": case(
            {"kind": "normalized_softmax", **on}, train={"optimizer": {"kind": "adamw", "parts": {"loss": 10}}}
        ),
        "softmax, adam": case({"kind": "softmax"}, train={"optimizer": {"kind": "adam", "weight_decay": 0.01}}),
        "proxy anchor": case({"kind": "proxy_anchor", **on}),
        "center": case({"kind": "center", **on}),
    }


def test_one_sha256_for_one_to_four_workers(tmp_path: Path) -> None:
    seen = digests(cases(write_images(tmp_path, classes=30)), (1, 2, 3, 4), tmp_path)
    for name, found in seen.items():
        assert len(set(found.values())) == 1, f"{name}: {found}"


def train_some(group: Group, given: tuple[str, str, int | None, int]) -> tuple[str, list[str]]:
    """Go on from a checkpoint, or begin, to a step; save there. The state's SHA-256, and the parts held."""
    document, folder, resume, until = given
    spec = JobSpec.model_validate_json(document)
    run = Path(folder)
    worker = Worker(Job(spec, run, run, resume), group, torch.device("cpu"))
    worker.trainer.run(until, lambda report: True)
    state = worker.trainer.state
    assert Saver(Checkpoints(run / "checkpoints", 9), RunRecord(run), group).save(state, None, required=True)
    return state.digest(), sorted(state.parts())


def test_what_one_number_of_workers_saves_another_goes_on_from(tmp_path: Path) -> None:
    spec = cases(write_images(tmp_path, classes=30))["sampled arcface, sgd"]
    whole, apart = tmp_path / "whole", tmp_path / "apart"
    for folder in (whole, apart):
        folder.mkdir()
    ((digest, names),) = run_processes(1, train_some, (spec.model_dump_json(), str(whole), None, 8), tmp_path)
    run_processes(3, train_some, (spec.model_dump_json(), str(apart), None, 3), tmp_path)
    run_processes(2, train_some, (spec.model_dump_json(), str(apart), 3, 6), tmp_path)
    results = run_processes(4, train_some, (spec.model_dump_json(), str(apart), 6, 8), tmp_path)
    assert {found for found, _ in results} == {digest}
    assert [name for _, held in results for name in held] == names, "each worker holds its own classes and no others"
    assert names == [f"objective.head-{index:05d}" for index in range(8)]


def test_a_run_whose_members_come_go_and_die_ends_with_the_same_bits(tmp_path: Path) -> None:
    spec = small_spec(
        write_images(tmp_path, classes=30),
        loss={**SAMPLED, "center": {"weight": 0.01, "class_parallel": True}},
        train={"steps": 60, "evaluate_every": 0, "checkpoint_every": 20, "optimizer": SGD, "schedule": SCHEDULE},
    )
    assert spec.state == "sharded"
    with elastic_run(spec, tmp_path / "undisturbed", first=2, state="sharded") as fleet:
        facts, curve = fleet.finish(), losses_of(fleet)
    with elastic_run(spec, tmp_path / "run", first=1, state="sharded") as fleet:
        fleet.wait_for_step(4)
        fleet.start(2)
        fleet.wait_for_size(3)
        fleet.wait_for_step(fleet.step() + 3)
        fleet.server.ask(lambda authority, now: authority.resize(2, now))
        fleet.wait_for_size(2)
        fleet.wait_for_step(max(23, fleet.step() + 2))
        fleet.kill(fleet.server.view.members[0])  # type: ignore[union-attr]
        assert fleet.finish()["state_sha256"] == facts["state_sha256"]
        assert losses_of(fleet) == curve
    assert {"start", "join", "resize", "restart"} <= {event.cause for event in fleet.events}


def trained(group: Group, given: tuple[str, str]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[float]]:
    """Train from the start: the model's tensors, whole, of the first worker; own class vectors by part; losses."""
    document, folder = given
    spec = JobSpec.model_validate_json(document)
    worker = Worker(Job(spec, Path(folder), Path(folder), None), on_its_mesh(group, spec), torch.device("cpu"))
    curve: list[float] = []

    def after(report: StepReport) -> bool:
        curve.append(report.loss)
        return True

    worker.trainer.run(spec.train.steps, after)
    state = worker.trainer.state
    digest = state.digest()
    assert worker.saver.save(state, None, required=True)
    worker.restore(spec.train.steps)
    assert state.digest() == digest, "what is saved, each part by one of those who hold it, is what was there"
    saved = state.capture().tensors  # whole on the first worker
    model = {name: value.detach().numpy() for name, value in saved.items() if name.startswith("model.")}
    return model, {name: part["vectors"].numpy() for name, part in state.parts().items()}, curve


def plain_loop(spec: JobSpec, folder: Path) -> tuple[nn.Module, Tensor, list[float]]:
    """What a person would write without raydml: one process, torch's optimiser, clipping and schedule."""
    dataset = open_dataset(spec.data, folder)
    plan = SamplingPlan(dataset.training_labels, spec.batch, spec.seed)
    model = build_model(spec.model, dataset.input_shape, spec.seed).double()
    loss_function = losses.CosFaceLoss(dataset.num_training_classes, 8, scale=16).double()
    ours = objective(
        {"kind": "cosface", "class_parallel": True}, dataset.num_training_classes, dimension=8, seed=spec.seed
    )
    assert ours.head is not None
    loss_function.W.data = torch.cat([ours.head.table.shard(index)["vectors"] for index in range(8)]).T.contiguous()
    groups = [{"params": list(model.parameters())}, {"params": [loss_function.W], "lr": 1e-2}]
    optimizer = torch.optim.AdamW(groups, 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 3))
    curve = []
    for step in range(spec.train.steps):
        positions = plan.batch(step)
        inputs = dataset.tensors(dataset.indices("train")[positions]).double()
        optimizer.zero_grad()
        loss = loss_function(model(inputs), torch.from_numpy(dataset.training_labels[positions]))
        loss.backward()
        nn.utils.clip_grad_norm_([*model.parameters(), loss_function.W], 0.5)
        optimizer.step()
        schedule.step()
        curve.append(float(loss.detach()))
    return model, loss_function.W.detach().T, curve


@pytest.mark.parametrize(
    ("strategy", "mesh", "sizes"),
    [("ddp", {}, (1, 3)), ("fsdp", {}, (3,)), ("tensor", {"tensor": 2}, (4,)), ("pipeline", {"pipeline": 2}, (4,))],
)
def test_a_run_is_the_plain_loop_of_one_process(
    tmp_path: Path, strategy: str, mesh: dict[str, int], sizes: tuple[int, ...]
) -> None:
    cnn, mlp = {"kind": "small_cnn", "width": 16}, {"kind": "mlp", "hidden": [16], "batch_norm": False}
    backbone = mlp if strategy == "tensor" else cnn  # two workers cannot share the three groups of its norms
    spec = small_spec(
        write_images(tmp_path, classes=30),
        model={"backbone": backbone, "dimension": 8, "batch_norm": "group"},
        loss={"kind": "cosface", "scale": 16, "class_parallel": True},
        train={
            "steps": 5,
            "evaluate_every": 0,
            "clip_norm": 0.5,
            "schedule": {"kind": "constant", "warmup_steps": 3},
            "optimizer": {"kind": "adamw", "parts": {"loss": 10}},
        },
        **{"parallel.precision": "float64", "parallel.strategy": strategy, "parallel.mesh": mesh},
    )
    model, vectors_wanted, curve = plain_loop(spec, tmp_path)
    for size in sizes:
        results = run_processes(size, trained, (spec.model_dump_json(), str(tmp_path)), tmp_path)
        parts = {name: value for _, part, _ in results for name, value in part.items()}
        found = np.concatenate([value for _, value in sorted(parts.items())])
        np.testing.assert_allclose(found, vectors_wanted.numpy(), rtol=1e-9, atol=1e-9)
        for _, _, seen in results:
            np.testing.assert_allclose(seen, curve, rtol=1e-9)
        for name, value in model.state_dict().items():
            found = results[0][0][f"model.{name}"]
            np.testing.assert_allclose(found, value.numpy(), rtol=1e-9, atol=1e-9, err_msg=name)
