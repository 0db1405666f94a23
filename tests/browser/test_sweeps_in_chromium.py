"""Sweeps as a person looks at them: real trials on a real Ray; pictures are kept in build/browser."""

from __future__ import annotations

import pytest
import yaml

from tests.browser.conftest import EVERYWHERE, a_study
from tests.browser.visitor import Visitor
from tests.jobs.house import House

pytestmark = [pytest.mark.browser, pytest.mark.ray, pytest.mark.timeout(3600)]


@EVERYWHERE
def test_a_leaderboard_stands_below_its_lines_and_marks_what_may_be_chance(
    visitor: Visitor, house: House, sweep: str
) -> None:
    page = visitor.page
    found = house.ask("GET", f"/v1/sweeps/{sweep}/trials").json()
    visitor.open("/sweeps", "Sweeps")
    visitor.wait(page.get_by_role("link", name="searched", exact=True))
    visitor.check_fits()
    visitor.shot("sweeps")
    page.get_by_role("link", name="searched", exact=True).click()
    visitor.wait(page.get_by_role("heading", level=1, name="searched"))
    board = visitor.panel("Leaderboard")
    shown = [row.get_by_role("cell").all_inner_texts() for row in board.locator("tbody tr").all()]
    assert [cells[0].split("#")[-1] for cells in shown] == [str(trial["configuration"]) for trial in found["items"]]
    for cells, trial in zip(shown, found["items"], strict=True):
        assert f"{trial['score']:.4f}" in " ".join(cells)
        chance = trial["verdict"] in ("not significant", "too few seeds")
        assert ("may be chance" in " ".join(cells)) == chance, trial
    visitor.wait(board.get_by_text(found["verdict"][1:]))
    visitor.check_drawn(visitor.panel("Fields and scores").locator("canvas"))
    visitor.check_fits()
    visitor.shot("sweep")
    visitor.check_silent()


def test_the_keyboard_keeps_a_range_of_scores_and_leads_to_the_winner(
    visitor: Visitor, house: House, sweep: str
) -> None:
    page = visitor.page
    found = house.ask("GET", f"/v1/sweeps/{sweep}/trials").json()
    scores = [trial["score"] for trial in found["items"]]
    middle = (min(scores) + max(scores)) / 2
    visitor.open(f"/sweeps/{sweep}", "searched")
    rows = visitor.panel("Leaderboard").locator("tbody tr")
    visitor.until(lambda: rows.count() == len(scores), "all configurations are listed")
    canvas = visitor.panel("Fields and scores").locator("canvas")
    visitor.tab_to(canvas)
    visitor.press(*["ArrowRight"] * 9, *["ArrowUp"] * 10)  # the last axis; its lower half is left out
    visitor.until(lambda: rows.count() == sum(score >= middle - 1e-9 for score in scores), "a range is kept")
    assert rows.count() < len(scores)
    visitor.shot("sweep-range")
    visitor.press("Escape")
    visitor.until(lambda: rows.count() == len(scores), "the range was let go")
    visitor.tab_to(rows.nth(1).get_by_role("button"))
    visitor.check_drawn(canvas)
    page.get_by_role("link", name="The winner's run").click()
    visitor.wait(visitor.panel("Worst queries").locator(".tile"))
    page.get_by_role("link", name="the sweep").click()
    visitor.wait(page.get_by_role("link", name="New job of its spec"))
    page.get_by_role("link", name="New job of its spec").click()
    visitor.wait(page.get_by_role("heading", level=1, name="New job"))
    spec = yaml.safe_load(page.get_by_label("Spec, YAML").input_value())
    assert not spec.get("tune") and spec["loss"]["alpha"] == found["items"][0]["values"]["loss.alpha"]
    visitor.check_silent()


def test_a_sweep_is_submitted_paused_resumed_and_cancelled_from_the_page(visitor: Visitor, house: House) -> None:
    page = visitor.page
    visitor.open("/submit?of=sweep", "New sweep")
    page.get_by_label("Spec, YAML").fill(yaml.safe_dump(a_study(house.home, "long", trials=60, seeds=1)))
    page.get_by_role("button", name="Check").click()
    visitor.wait(page.get_by_text("This can run"))
    visitor.wait(page.get_by_text("one process, 0.5 CPUs"))
    visitor.shot("submit-sweep")
    page.get_by_role("button", name="Submit").click()
    visitor.wait(page.get_by_role("heading", level=1, name="long"))
    sweep = page.url.rpartition("/")[2]
    rows = visitor.panel("Leaderboard").locator("tbody tr")
    visitor.wait(rows.filter(has_text="trained"))
    visitor.wait(visitor.panel("Events").get_by_text("trained at step 40"))
    visitor.shot("sweep-live")
    status = page.get_by_role("status")
    page.get_by_role("button", name="Pause").click()
    visitor.wait(status.get_by_text("paused", exact=True))
    page.get_by_role("button", name="Resume").click()
    visitor.wait(status.get_by_text("running", exact=True))
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the sweep").click()
    visitor.wait(status.get_by_text("cancelled", exact=True))
    assert house.ask("GET", f"/v1/sweeps/{sweep}").json()["state"] == "cancelled"
    visitor.check_silent()
