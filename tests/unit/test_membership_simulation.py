"""The whole protocol under simulated faults: the real one breaks nothing, and each broken variant is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raydml.membership.simulation.faults import FAULTS, MOMENTS, strike
from raydml.membership.simulation.run import Parts, Run
from raydml.membership.simulation.sharded import CELLS, SHARDED
from raydml.membership.simulator import DEADLINE, simulate, simulate_many
from tests.unit.membership_variants import BROKEN, ChangesAtOnce

NEVER_WITH_PARTS = {"kill at a moment", "kill at transfer"}

# A variant of the protocol -> the first seed at which the simulator finds it broken. Seven are mistakes that it once
# had, the last six are of states in parts: the sentences stand at the variants.
FOUND_AT: dict[str, int] = {
    "evicts the slow": 29,
    "commits without vote": 4,
    "nobody rolls forward": 25,
    "takes the fenced back": 4,
    "commits without lease": 147,
    "reuses the epoch": 2,
    "swaps in part": 104,
    "writes afterwards": 0,
    "lets two rule": 4,
    "checks the ledger only to write": 4,
    "checkpoints too early": 0,
    "goes back at once": 274,
    "keeps discarded gradients": 36,
    "counts leases from the answer": 509,
    "forgets old members": 382,
    "waits for more than its size": 386,
    "finishes for another": 624,
    "evicts after its sleep": 379,
    "strands the drained": 116943,
    "forgets the silent": 77515,
    "keeps its parts": 0,
    "publishes without lease": 98,
    "lets checkpoints appear behind it": 1870,
    "saves alone": 0,
    "cuts a copy": 2,
    "leaves half a copy waiting": 20,
}


@pytest.mark.timeout(900)
def test_twenty_thousand_schedules_break_no_invariant_and_every_fault_occurs() -> None:
    total = simulate_many(0, 20_000)
    assert total.broken == []
    assert total.schedules == 20_000
    assert total.durable_commits <= total.live_commits
    expected = {*FAULTS, *(f"kill at {moment}" for moment in MOMENTS)} - {"kill at a moment"}
    assert set(total.faults) == expected
    assert min(total.faults.values()) > 100
    assert total.restarts > 1000
    assert total.lost_commits > 1000


@pytest.mark.timeout(900)
def test_five_thousand_schedules_of_states_in_parts_break_no_invariant() -> None:
    total = simulate_many(0, 5_000, SHARDED)
    assert total.broken == []
    assert set(total.faults) == {*FAULTS, *(f"kill at {moment}" for moment in MOMENTS)} - NEVER_WITH_PARTS
    assert min(total.faults.values()) > 50
    assert total.lost_commits > 1000 and total.restarts > 5000 and total.deals > 50


@pytest.mark.timeout(900)
def test_three_thousand_schedules_of_two_members_for_each_copy_break_no_invariant() -> None:
    total = simulate_many(0, 3_000, CELLS)
    assert total.broken == []
    assert set(total.faults) == {*FAULTS, *(f"kill at {moment}" for moment in MOMENTS)} - NEVER_WITH_PARTS
    assert total.lost_commits > 500 and total.restarts > 3000


@pytest.mark.timeout(900)
def test_three_thousand_schedules_of_slices_dealt_by_speed_break_no_invariant() -> None:
    total = simulate_many(0, 3_000, Parts(balance="measured"))
    assert total.broken == [] and total.deals > 30


def planned_changes(seed: int, parts: Parts) -> Run:
    """Workers only come, are asked to leave, and resized, over a good network."""
    run = Run(seed, parts)
    run.loss = run.duplication = 0.0
    for kind in run.random.choices(("join", "drain", "resize"), k=3):
        run.after(0.2 + 4.0 * run.random.random(), None, strike, run, kind)
    run.run(DEADLINE)
    assert run.over
    return run


def test_planned_changes_of_states_in_parts_lose_no_step_and_would_without_their_checkpoint() -> None:
    runs = [planned_changes(seed, SHARDED) for seed in range(300)]
    assert sum(run.oracle.lost_live for run in runs) == 0
    assert sum(len(run.oracle.views) for run in runs) > 500
    without = replace(SHARDED, worker=ChangesAtOnce)
    assert any(planned_changes(seed, without).oracle.lost_live for seed in range(5))


def test_every_broken_variant_has_a_seed() -> None:
    assert FOUND_AT.keys() == BROKEN.keys()


@pytest.mark.parametrize("name", BROKEN)
def test_the_simulator_finds_the_variant_that(name: str) -> None:
    whole = Parts() if BROKEN[name].state == "replicated" else CELLS if BROKEN[name].unit > 1 else SHARDED
    simulate(FOUND_AT[name], whole)
    with pytest.raises(AssertionError):
        simulate(FOUND_AT[name], BROKEN[name])


def test_a_seed_always_gives_the_same_run() -> None:
    for seed in range(50):
        one, other = simulate(seed), simulate(seed)
        assert (one.now, one.events, one.oracle.views) == (other.now, other.events, other.oracle.views)


def test_a_run_without_faults_has_one_group_and_commits_each_step_once() -> None:
    for seed in range(100):
        run = Run(seed, Parts())
        run.loss = 0.0
        run.run(DEADLINE)
        assert run.over
        assert list(run.oracle.views) == [1]
        assert run.oracle.acknowledged == run.oracle.durable[run.steps] == "1." * run.steps
        assert run.oracle.lost_live == 0
