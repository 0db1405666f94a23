"""The page's colours, light and dark: text stands out from what it lies on by 4.5, marks by 3 (WCAG 2.2, AA)."""

from __future__ import annotations

import itertools
import re

import pytest

from api import page

STYLE = {path.name: path.read_text(encoding="utf-8") for path in sorted((page.FOLDER / "style").glob("*.css"))}
RULE = re.compile(r"([^{};/]+)\{([^{}]*)\}")
GROUNDS = ("surface", "ground", "raised")  # whatever has no ground of its own lies on one of these
SWITCHES = {"light": ":root", "dark": ':root[data-theme="dark"]', "system": ':root:not([data-theme="light"])'}


def rules() -> list[tuple[str, dict[str, str]]]:
    """Selectors and declarations of all sheets, those within @media too."""
    found = []
    for text in STYLE.values():
        plain = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        for selector, body in RULE.findall(plain):
            pairs = (line.split(":", 1) for line in body.split(";") if ":" in line)
            found.append((selector.strip(), {name.strip(): value.strip() for name, value in pairs}))
    return found


def palette(switch: str) -> dict[str, str]:
    """Colour by name; dark has its own over those of light."""
    found: dict[str, str] = {}
    for wanted in dict.fromkeys((":root", SWITCHES[switch])):
        (own,) = [body for selector, body in rules() if selector == wanted]
        found |= {name[2:]: value for name, value in own.items() if value.startswith("#")}
    return found


def luminance(colour: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance of #rrggbb."""
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio, from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def named(value: str | None) -> str | None:
    """The colour that a declaration names, where it is one of the palette."""
    found = re.search(r"var\(--([\w-]+)\)", value or "")
    return found[1] if found and "color-mix" not in str(value) else None


def text_pairs() -> set[tuple[str, str]]:
    """Colours of text, each with the ground that its rule gives it, or else with all that it may lie on."""
    pairs = set()
    for _, body in rules():
        colour, ground = named(body.get("color")), named(body.get("background"))
        if colour is not None:
            pairs |= {(colour, each) for each in ([ground] if ground else GROUNDS)}
        elif ground is not None:  # text that is not coloured
            pairs.add(("text", ground))
    unreadable = {
        "accent",
        "good",
        "bad",
        "colour",
    }  # of bars, signs and keys to colours: no plain text
    return {pair for pair in pairs if pair[0] != "text" or pair[1] not in unreadable}


def mark_pairs() -> set[tuple[str, str]]:
    """What is seen without being read: lines of charts, states, edges of what is pressed or typed into, the focus."""
    scripts = (path.read_text(encoding="utf-8") for path in page.FOLDER.rglob("*.js") if "vendor" not in path.parts)
    drawn = {name for text in scripts for name in re.findall(r"[\"']--([\w-]+)[\"']", text)}
    drawn -= {"grid", "surface", "ground", "sans", "colour"}  # behind marks, below them, a font, any of them
    edges = {
        named(body.get("border") or body.get("outline") or "")
        for selector, body in rules()
        if re.match(r"(\.button|button|input|\.drop|:focus-visible|\.segments$)", selector)
    } - {None}
    return {(name, "surface") for name in drawn | edges} | {("accent", "raised")}  # a bar of progress on its track


@pytest.mark.parametrize("switch", SWITCHES)
def test_text_stands_out_from_its_ground(switch: str) -> None:
    colours, pairs = palette(switch), text_pairs()
    assert len(pairs) > 20 and ("muted", "raised") in pairs and ("on-accent", "accent") in pairs
    weak = {(one, other): round(contrast(colours[one], colours[other]), 2) for one, other in pairs}
    assert {pair: value for pair, value in weak.items() if value < 4.5} == {}


@pytest.mark.parametrize("switch", SWITCHES)
def test_marks_and_edges_of_controls_stand_out(switch: str) -> None:
    colours, pairs = palette(switch), mark_pairs()
    assert {("chart-1", "surface"), ("line-strong", "surface"), ("bad", "surface")} <= pairs
    weak = {(one, other): round(contrast(colours[one], colours[other]), 2) for one, other in pairs}
    assert {pair: value for pair, value in weak.items() if value < 3} == {}


def test_lines_of_one_chart_differ_in_brightness_or_hue_from_each_other() -> None:
    for switch in SWITCHES:
        colours = palette(switch)
        for one, other in itertools.combinations([colours[f"chart-{place}"] for place in range(1, 6)], 2):
            distance = sum((int(one[i : i + 2], 16) - int(other[i : i + 2], 16)) ** 2 for i in (1, 3, 5)) ** 0.5
            assert distance > 60, (switch, one, other)


def test_dark_is_the_same_by_the_system_and_by_choice() -> None:
    assert palette("dark") == palette("system") != palette("light")


def test_the_measure_is_that_of_the_recommendation() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
