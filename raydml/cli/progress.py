"""A run's progress in, a live bar out; where no terminal watches, one line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0


class News(Protocol):
    """How far a run or a job is: `raydml.progress.Progress` says what each part means."""

    @property
    def phase(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def loss(self) -> float | None: ...
    @property
    def metrics(self) -> dict[str, float]: ...
    @property
    def workers(self) -> int: ...
    @property
    def images_per_second(self) -> float: ...
    @property
    def seconds_left(self) -> float | None: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...
    @property
    def events(self) -> tuple[str, ...]: ...


Listener = Callable[[News], None]


@contextmanager
def progress(console: Console) -> Iterator[Listener]:
    """A function for `run.train(listen=...)` that shows what it hears on the console."""
    if not console.is_terminal:
        yield _Lines(console, time.monotonic)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, TextColumn("{task.fields[detail]}"), console=console) as bar:
        yield _Live(bar, bar.add_task("starting", total=None, detail=""))


class _Live:
    """The bar with step, loss, MAP@R, workers, images/s and time left."""

    def __init__(self, bar: Bar, task: TaskID) -> None:
        self.bar = bar
        self.task = task

    def __call__(self, news: News) -> None:
        tell(self.bar.console, news)
        self.bar.update(
            self.task, description=news.phase, completed=news.step, total=news.steps, detail="  ".join(facts(news))
        )


class _Lines:
    """One line when the phase or the last validation changes, and every ten seconds."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self.console = console
        self.clock = clock
        self.next_line = 0.0
        self.last: tuple[object, ...] = ()

    def __call__(self, news: News) -> None:
        tell(self.console, news)
        now, state = self.clock(), (news.phase, dict(news.metrics or {}))
        if state != self.last or now >= self.next_line:
            self.last, self.next_line = state, now + SECONDS_BETWEEN_LINES
            line = "  ".join([f"{news.phase} {news.step}/{news.steps}", *facts(news)])
            self.console.print(line, highlight=False, soft_wrap=True)


def tell(console: Console, news: News) -> None:
    """A line for each change of the group, each rule that broke and each save that failed."""
    for event in news.events:
        console.print(Text(event, "cyan"), soft_wrap=True)
    for warning in news.warnings:
        console.print(Text(f"warning: {warning}", "yellow"), soft_wrap=True)


def facts(news: News) -> list[str]:
    """What is known so far, in the order in which it is shown."""
    shown = []
    if news.loss is not None:
        shown.append(f"loss {news.loss:.4f}")
    if news.metrics and "map_at_r" in news.metrics:
        shown.append(f"MAP@R {news.metrics['map_at_r']:.3f}")
    shown.append(f"{news.workers} worker{'' if news.workers == 1 else 's'}")
    if news.images_per_second:
        shown.append(f"{news.images_per_second:.0f} images/s")
    if news.seconds_left is not None:
        minutes, seconds = divmod(round(news.seconds_left), 60)
        shown.append(f"{minutes}:{seconds:02d} left")
    return shown
