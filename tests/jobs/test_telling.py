"""What an attempt's log tells of its progress."""

from __future__ import annotations

import io

from raydml.jobs.telling import BETWEEN, Telling, log_of
from raydml.progress import Progress


def test_a_line_comes_with_each_change_and_else_every_ten_seconds() -> None:
    written, now = io.StringIO(), 0.0
    telling = Telling(log_of("job_1", 2, written), lambda: now)
    telling(Progress("starting", 0, 9))
    for step in (1, 2, 3):
        telling(Progress("training", step, 9, loss=1 / step, workers=2))
    now = BETWEEN
    telling(Progress("training", 4, 9, loss=0.25, workers=2))
    telling(Progress("training", 5, 9, 0.2, {"map_at_r": 0.5}, 2, warnings=("rank 1",), events=("one worker left",)))
    lines = [line.split(" ", 1)[1] for line in written.getvalue().splitlines()]
    told = "job=job_1 attempt=2 event="
    assert lines == [
        f"{told}starting step=0 steps=9 workers=0",
        f"{told}training step=1 steps=9 workers=2 loss=1",
        f"{told}training step=4 steps=9 workers=2 loss=0.25",
        f'{told}workers what="one worker left"',
        f'{told}warning what="rank 1"',
        f"{told}training step=5 steps=9 workers=2 loss=0.2 map_at_r=0.5",
    ]


def test_what_a_line_quotes_cannot_look_like_another_line() -> None:
    written = io.StringIO()
    log_of("job_1", 1, written).error("failed", why='bad\njob=job_2 event="succeeded"')
    assert written.getvalue().count("\n") == 1
