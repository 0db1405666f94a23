"""A watched run in this process: sick ones are told of, healthy ones are left alone, and no bit is changed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional

from raydml.errors import SpecError, TrainingDiverged
from raydml.losses import Objective, evaluate_objective
from raydml.models import build_model
from raydml.parallel import Group
from raydml.progress import Progress, Watch
from raydml.runs import Run
from raydml.spec import JobSpec
from raydml.specfile import load_spec
from raydml.training.loop import StepReport
from raydml.training.record import read_lines
from raydml.training.watch import Alarm, Health, Monitor, head_norms, proxies_of
from raydml.training.worker import Job, Worker
from tests.distributed.harness import small_spec
from tests.unit.test_losses import every_entry

CPU = torch.device("cpu")
RULES = ("collapse", "no_signal", "dead_proxies", "exploding_norms", "gap_negative")


def watched(data: Path, steps: int = 40, every: int = 5, **changes: Any) -> JobSpec:
    """A small job that is looked at often; `rule=...` changes a rule, the rest the spec."""
    rules = {name: changes.pop(name) for name in RULES if name in changes}
    train = {"steps": steps, "evaluate_every": 0} | changes.pop("train", {})
    return small_spec(data, train=train, watch={"every": every, "rules": rules}, **changes)


def worker(spec: JobSpec, folder: Path) -> Worker:
    return Worker(Job(spec, folder, folder, None), Group(0, 1, 8), CPU)


def alarms(spec: JobSpec, folder: Path) -> list[tuple[int, str]]:
    """(step, rule) of everything told while the spec trains."""
    told: list[tuple[int, str]] = []

    def after(report: StepReport) -> bool:
        told.extend((report.step, alarm.rule) for alarm in report.health.alarms)
        return True

    worker(spec, folder).trainer.run(spec.train.steps, after)
    return told


# Healthy and sick runs


@pytest.mark.parametrize("loss", ["triplet", "multi_similarity", "arcface", "supcon"])
def test_a_healthy_run_is_left_alone(images: Path, tmp_path: Path, loss: str) -> None:
    assert alarms(watched(images, loss={"kind": loss}), tmp_path) == []


ONLY_POSITIVES = {"kind": "contrastive", "neg_margin": 0.0}  # nothing pushes classes apart
NO_NORMS = {"backbone": {"kind": "mlp", "hidden": [16], "batch_norm": False}, "dimension": 8}


def test_a_contrastive_loss_of_positives_alone_collapses(images: Path, tmp_path: Path) -> None:
    spec = watched(images, 120, loss=ONLY_POSITIVES, model=NO_NORMS, train={"optimizer": {"kind": "adam", "lr": 0.02}})
    told = alarms(spec, tmp_path)
    assert told[0][1] == "collapse" and told[0][0] > 5, "it collapsed while it trained, not before"


def test_inputs_that_are_all_alike_collapse_at_the_first_look(tmp_path: Path) -> None:
    path = tmp_path / "gray.npz"
    labels = np.repeat(np.arange(20), 6)
    splits = np.array([("train", "train", "train", "validation", "test")[label % 5] for label in labels])
    np.savez(path, inputs=np.full((120, 8, 8), 90, np.uint8), labels=labels, splits=splits)
    assert (5, "collapse") in alarms(watched(path, 10, model=NO_NORMS), tmp_path)


def test_a_rate_far_too_high_lets_norms_explode_which_normalised_embeddings_hide(images: Path, tmp_path: Path) -> None:
    told = alarms(watched(images, 5, train={"optimizer": {"kind": "sgd", "lr": 1000.0}}), tmp_path)
    assert told == [(5, "exploding_norms")]


def test_a_margin_that_every_triplet_keeps_gives_no_signal(images: Path, tmp_path: Path) -> None:
    loss = {"kind": "triplet", "margin": 1e-6, "miner": {"kind": "semihard"}}
    assert alarms(watched(images, 15, loss=loss), tmp_path) == [(15, "no_signal")], "after three looks"
    patient = watched(images, 15, loss=loss, no_signal={"patience": 4})
    assert alarms(patient, tmp_path) == []


def test_proxies_that_do_not_move_are_dead(images: Path, tmp_path: Path) -> None:
    frozen = {"optimizer": {"kind": "adamw", "parts": {"loss": 0.0}}}
    spec = watched(images, loss={"kind": "proxy_anchor"}, train=frozen, dead_proxies={"patience": 4, "share": 0.3})
    assert alarms(spec, tmp_path) == [(20, "dead_proxies")]
    patient = watched(images, loss={"kind": "proxy_anchor"}, train=frozen, dead_proxies={"patience": 9})
    assert alarms(patient, tmp_path) == []


def test_labels_that_contradict_the_images_have_a_negative_gap(tmp_path: Path) -> None:
    """Each class holds one image of every kind: its own are never as alike as those of one kind in other classes."""
    random = np.random.default_rng(0)
    kinds = random.uniform(0, 255, (6, 8, 8))
    labels = np.repeat(np.arange(20), 6)
    pictures = np.tile(kinds, (20, 1, 1)) + random.normal(0, 5, (120, 8, 8))
    splits = np.array([("train", "train", "train", "validation", "test")[label % 5] for label in labels])
    path = tmp_path / "wrong.npz"
    np.savez(path, inputs=pictures.clip(0, 255).astype(np.uint8), labels=labels, splits=splits)
    slow = {"optimizer": {"kind": "sgd", "lr": 1e-6}}
    assert alarms(watched(path, 20, train=slow), tmp_path) == [(15, "gap_negative")]


# Actions


def test_a_rule_that_says_stop_ends_the_run_before_the_next_step_with_numbers_and_way_out(
    images: Path, tmp_path: Path
) -> None:
    one = worker(watched(images, 20, collapse={"action": "stop", "spread": 0.99}), tmp_path)
    with pytest.raises(TrainingDiverged, match=r"step 5: collapse: .* spread 0\.\d+ \(rule: 0\.99\)") as caught:
        one.run()
    assert "watch.rules.collapse=warn" in caught.value.message
    assert caught.value.data["rules"] == ["collapse"] and caught.value.data["values"]["spread"] < 0.99
    assert one.trainer.state.step == 5
    logged = [line["step"] for line in read_lines(one.record.metrics_path)[0]]
    assert logged == [1, 2, 3, 4, 5, 5], "the step that stopped it and its warning are on record"


def test_a_warning_is_told_once_for_each_time_that_a_rule_begins_to_be_broken(tmp_path: Path, images: Path) -> None:
    spec = watched(images, no_signal="off", exploding_norms={"norm": 2.0, "patience": 2})
    monitor = Monitor(spec.watch, 12)
    objective = Objective(spec.loss, num_classes=12, dimension=8, seed=0, dtype=torch.float32)
    told = [
        [alarm.rule for alarm in look(monitor, objective, eight_classes(), torch.full((32,), length)).alarms]
        for length in (3.0, 3.0, 3.0, 1.0, 3.0, 3.0)
    ]
    assert told == [[], ["exploding_norms"], [], [], [], ["exploding_norms"]]


def look(monitor: Monitor, objective: Objective, embeddings: Tensor, norms: Tensor | None = None) -> Health:
    labels = torch.arange(len(embeddings)) % 8
    return monitor.look(embeddings, labels, evaluate_objective(objective, embeddings, labels, 0, 0), norms, objective)


def eight_classes(seed: int = 0) -> Tensor:
    """(32, 8): four rows around each of eight corners."""
    return torch.eye(8).repeat(4, 1) + 0.1 * torch.randn(32, 8, generator=torch.Generator().manual_seed(seed))


def test_a_rule_that_is_off_is_silent_and_every_zero_looks_never(images: Path, tmp_path: Path) -> None:
    broken = {"spread": 0.99, "patience": 1}
    assert alarms(watched(images, 5, collapse=broken), tmp_path) == [(5, "collapse")]
    assert alarms(watched(images, 5, collapse={**broken, "action": "off"}), tmp_path) == []
    assert alarms(watched(images, 5, 0, collapse=broken), tmp_path) == []


def test_warnings_reach_the_record_and_whoever_listens(images: Path, tmp_path: Path) -> None:
    heard: list[Progress] = []
    one = worker(watched(images, 10, collapse={"spread": 0.99}), tmp_path)
    watch = Watch(one.record, one.spec, heard.append)
    one.trainer.run(10, lambda report: one._after_step(report) and watch.tick() is None)
    told = [warning for progress in heard for warning in progress.warnings]
    assert len(told) == 1 and told[0].startswith("step 5: collapse: ")
    assert [alarm["rule"] for alarm in Run(tmp_path, tmp_path).warnings] == ["collapse"]
    values = [line for line in read_lines(one.record.metrics_path)[0] if "effective_rank" in line]
    assert [line["step"] for line in values] == [5, 10]
    assert {"spread", "norm_mean", "gap", "silent_rows", "gradient_norm"} <= values[0].keys()


# What is measured


def test_norms_are_those_before_normalisation_in_order_of_the_passes() -> None:
    spec = JobSpec.model_validate({"name": "n", "data": {"kind": "glyphs"}, "loss": {"kind": "triplet"}})
    model = build_model(spec.model, (1, 32, 32), 0).eval()
    inputs = torch.randn(2, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), head_norms(model, wanted=True) as norms:
        embeddings = [model(part) for part in inputs]
    expected = [model.head(model.backbone(part)) for part in inputs]
    for own, raw, embedding in zip(norms, expected, embeddings, strict=True):
        assert own.tolist() == pytest.approx([math.hypot(*row) for row in raw.tolist()], rel=1e-5)
        assert torch.equal(functional.normalize(raw), embedding)
    model(inputs[0])
    assert len(norms) == 2, "nothing is kept of later passes"


def test_norms_of_a_model_that_does_not_normalise_are_those_of_its_embeddings() -> None:
    with head_norms(nn.Linear(2, 2), wanted=True) as norms:
        pass
    assert norms == []


@pytest.mark.parametrize("loss", list(every_entry(classes=12)), ids=lambda loss: loss["kind"])
def test_every_loss_is_looked_at_and_those_with_proxies_have_some_for_each_class(loss: dict[str, Any]) -> None:
    spec = JobSpec.model_validate({"name": "n", "data": {"kind": "glyphs"}, "loss": loss})
    objective = Objective(spec.loss, num_classes=12, dimension=8, seed=0, dtype=torch.float32)
    values = look(Monitor(spec.watch, 12), objective, eight_classes()).values
    proxies = proxies_of(objective)
    assert ("dead_proxies" in values) == (proxies is not None)
    if proxies is not None:
        assert proxies.shape[1] == 8 and len(proxies) % 12 == 0
        assert 0 <= values["dead_proxies"] <= 1
    weights = sum(parameter.numel() for parameter in objective.parameters())
    assert (proxies is not None) == (weights >= 12 * 8), "no loss with class weights is left out"


def test_dead_classes_are_those_of_a_loop_over_the_last_batches() -> None:
    spec = JobSpec.model_validate(
        {
            "name": "n",
            "data": {"kind": "glyphs"},
            "loss": {"kind": "subcenter_arcface", "sub_centers": 2},
            "watch": {"rules": {"dead_proxies": {"batches": 2}}},
        }
    )
    objective = Objective(spec.loss, num_classes=12, dimension=8, seed=0, dtype=torch.float32)
    monitor = Monitor(spec.watch, 12)
    proxies = functional.normalize(objective.term.loss.W.detach().double().T)  # type: ignore[union-attr,operator]
    met: list[set[int]] = []
    for seed in range(4):
        embeddings = eight_classes(seed) - eight_classes(9)[seed]
        met.append({int((proxies @ row.double()).argmax()) // 2 for row in embeddings})
        dead = [label for label in range(8) if label not in set().union(*met[-2:])]  # eight of twelve have rows
        assert look(monitor, objective, embeddings).values["dead_proxies"] == len(dead) / 8
        assert dead, "so that something is counted"
    assert len(set(map(frozenset, met))) > 1


# The spec


@pytest.mark.parametrize(
    ("written", "action"), [("stop", "stop"), ("off", "off"), ("{action: off}", "off"), ("warn", "warn")]
)
def test_a_rule_is_a_word_or_a_mapping_also_where_yaml_reads_off_as_false(
    tmp_path: Path, written: str, action: str
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        f"name: n\ndata: {{kind: glyphs}}\nloss: {{kind: triplet}}\nwatch: {{rules: {{collapse: {written}}}}}"
    )
    spec = load_spec(path)
    assert spec.watch.rules.collapse.action == action
    assert load_spec(path, [f"watch.rules.no_signal={written}"]).watch.rules.no_signal.action == action
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    assert load_spec(path) == spec


@pytest.mark.parametrize("wrong", ["on", "sometimes", "3", "{spread: 1}", "{rank: -1}", "{norm: 2}"])
def test_a_rule_that_is_none_is_refused_with_its_line(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        f"name: n\ndata: {{kind: glyphs}}\nloss: {{kind: triplet}}\nwatch: {{rules: {{collapse: {wrong}}}}}"
    )
    with pytest.raises(SpecError, match=r"spec.yaml:4: watch\.rules\.collapse"):
        load_spec(path)


def test_neither_watching_nor_the_card_is_in_the_specs_digest(images: Path) -> None:
    plain = small_spec(images)
    other = small_spec(images, watch={"every": 3, "rules": {"collapse": "stop"}}, **{"model.card": {"licence": "mit"}})
    assert other != plain and other.digest() == plain.digest()


def test_the_alarm_names_rule_action_and_numbers(images: Path, tmp_path: Path) -> None:
    told: list[Alarm] = []
    spec = watched(images, 5, gap_negative={"action": "warn", "gap": 1.9, "patience": 1})
    worker(spec, tmp_path).trainer.run(5, lambda report: told.extend(report.health.alarms) is None)
    (alarm,) = told
    assert (alarm.rule, alarm.action) == ("gap_negative", "warn") and "(rule: +1.9)" in alarm.message
