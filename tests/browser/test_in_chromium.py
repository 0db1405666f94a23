"""The page as a person uses it: real Chromium, a real server, real training; pictures are kept in build/browser."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from raydml.jobs import marked
from raydml.jobs.database import Database
from raydml.jobs.keys import create_key
from tests.api.conftest import server
from tests.browser.conftest import EVERYWHERE, SHOTS, WIDE, Trained, a_spec, checks, kill
from tests.browser.visitor import Visitor
from tests.jobs.house import House

pytestmark = [pytest.mark.browser, pytest.mark.ray, pytest.mark.timeout(3600)]
_DROP = """([zone, content, type]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "query.png", { type }));
  for (const name of ["dragover", "drop"]) {
    zone.dispatchEvent(new DragEvent(name, { dataTransfer: data, bubbles: true, cancelable: true }));
  }
}"""


def extra_workers(house: House) -> list[int]:
    """Processes of workers beyond the fewest."""
    return [each.pid for each in marked.bearing(house.ray.mark) if each.arguments[0].startswith("ray::ExtraProcess")]


def workers_now(house: House, job: str) -> int:
    return int(house.ask("GET", f"/v1/jobs/{job}/workers").json()["now"])


def test_a_spec_is_checked_submitted_and_watched_while_a_worker_dies_and_another_comes(
    visitor: Visitor, house: House
) -> None:
    page = visitor.page
    spec = a_spec(house.home, "watched", train={"steps": 5000, "evaluate_every": 500, "checkpoint_every": 50})
    visitor.open("/submit", "New job")
    area = page.get_by_label("Spec, YAML")
    area.fill(yaml.safe_dump(spec | {"loss": {"kind": "multi_similarty"}}))
    page.get_by_role("button", name="Check").click()
    visitor.wait(page.get_by_text("did you mean multi_similarity"))
    visitor.shot("submit-refused")
    area.fill(yaml.safe_dump(spec))
    page.get_by_role("button", name="Check").click()
    visitor.wait(page.get_by_text("This can run"))
    visitor.shot("submit-planned")
    visitor.errors.clear()  # Chromium reports the refusal, 422, as an error of its own
    page.get_by_label("Labels").fill("team:search")
    page.get_by_role("button", name="Submit").click()
    visitor.wait(page.get_by_role("heading", level=1, name="watched"))
    job = page.url.rpartition("/")[2]

    visitor.until(lambda: workers_now(house, job) == 2 and extra_workers(house), "two workers train")
    kill(extra_workers(house)[0])
    changes = visitor.panel("Changes of the group")
    visitor.wait(changes.get_by_role("cell", name=re.compile("^(death|lost)$")))
    visitor.until(lambda: workers_now(house, job) == 2, "another worker came")
    visitor.wait(visitor.panel("Events").get_by_text("1 → 2 workers"))
    for title in ("Loss", "Workers", "Throughput", "Gradient norm"):
        visitor.check_drawn(visitor.panel(title).locator(".chart"))
    visitor.shot("live")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the job").click()
    visitor.wait(page.get_by_role("status").get_by_text("cancelled"))
    assert house.ask("GET", f"/v1/jobs/{job}").json()["state"] == "cancelled"
    visitor.check_silent()


@EVERYWHERE
def test_the_worst_queries_stand_first_with_pictures_of_their_neighbours(visitor: Visitor, trained: Trained) -> None:
    page = visitor.page
    visitor.open(f"/jobs/{trained.first}/evaluation", "first")
    worst = visitor.panel("Worst queries")
    visitor.wait(worst.locator(".tile.wrong"))
    values = [float(text) for text in worst.locator(".asked dd").all_inner_texts()]
    assert values == sorted(values) and len(values) > 3
    visitor.check_drawn(worst.locator(".tile canvas").first)
    visitor.check_drawn(visitor.panel("Scores of pairs").locator("canvas"))
    visitor.check_drawn(visitor.panel("Validation while it trained").locator(".chart"))
    visitor.check_drawn(visitor.panel("Embedding map").locator("canvas").first)
    visitor.check_fits()
    visitor.shot("evaluation")
    page.get_by_label("Filter queries by class or id").fill("no such class")
    visitor.wait(worst.get_by_text("No query matches"))
    visitor.check_silent()


@EVERYWHERE
def test_two_runs_are_compared_by_what_got_fixed_and_what_broke(
    visitor: Visitor, trained: Trained, house: House
) -> None:
    page = visitor.page
    visitor.open("/jobs", "Jobs")
    for job in (trained.first, trained.second):
        page.locator(f"input[data-job='{job}']").check()
    page.get_by_role("button", name="Compare").click()
    visitor.wait(page.get_by_role("heading", level=1, name="Compare"))
    fixed = visitor.panel("Fixed")
    visitor.wait(fixed)
    found = house.ask("GET", f"/v1/jobs/{trained.first}/evaluation:compare?with={trained.second}").json()
    assert found["num_fixed"] > 0
    visitor.wait(fixed.get_by_text(f"{found['num_fixed']:,} of {found['queries']:,} queries"))
    visitor.check_drawn(fixed.locator(".tile canvas").first)
    gained = visitor.panel("What was gained").get_by_role("row", name="MAP@R").get_by_role("cell").all_inner_texts()
    assert float(gained[1]) == pytest.approx(found["metrics"]["map_at_r"]["before"], abs=1e-4)
    visitor.check_fits()
    visitor.shot("compare")
    visitor.check_silent()


@EVERYWHERE
def test_a_dropped_image_finds_itself_and_its_class(visitor: Visitor, trained: Trained, house: House) -> None:
    page = visitor.page
    data = np.load(checks(house.home))
    file = io.BytesIO()
    Image.fromarray(data["inputs"][80]).save(file, "PNG")
    visitor.open("/search?collection=second", "Search")
    zone = visitor.wait(page.locator(".drop"))
    page.evaluate(_DROP, [zone.element_handle(), base64.b64encode(file.getvalue()).decode(), "image/png"])
    hits = page.locator(".hits .tile")
    visitor.wait(hits)
    assert hits.first.locator(".score").inner_text() == "1.000", "the picture itself was indexed"
    labels = hits.locator(".name").all_inner_texts()
    assert labels[0] == str(data["labels"][80])
    visitor.check_fits()
    visitor.shot("search")
    page.get_by_role("button", name="Point", exact=True).click()
    page.get_by_label("Id of a point").fill("no-such-point")
    page.get_by_role("button", name="Search", exact=True).click()
    visitor.wait(page.get_by_role("alert"))


def test_a_typed_text_finds_itself_and_its_class(visitor: Visitor, phrases: str) -> None:
    page = visitor.page
    visitor.open(f"/search?collection={phrases}", "Search")
    visitor.wait(page.locator('button[aria-pressed="true"]', has_text="Text"))  # what a model of texts is asked by
    visitor.tab_to(page.get_by_label("What to look for"))
    page.keyboard.type("good morning")
    visitor.press("Enter")
    hits = page.locator(".hits .tile")
    visitor.wait(hits)
    assert hits.first.locator(".score").inner_text() == "1.000", "the text itself was indexed"
    assert hits.first.locator(".name").inner_text() == "greeting"
    visitor.shot("search-text")
    visitor.check_silent()


def test_the_keyboard_alone_leads_from_the_list_to_the_worst_queries(visitor: Visitor, trained: Trained) -> None:
    page = visitor.page
    visitor.open("/jobs", "Jobs")
    page.locator("body").evaluate("element => element.ownerDocument.activeElement.blur()")
    visitor.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip", "the first stop skips the navigation"
    visitor.tab_to(page.locator(f"a[href='#/jobs/{trained.second}']"))
    visitor.press("Enter")
    visitor.wait(page.get_by_role("heading", level=1, name="second"))
    visitor.check_drawn(visitor.panel("Loss").locator(".chart"))
    chart = visitor.panel("Loss").locator(".chart")
    visitor.tab_to(chart)
    visitor.press("Home")
    visitor.until(lambda: "1" in chart.locator(".u-legend .u-value").first.inner_text(), "the first step is read")
    visitor.shot("keyboard-chart")
    tab = page.get_by_role("navigation", name="Of this job").get_by_role("link", name="Evaluation")
    tab.focus()
    visitor.press("Enter")
    visitor.wait(visitor.panel("Worst queries").locator(".tile"))
    visitor.tab_to(page.get_by_label("Filter queries by class or id"))
    page.keyboard.type("1")
    visitor.tab_to(visitor.panel("Embedding map").locator("canvas").first)
    visitor.press("ArrowRight", "ArrowRight")
    visitor.wait(page.locator(".tip"))
    visitor.check_silent()


@EVERYWHERE
def test_every_view_fits_the_screen_and_is_silent(visitor: Visitor, trained: Trained) -> None:
    views = {
        "jobs": ("/jobs", "Jobs"),
        "job": (f"/jobs/{trained.second}", "second"),
        "spec": (f"/jobs/{trained.second}/spec", "second"),
        "files": (f"/jobs/{trained.second}/files", "second"),
        "submit": (f"/submit?from={trained.second}", "New job"),
        "models": ("/models", "Models"),
        "datasets": ("/datasets", "Data sets"),
    }
    for name, (address, heading) in views.items():
        visitor.open(address, heading)
        visitor.wait(visitor.page.locator(".panel h2"))  # that of the facts has no heading
        if name == "job":
            visitor.check_drawn(visitor.panel("Loss").locator(".chart"))
        visitor.check_fits()
        visitor.shot(name)
    visitor.check_silent()


def test_a_key_is_asked_for_once_kept_in_the_tab_and_sent(chromium: Any, tmp_path: Path) -> None:
    home = tmp_path / "keyed"
    database = Database.at(home)
    with database.transaction() as session:
        _, token = create_key(session, ["jobs:read"], "default")
    database.close()
    with server(home, "--set", "supervise=false") as (url, _):
        context = chromium.new_context(viewport=WIDE)
        visitor = Visitor(context.new_page(), url, SHOTS / "light")
        visitor.page.goto(f"{url}/dashboard/")
        visitor.wait(visitor.page.get_by_text("This server needs an API key"))
        visitor.shot("key")
        visitor.page.get_by_label("Key", exact=True).fill(token)
        visitor.press("Enter")
        visitor.wait(visitor.page.get_by_text("No jobs yet"))
        visitor.page.reload()
        visitor.wait(visitor.page.get_by_text("No jobs yet"))
        context.close()
