"""A real server with a Ray of its own and two runs to look at, and Chromium."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.browser.chromium import program, say
from tests.browser.visitor import Visitor
from tests.jobs.house import House
from tests.unit.test_texts import NGRAMS, sentences

SHOTS = Path(__file__).parents[2] / "build" / "browser"
EVERYWHERE = pytest.mark.parametrize("visitor", ["light", "dark", "phone"], indirect=True)
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


def checks(home: Path) -> Path:
    """Checked pictures of 20 classes, eight of each, where the server reads data; made once."""
    path = home / "data" / "checks.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(0)
        labels = np.repeat(np.arange(20), 8)
        patterns = np.kron(generator.random((20, 4, 4)), np.ones((4, 4)))[labels]
        inputs = patterns * 180 + generator.random((160, 16, 16)) * 75
        np.savez(path, inputs=inputs.astype(np.uint8), labels=labels)
    return path


def a_spec(home: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A job of a few seconds."""
    return {
        "name": name,
        "seed": 3,
        "data": {"kind": "arrays", "path": str(checks(home)), "image_size": 16, "grayscale": True},
        "batch": {"classes": 8, "samples": 4, "virtual_workers": 8},
        "model": {"backbone": {"kind": "mlp", "hidden": [32]}, "dimension": 8},
        "loss": {"kind": "multi_similarity"},
        "parallel": {"workers": {"min": 1, "max": 2, "cpus": 0.5}},
        "train": {"steps": 120, "evaluate_every": 60, "checkpoint_every": 10},
        "watch": {"every": 10},
    } | changes


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
        a_spec(house.home, "first", train=short, index=index),
        a_spec(house.home, "second", index=index | {"collection": "second"}),
    )
    jobs = [house.submit(spec, labels={"team": "search"}) for spec in specs]
    for job in jobs:
        house.wait(job, lambda: False, "ends")
        assert house.states(job)[-1] == "succeeded"
    return Trained(*jobs)


@pytest.fixture(scope="session")
def phrases(house: House) -> str:
    """A collection of texts and the model that embedded them."""
    folder = house.home / "data"
    folder.mkdir(parents=True, exist_ok=True)
    path = sentences(folder)
    spec = {
        "name": "phrases",
        "data": {"kind": "manifest", "path": str(path), "text": NGRAMS},
        "batch": {"classes": 2, "samples": 4, "virtual_workers": 2},
        "model": {"backbone": {"kind": "ngram_bag", "buckets": 64, "width": 16}, "dimension": 8},
        "loss": {"kind": "multi_similarity"},
        "parallel": {"workers": {"min": 1, "max": 2, "cpus": 0.5}},
        "train": {"steps": 5, "evaluate_every": 0},
        "index": {"collection": "phrases", "split": "all"},
    }
    job = house.submit(spec)
    house.wait(job, lambda: False, "ends")
    assert house.states(job)[-1] == "succeeded", house.followed[job][-1]
    return "phrases"


def a_study(home: Path, name: str, **tune: Any) -> dict[str, Any]:
    """A sweep over a loss and a rate of learning, whose trials take a second."""
    space = {"loss.alpha": {"uniform": [1, 4]}, "train.optimizer.lr": {"loguniform": [1e-5, 0.03]}}
    train = {"steps": 40, "evaluate_every": 10, "checkpoint_every": 10, "optimizer": {"kind": "adamw", "lr": 0.001}}
    workers = {"workers": {"min": 1, "max": 2, "cpus": 0.5}}
    index = {"collection": name, "split": "all"}
    return a_spec(home, name, train=train, parallel=workers, index=index, tune={"space": space} | tune)


@pytest.fixture(scope="session")
def sweep(house: House) -> str:
    """The id of a sweep that has ended: every configuration took all steps, with three seeds."""
    spec = a_study(house.home, "searched", trials=5, seeds=3)
    answer = house.ask("POST", "/v1/sweeps", json={"spec": spec, "labels": {"team": "search"}})
    assert answer.status_code == 201, answer.text
    name = str(answer.json()["id"])
    house.followed[name] = []
    house.wait(name, lambda: False, "ends")
    assert house.states(name)[-1] == "succeeded", house.followed[name][-1]
    return name


@pytest.fixture
def visitor(chromium: Any, house: House, request: pytest.FixtureRequest) -> Iterator[Visitor]:
    """Somebody with a wide screen; parametrized indirectly by `phone` or `dark`, with another."""
    kind = getattr(request, "param", "light")
    context = chromium.new_context(
        viewport=PHONE if kind == "phone" else WIDE,
        color_scheme="dark" if kind == "dark" else "light",
        device_scale_factor=2 if kind == "phone" else 1,
        has_touch=kind == "phone",
        is_mobile=kind == "phone",
    )
    yield Visitor(context.new_page(), house.url, SHOTS / kind)
    context.close()


def kill(pid: int) -> None:
    """At once, as a machine that fails."""
    os.kill(pid, signal.SIGKILL)
