"""Runs that were really trained, compared: numbers against a loop over their files, and every refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import raydml
from raydml import run
from raydml.cli import app
from raydml.comparison import Comparison
from raydml.errors import DataError, RaydmlError, RunError, SpecError
from raydml.evaluation.results import path_of, read_results, write_results
from raydml.files import write_json
from raydml.models import load_model
from raydml.parallel import Group
from raydml.training.record import RunRecord
from raydml.training.worker import Job, run_worker
from tests.distributed.harness import small_spec, write_images

pytestmark = pytest.mark.timeout(120)
SHORT = {"steps": 4, "evaluate_every": 0, "checkpoint_every": 100}
LONG = {"steps": 40, "evaluate_every": 0, "checkpoint_every": 100}


def here(job: Job, record: RunRecord, *given: Any) -> None:
    """The one worker runs in this process, without Ray; everything before and after it is the run's own."""
    group = Group(0, 1, job.spec.batch.virtual_workers)
    record.change(attempt=run_worker(job, group, torch.device("cpu")))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with runs: before-1 to -3 and after-1 to -3 by seed, one with another distance, one of other data."""
    home = tmp_path_factory.mktemp("home")
    images = write_images(tmp_path_factory.mktemp("data"), classes=40)
    (other := tmp_path_factory.mktemp("other")).mkdir(exist_ok=True)
    others = write_images(other, classes=40, seed=1)
    specs = {f"before-{seed}": small_spec(images, seed=seed, train=SHORT) for seed in (1, 2, 3)}
    specs |= {f"after-{seed}": small_spec(images, seed=seed, train=LONG) for seed in (1, 2, 3)}
    specs["far"] = small_spec(images, train=SHORT, evaluate={"baseline": False, "metric": "manhattan"})
    specs["elsewhere"] = small_spec(others, train=SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_train_on_ray", here)
        for name, spec in specs.items():
            run.train(spec.model_copy(update={"name": name}), home=home)
    yield home
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def runs(shelf: Path, home: Path) -> Path:
    """A copy of them that a test may damage, as this test's home."""
    shutil.copytree(shelf, home)
    return home / "runs"


def names(kind: str) -> list[str]:
    return [f"{kind}-{seed}" for seed in (1, 2, 3)]


def test_two_runs_are_compared_query_by_query(runs: Path) -> None:
    found = raydml.compare("before-1", runs / "after-1", seed=4, repeats=200)
    old, new = (read_results(runs / name, "cosine") for name in ("before-1", "after-1"))
    assert found.queries == 48 and found.gallery == 48 and found.chance == "queries"
    assert old.ids == new.ids and len(old.ids) == 48
    again, gained = np.random.default_rng(4), []
    for _ in range(200):
        rows = again.integers(0, 48, 48)
        gained.append(np.mean([new.values["map_at_r"][row] - old.values["map_at_r"][row] for row in rows]))
    row = found.metrics["map_at_r"]
    assert (row.low, row.high) == pytest.approx(np.quantile(gained, [0.025, 0.975]), abs=1e-12)
    for name, one in found.metrics.items():
        facts = [RunRecord(runs / run).read()["metrics"][name] for run in ("before-1", "after-1")]
        assert [one.before, one.after] == pytest.approx(facts)
    assert found == raydml.compare("before-1", "after-1", seed=4, repeats=200)


def test_queries_that_got_fixed_and_that_broke_are_listed_by_their_change(runs: Path) -> None:
    found = raydml.compare("before-1", "after-1", shown=1000)
    old, new = (read_results(runs / name, "cosine") for name in ("before-1", "after-1"))
    for changed, number, first in ((found.fixed, found.num_fixed, 0), (found.broken, found.num_broken, 1)):
        wanted = {
            old.ids[row]
            for row in range(48)
            if (old.values["precision_at_1"][row], new.values["precision_at_1"][row]) == (first, 1 - first)
        }
        assert {one.id for one in changed} == wanted and len(changed) == number > 0
        sizes = [abs(one.after["map_at_r"] - one.before["map_at_r"]) for one in changed]
        assert sizes == sorted(sizes, reverse=True)
        for one in changed:
            row = old.ids.index(one.id)
            assert one.label == old.labels[row] and one.before["map_at_r"] == old.values["map_at_r"][row]
            assert one.after["map_at_r"] == new.values["map_at_r"][row]
    few = raydml.compare("before-1", "after-1", shown=1)
    assert few.fixed == found.fixed[:1] and few.num_fixed == found.num_fixed


def test_the_worst_queries_keep_their_neighbours(runs: Path) -> None:
    found = read_results(runs / "before-1", "cosine")
    model = load_model(runs / "before-1" / "model")
    images = np.load(_data_of(runs / "before-1"))
    chosen = np.flatnonzero(images["splits"] == "test")
    rows = model.embed(images["inputs"][chosen])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similar = rows @ rows.T - 2 * np.eye(len(rows))
    assert len(found.worst) == 48
    for query, neighbours in found.worst.items():
        wanted = np.argsort(-similar[query], kind="stable")[:10]
        assert [one.id for one in neighbours] == [found.ids[row] for row in wanted]
        assert [one.score for one in neighbours] == pytest.approx(similar[query][wanted].tolist(), abs=1e-5)
        right = neighbours[0].label == found.labels[query]
        assert right == (found.values["precision_at_1"][query] == 1)


def _data_of(folder: Path) -> str:
    path: str = yaml.safe_load((folder / "spec.yaml").read_text())["data"]["path"]
    return path


def test_several_seeds_are_paired_by_seed_in_any_order(runs: Path) -> None:
    found = raydml.compare(names("before"), names("after")[::-1])
    assert found.chance == "pairs of seeds and queries" and found.notes == ()
    one = found.metrics["map_at_r"]
    means = [
        [RunRecord(runs / name).read()["metrics"]["map_at_r"] for name in names(kind)] for kind in ("before", "after")
    ]
    assert [one.before, one.after] == pytest.approx(np.mean(means, axis=1))
    assert one.low < one.gained < one.high
    swapped = raydml.compare(names("before")[::-1], names("after"))
    assert swapped.metrics == found.metrics and swapped.num_fixed == found.num_fixed
    apart = raydml.compare(names("before"), names("after")[:2])
    assert apart.chance == "seeds and queries"
    classes = raydml.compare(names("before"), names("after"), over="classes")
    assert classes.chance == "pairs of seeds and classes" and classes.metrics != found.metrics


def test_one_run_each_says_what_is_not_in_the_interval(runs: Path) -> None:
    assert "one run each, with equal seeds" in raydml.compare("before-1", "after-1").notes[0]
    assert "one run each, with seeds 1 and 2" in raydml.compare("before-1", "after-2").notes[0]


def test_runs_of_another_distance_are_refused_until_both_are_measured_alike(runs: Path) -> None:
    with pytest.raises(SpecError, match=r"distance.*cosine and manhattan.*raydml evaluate far --metric cosine"):
        raydml.compare("before-1", "far")
    with pytest.raises(RunError, match="raydml evaluate far --metric cosine"):
        raydml.compare("before-1", "far", metric="cosine")
    measured = raydml.evaluate("far", metric="cosine")
    found = raydml.compare("before-1", "far", metric="cosine")
    assert found.metrics["map_at_r"].after == pytest.approx(measured["metrics"]["map_at_r"])
    assert RunRecord(runs / "far").read()["metrics"]["map_at_r"] != measured["metrics"]["map_at_r"]
    assert measured["baseline"] == {}
    again = raydml.evaluate("far")["metrics"]
    assert again == pytest.approx(RunRecord(runs / "far").read()["metrics"])


def test_an_unknown_distance_is_refused_before_anything_is_measured(runs: Path) -> None:
    with pytest.raises(SpecError, match="metric 'cosin' is unknown"):
        raydml.evaluate("far", metric="cosin")  # type: ignore[arg-type]


def test_runs_of_other_queries_are_refused(runs: Path) -> None:
    with pytest.raises(SpecError, match=r"before-1 and elsewhere cannot be compared.*queries.*same test data"):
        raydml.compare("before-1", "elsewhere")


@pytest.mark.parametrize("field", ["protocol", "split", "gallery"])
def test_another_protocol_split_or_gallery_is_refused(runs: Path, field: str) -> None:
    results = read_results(runs / "after-1", "cosine")
    other = replace(results, asked=replace(results.asked, **{field: "other"}))
    write_results(runs / "after-1", other, model=results.asked.model)
    with pytest.raises(SpecError, match=f"{field}.*and other"):
        raydml.compare("before-1", "after-1")


def _unmeasured(runs: Path) -> None:
    write_json(runs / "after-1" / "run.json", {"state": "failed"})


def _without_file(runs: Path) -> None:
    path_of(runs / "after-1", "cosine").unlink()


def _other_model(runs: Path) -> None:
    facts = RunRecord(runs / "after-1").read()
    write_json(runs / "after-1" / "run.json", facts | {"sha256": "0" * 64})


def _damaged(runs: Path) -> None:
    path_of(runs / "after-1", "cosine").write_bytes(b"PAR1")


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (_unmeasured, RunError, "after-1 is failed and was not measured"),
        (_without_file, RunError, "raydml evaluate after-1 --metric cosine"),
        (_other_model, RunError, "of another model"),
        (_damaged, DataError, "cannot be read"),
    ],
)
def test_a_run_without_results_is_refused_with_the_way_out(
    runs: Path, damage: Callable[[Path], None], kind: type[RaydmlError], words: str
) -> None:
    damage(runs)
    with pytest.raises(kind, match=words):
        raydml.compare("before-1", "after-1")


def test_a_run_that_was_measured_before_results_were_kept_is_measured_again(runs: Path) -> None:
    wanted = raydml.compare("before-1", "after-1")
    _without_file(runs)
    raydml.evaluate("after-1")
    assert raydml.compare("before-1", "after-1").metrics["map_at_r"].gained == pytest.approx(
        wanted.metrics["map_at_r"].gained
    )


@pytest.mark.parametrize(
    ("before", "after", "options", "words"),
    [
        ("before-1", "before-1", {}, "both sides"),
        ("before-1", [], {}, "without a run"),
        (["before-1", "after-2"], ["after-1", "after-3"], {}, "more than their seeds"),
        (["before-1", "before-1"], names("after"), {}, "comes twice"),
        (names("before"), "after-1", {}, "3 seeds before and 1 after"),
        ("before-1", "after-1", {"confidence": 1.0}, "confidence"),
        ("before-1", "after-1", {"repeats": 5}, "repeats"),
        ("before-1", "after-1", {"over": "galleries"}, "over"),
        ("before-1", "after-1", {"alpha": 5}, "alpha"),
        ("before-1", "nobody", {}, "no run nobody"),
    ],
)
def test_a_question_without_an_answer_is_refused(
    runs: Path, before: Any, after: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RaydmlError, match=words):
        raydml.compare(before, after, **options)


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["compare", *arguments])


def test_the_command_shows_a_table_and_one_document(runs: Path) -> None:
    shown = call("before-1", "after-1", "--shown", "3")
    assert shown.exit_code == 0 and "MAP@R" in shown.stdout and "fixed: first neighbour now right" in shown.stdout
    document = json.loads(call("before-1,before-2,before-3", "after-1,after-2,after-3", "--json").stdout)
    assert document["before"] == names("before") and document["how"]["repeats"] == 1000
    found: Comparison = raydml.compare(names("before"), names("after"))
    assert document == json.loads(json.dumps(found.to_dict()))


def test_the_command_exits_with_2_where_runs_cannot_be_compared_and_1_where_there_is_none(runs: Path) -> None:
    assert call("before-1", "elsewhere").exit_code == 2
    assert call("before-1", "nobody", "--json").exit_code == 1
    assert call("before-1", "after-1", "--metric", "cosin").exit_code == 2
