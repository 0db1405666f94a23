"""The process that looks at specs: kept from question to question and for the next application, ended in need."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from api import looking
from api.checking import Checker
from api.problems import Problem
from raydml.errors import DataError
from raydml.specfile import parse_spec
from tests.jobs.house import tiny_spec

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(1500)]


def checker(home: Path, seconds: float = 120.0, waiting: int = 2) -> Checker:
    return Checker(home, seconds, waiting)


def process_of(made: Checker) -> int:
    assert made._looker is not None
    return made._looker.pid


async def test_one_process_answers_all_questions_and_those_of_the_next_application(home: Path) -> None:
    first, second = checker(home), checker(home / "other")
    good, bad = parse_spec(tiny_spec(home)), parse_spec(tiny_spec(home, data={"kind": "arrays", "path": "/nowhere"}))
    assert (await first.plan(good))["batches"]
    pid = process_of(first)
    with pytest.raises(Exception, match="nowhere"):
        await first.check(bad, home)
    await first.check(good, home)
    assert process_of(first) == pid
    await first.close()
    await second.check(good, home)
    assert process_of(second) == pid
    await second.close()


def test_a_process_that_finds_other_code_than_a_new_one_would_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "_left", [])
    for changed in (False, True):
        left = looking.Looker()
        left._loaded = True
        left.leave()
        if changed:
            monkeypatch.setenv("PYTHONPATH", "/elsewhere")
        taken = looking.looker_at_hand()
        assert (taken is left) == left.alive == (not changed)
        taken.end()


async def test_a_process_that_dies_or_takes_too_long_is_a_problem_and_the_next_question_has_another(home: Path) -> None:
    good = parse_spec(tiny_spec(home))
    made = checker(home)
    await made.check(good, home)
    os.kill(process_of(made), signal.SIGSTOP)  # it says nothing any more
    made._seconds = 0.2
    stopped = process_of(made)
    with pytest.raises(Problem) as late:
        await made.check(good, home)
    assert late.value.kind == "too-large-to-check" and not Path(f"/proc/{stopped}/cwd").exists()
    made._seconds = 120.0
    asked = asyncio.create_task(made.check(good, home))
    while made._looker is None:
        await asyncio.sleep(0.01)
    os.kill(process_of(made), signal.SIGKILL)
    with pytest.raises(Problem, match="died over it"):
        await asked
    await made.check(good, home)
    await made.close()


async def test_more_questions_than_may_wait_are_refused_and_one_whose_asker_left_holds_nobody_up(home: Path) -> None:
    made = checker(home, waiting=2)
    good = parse_spec(tiny_spec(home))
    await made.check(good, home)
    os.kill(process_of(made), signal.SIGSTOP)  # it says nothing any more
    asked = [asyncio.create_task(made.check(good, home)) for _ in range(2)]
    await asyncio.sleep(0.1)
    with pytest.raises(Problem) as refused:
        await made.check(good, home)
    assert refused.value.status_code == 429
    asked[0].cancel()
    await asked[1]
    assert asked[0].cancelled()
    with pytest.raises(DataError, match=r"batch\.classes = 64"):
        await made.check(parse_spec(tiny_spec(home, batch={"classes": 64})), home)
    await made.close()
