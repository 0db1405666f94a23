"""A person before the page in Chromium, who notes every error and keeps pictures."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

PATIENCE = 600_000  # milliseconds for anything at all, on a machine that is busy


class Visitor:
    """One tab. `shots` is where pictures go."""

    def __init__(self, page: Page, url: str, shots: Path) -> None:
        self.page, self.url, self.shots = page, url, shots
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda said: self.errors.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._check(request.url))

    def open(self, address: str, heading: str) -> None:
        """Go to an address of the page, and wait for its heading."""
        self.page.goto(f"{self.url}/dashboard/#{address}")
        self.wait(self.page.get_by_role("heading", level=1, name=re.compile(heading)))

    def wait(self, thing: Locator) -> Locator:
        """Wait until it can be seen."""
        thing.first.wait_for(state="visible", timeout=PATIENCE)
        return thing

    def until(self, holds: Callable[[], Any], what: str) -> None:
        """Wait for a condition, however long a busy machine takes."""
        for _ in range(PATIENCE // 200):
            if holds():
                return
            self.page.wait_for_timeout(200)
        raise AssertionError(f"{what}: it did not come to that")

    def shot(self, name: str) -> None:
        """Keep a picture of the whole page."""
        self.shots.mkdir(parents=True, exist_ok=True)
        self.page.evaluate("scrollTo(0, 0)")  # the bar sticks to where the screen is
        self.page.screenshot(path=self.shots / f"{name}.png", full_page=True)

    def panel(self, title: str) -> Locator:
        """The part of the page under this heading."""
        return self.page.get_by_role("region", name=title, exact=True)

    def check_drawn(self, thing: Locator) -> None:
        """Something is drawn there: not one colour, nor hardly anything else than one."""
        thing.scroll_into_view_if_needed()
        self.until(lambda: _drawn(thing.screenshot()) > 0.003, "something is drawn")

    def check_fits(self) -> None:
        """Nothing is wider than the screen, and no part of the navigation is out of sight."""
        wider = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, f"{self.page.url} is {wider} pixels wider than the screen"
        hidden = self.page.locator("#nav").evaluate("element => element.scrollWidth - element.clientWidth")
        assert hidden <= 0, f"{hidden} pixels of the navigation are out of sight"

    def check_silent(self) -> None:
        """The browser had nothing to complain of."""
        assert self.errors == []

    def press(self, *keys: str) -> None:
        """Press keys, one after another."""
        for key in keys:
            self.page.keyboard.press(key)

    def tab_to(self, thing: Locator, most: int = 80) -> None:
        """Reach it by the Tab key alone; what has the focus shows that it has."""
        for _ in range(most):
            if thing.evaluate("element => element === document.activeElement"):
                outline = thing.evaluate("element => getComputedStyle(element).outlineStyle")
                assert outline != "none", "the focus can be seen"
                return
            self.press("Tab")
        raise AssertionError(f"{thing} was not reached by {most} presses of Tab")

    def _check(self, url: str) -> None:
        if not url.startswith((self.url, "blob:", "data:", "about:")):
            self.errors.append(f"asked for {url}, which is elsewhere")


def _drawn(png: bytes) -> float:
    """The share of pixels that differ from the commonest colour."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)
    _, counts = np.unique(pixels, axis=0, return_counts=True)
    return 1 - float(counts.max()) / len(pixels)
