"""Who holds the others up, and when slices are dealt anew: by speeds that hold, never by a moment."""

from __future__ import annotations

import itertools

import pytest

from raydml.membership.pace import GAIN, REST, Pace, Redeal, Straggler

HOLD = 4.0


def told(speeds: list[dict[str, float]]) -> list[tuple[int, Straggler]]:
    """Who is named at which second, of speeds second by second."""
    pace = Pace(HOLD)
    return [(now, slow) for now, known in enumerate(speeds) for slow in pace.stragglers(known, float(now))]


def test_a_member_at_half_the_others_speed_is_named_when_that_has_held() -> None:
    well, slow = {"a": 10.0, "b": 11.0, "c": 9.0}, {"a": 10.0, "b": 11.0, "c": 4.0}
    assert told([well] * 20) == []
    assert told([well] * 3 + [slow] * 20) == [(3 + HOLD, Straggler("c", 4.0, 10.5))]
    assert told([slow, slow, slow, well] * 9) == [], "no moment counts"


def test_it_is_named_again_only_after_it_was_well() -> None:
    slow, better, well = ({"a": 10.0, "b": speed} for speed in (4.0, 6.0, 8.0))
    assert [now for now, _ in told([slow] * 6 + [better] * 6 + [slow] * 12)] == [4]
    assert [now for now, _ in told([slow] * 6 + [well] + [slow] * 12)] == [4, 11]


def test_unknown_speeds_and_a_lone_member_name_nobody() -> None:
    assert told([{"a": 0.0, "b": 10.0}] * 20) == told([{"a": 1.0}] * 20) == []
    assert [slow.member for _, slow in told([{"a": 0.0, "b": 10.0, "c": 1.0}] * 20)] == ["c"]


def test_slices_are_dealt_anew_when_that_pays_and_has_paid_for_long_enough() -> None:
    pace = Pace(HOLD)
    answers = [pace.redeal((4, 4), (10.0, 2.0), float(now)) for now in range(6)]
    assert answers[:4] == [None] * 4
    assert answers[4] == Redeal((7, 1), pytest.approx(2.0), pytest.approx(0.7))  # type: ignore[arg-type]
    assert answers[5] is None, "then it rests"


@pytest.mark.parametrize("speeds", [(10.0, 10.0), (10.0, 8.0), (10.0, 0.0)])
def test_slices_stay_where_little_would_be_won_or_a_speed_is_unknown(speeds: tuple[float, float]) -> None:
    pace = Pace(HOLD)
    assert {pace.redeal((4, 4), speeds, float(now)) for now in range(20)} == {None}


def test_speeds_that_swing_deal_slices_no_oftener_than_the_rest_allows() -> None:
    pace, sizes = Pace(HOLD), (4, 4)
    dealt = []
    for now in range(400):
        speeds = (10.0, 2.0) if now // 7 % 2 else (2.0, 10.0)
        decided = pace.redeal(sizes, speeds, float(now))
        if decided is not None:
            sizes = decided.sizes  # type: ignore[assignment]
            pace.begin()
            dealt.append(now)
            assert decided.now > GAIN * decided.then
    assert len(dealt) > 3
    assert all(later - earlier >= REST * HOLD for earlier, later in itertools.pairwise(dealt))
