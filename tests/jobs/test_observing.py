"""What the supervisor reckons with: the fewest and the most workers of a job, and of a sweep trials at once."""

from __future__ import annotations

import pytest

from raydml.jobs.observing import _limits
from raydml.jobs.tables import JobRow


@pytest.mark.parametrize(
    ("kind", "begun", "granted", "expected"),
    [
        ("sweep", True, 3, (3, 3)),  # an attempt trains as many at once as it was granted when it began
        ("sweep", False, 3, (1, 6)),  # the next one may be granted any other number
        ("sweep", True, None, (1, 6)),
        ("job", True, 3, (1, 6)),  # the workers of a job change while it trains
        ("job", False, None, (1, 6)),
    ],
)
def test_a_sweep_keeps_what_it_was_granted_until_its_attempt_ends(
    kind: str, begun: bool, granted: int | None, expected: tuple[int, int]
) -> None:
    row = JobRow(kind=kind, workers_min=1, workers_max=6, granted=granted)
    assert _limits(row, begun) == expected
