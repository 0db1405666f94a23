"""What a study may say of its configurations: who is worse than the best, who may be as good, who was not compared."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy.stats import t, ttest_rel

from raydml.cli.tuning import study_table
from raydml.tuning.record import StudyRecord
from raydml.tuning.result import Row, StudyResult, read_result
from raydml.tuning.significance import against_the_best, verdict
from raydml.tuning.table import write_table
from tests.unit.studies import Synthetic, drive, new_study, study_spec

LUCK = {3: 0.0, 4: 0.2, 5: -0.1, 6: 0.05, 7: -0.2}  # of a seed: the same for all configurations
CLOSE = {3: 0.004, 4: -0.006, 5: 0.003, 6: -0.002, 7: 0.004}  # of which the second's distance to the best is made
GRID = {"space": {"loss.margin": {"choice": [0.3, 0.301, 0.6]}}, "algorithm": {"kind": "grid"}, "trials": 3}


def lucky(spec: dict[str, Any], step: int) -> float:
    """0.301 is about as good as 0.3, 0.6 is worse by far less than seeds differ, but with each of them."""
    margin, seed = spec["loss"]["margin"], spec["seed"]
    own = {0.3: 0.0, 0.301: CLOSE[seed] - 0.002, 0.6: -0.03 - CLOSE[seed] / 4}[margin]
    return float(0.5 + LUCK[seed] + own - 0.1 / step)


def study(folder: Path, tune: dict[str, Any]) -> StudyResult:
    drive(new_study(folder, study_spec(GRID | tune)), Synthetic(lucky))
    StudyRecord(folder).change(state="succeeded")
    return read_result(folder)


def shown(result: StudyResult) -> str:
    stream = StringIO()
    Console(file=stream, width=220).print(study_table(result))
    return stream.getvalue()


def test_over_paired_seeds_who_is_worse_is_told_from_who_may_be_as_good(tmp_path: Path) -> None:
    result = study(tmp_path / "study", {"seeds": 5})
    assert {row.values["loss.margin"]: result.standings[row.configuration].verdict for row in result.rows} == {
        0.3: "best",
        0.301: "not significant",
        0.6: "worse",
    }
    deviation = max(row.deviation or 0 for row in result.rows)
    assert deviation > 4 * 0.03, "seeds differ by more than the configurations: only pairs can tell them apart"
    best, _, worst = result.rows
    assert best == result.best
    own = [best.by_seed[seed] for seed in sorted(LUCK)]
    half = t.ppf(0.975, 4) * (sum((x - sum(own) / 5) ** 2 for x in own) / 4) ** 0.5 / 5**0.5
    assert result.standings[best.configuration].interval == pytest.approx((best.score - half, best.score + half))
    single = [
        ttest_rel([a.by_seed[seed] for seed in LUCK], [b.by_seed[seed] for seed in LUCK]).pvalue
        for a, b in ((best, worst), (result.rows[1], worst), (best, result.rows[1]))
    ]
    assert result.standings[worst.configuration].p_value == pytest.approx(3 * min(single)), "Holm over all pairs"
    assert "1 significantly worse, 1 not distinguishable" in result.verdict and "5 seeds" in result.verdict


def test_with_one_seed_nothing_is_said_of_a_difference(tmp_path: Path) -> None:
    result = study(tmp_path / "study", {})
    assert [result.standings[row.configuration].verdict for row in result.rows] == ["best"] + ["too few seeds"] * 2
    assert all(each.interval is None and each.p_value is None for each in result.standings.values())
    assert "nothing can be said" in result.verdict and "tune.seeds: 3" in result.verdict
    assert shown(result).count("nothing can be said") == 3, "in both rows, and below"


def test_who_was_stopped_earlier_or_failed_is_not_compared() -> None:
    rows = [
        Row(0, {}, "trained", 90, 0.6, by_seed={3: 0.5, 4: 0.7}),
        Row(1, {}, "stopped", 30, 0.3, by_seed={3: 0.3, 4: 0.3}),
        Row(2, {}, "failed", 90, 0.9, by_seed={3: 0.9, 4: 0.9}),
        Row(3, {}, "trained", 90, 0.55, by_seed={3: 0.45, 4: 0.65}),
        Row(4, {}, "waiting"),
    ]
    standings = against_the_best(rows)
    assert {number: each.verdict for number, each in standings.items()} == {0: "best", 3: "worse"}
    assert "3 did not come as far" in verdict(standings, len(rows))
    assert against_the_best(rows[4:]) == {} and "no configuration was evaluated" in verdict({}, 1)
    alone = against_the_best(rows[:2])
    assert "1 did not come as far" in verdict(alone, 2) and "nothing can be said" in verdict(alone, 2)


def test_of_equal_configurations_the_one_that_wins_is_called_the_best(tmp_path: Path) -> None:
    rows = [Row(number, {}, "trained", 90, 0.5, by_seed={3: 0.4, 4: 0.6}) for number in (10, 9, 2)]
    assert [number for number, each in against_the_best(rows).items() if each.verdict == "best"] == [2]
    equal = Synthetic(lambda spec, step: 0.1 + 0.7 / 3 + 0.05 * (spec["seed"] % 3))
    drive(new_study(tmp_path / "study", study_spec({"seeds": 9, "trials": 4})), equal)
    result = read_result(tmp_path / "study")
    assert result.best is not None and result.standings[result.best.configuration].verdict == "best"


def test_table_document_and_parquet_say_the_same(tmp_path: Path) -> None:
    result = study(tmp_path / "study", {"seeds": 5})
    write_table(result, tmp_path / "results.parquet")
    written = {row["configuration"]: row for row in pq.read_table(tmp_path / "results.parquet").to_pylist()}
    summary = result.summary()
    assert summary["verdict"] == result.verdict
    for row in summary["configurations"]:
        found, columns = result.standings[row["configuration"]], written[row["configuration"]]
        assert row["verdict"] == columns["verdict"] == found.verdict
        assert row["p_value"] == columns["p_value"] == found.p_value
        assert row["interval"] == found.interval == (columns["mean_low"], columns["mean_high"])
        ends = (columns["difference_low"], columns["difference_high"])
        assert ends == (row["difference_interval"] or (None, None))
    text = shown(result)
    assert "not distinguishable, p = " in text and "worse, p = " in text and "significantly worse" in text


def test_while_a_study_runs_its_table_compares_nothing(tmp_path: Path) -> None:
    result = study(tmp_path / "study", {"seeds": 5})
    result.facts["state"] = "running"
    assert "against the best" not in shown(result)
