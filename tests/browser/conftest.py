"""A real server with a Ray of its own and two runs to look at, and Chromium."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import program, say
from tests.browser.visitor import Visitor
from tests.jobs.house import House, tiny_spec

SHOTS = Path(__file__).parents[2] / "build" / "browser"
WIDE, PHONE = {"width": 1360, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser; without one, or without Playwright, the tests are skipped, loudly."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'raydml[browser]'")
    path = program()
    if path is None:
        reason = "CHROMIUM IS NOT INSTALLED, and this may not install it (root, apt-get): the page was not looked at"
        say(reason)
        pytest.skip(reason)
    with playwright.sync_playwright() as started:
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = started.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()


@dataclass(frozen=True)
class Trained:
    """Two jobs that have succeeded, whose collections hold every item."""

    first: str
    second: str


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    """A server with a short path: Ray's sockets are named after it."""
    with (
        tempfile.TemporaryDirectory(prefix="raydml-browser-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        House(Path(folder)) as house,
    ):
        yield house


@pytest.fixture(scope="session")
def trained(house: House) -> Trained:
    """One that learns well and one that has hardly begun, on the same data."""
    index = {"collection": "first", "split": "all"}
    short = {"steps": 2, "evaluate_every": 1, "checkpoint_every": 2}
    specs = (
        tiny_spec(house.home, "first", train=short, index=index),
        tiny_spec(house.home, "second", index=index | {"collection": "second"}),
    )
    jobs = [house.submit(spec, labels={"team": "search"}) for spec in specs]
    for job in jobs:
        house.wait(job, lambda: False, "ends")
        assert house.states(job)[-1] == "succeeded"
    return Trained(*jobs)


@pytest.fixture
def visitor(chromium: Any, house: House, request: pytest.FixtureRequest) -> Iterator[Visitor]:
    """Somebody with a wide screen; parametrized indirectly by `phone` or `dark`, with another."""
    kind = getattr(request, "param", "light")
    context = chromium.new_context(
        viewport=PHONE if kind == "phone" else WIDE,
        color_scheme="dark" if kind == "dark" else "light",
        device_scale_factor=2 if kind == "phone" else 1,
        has_touch=kind == "phone",
    )
    yield Visitor(context.new_page(), house.url, SHOTS / kind)
    context.close()


def kill(pid: int) -> None:
    """At once, as a machine that fails."""
    os.kill(pid, signal.SIGKILL)
