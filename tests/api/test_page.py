"""The page's files: served to anybody, from here alone, under a strict policy, and asking for nothing but /v1."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import orjson
import pytest

from api import page
from api.openapi import COMMITTED
from api.scopes import PAGE
from tests.api.conftest import Connect

pytestmark = pytest.mark.anyio
VENDOR = page.FOLDER / "vendor"
OWN = sorted(path for path in page.FOLDER.rglob("*") if path.is_file() and VENDOR not in path.parents)
SCRIPTS = [path for path in OWN if path.suffix == ".js"]
_PATH = re.compile(r"[`\"'](/v1/[^`\"'?]*)[`\"'?]")
_IMPORT = re.compile(r"(?:from|import\(?)\s*[\"'](\.[^\"']+)[\"']")


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


async def test_every_file_is_served_under_the_policy_without_a_key(connect: Connect) -> None:
    async with connect(host="0.0.0.0") as client:
        assert (await client.get("/v1/jobs")).status_code == 401, "the data needs a key"
        for path, file in page.files().items():
            answer = await client.get(f"{PAGE}{path}")
            assert (answer.status_code, answer.content) == (200, file.content), path
            assert answer.headers["content-type"] == file.type
            assert answer.headers["content-security-policy"] == page.POLICY
            assert answer.headers["x-content-type-options"] == "nosniff"
            tag = {"If-None-Match": answer.headers["etag"]}
            assert (await client.get(f"{PAGE}{path}", headers=tag)).status_code == 304
        assert {path.relative_to(page.FOLDER).as_posix() for path in page.FOLDER.rglob("*") if path.is_file()} < set(
            page.files()
        )


async def test_the_root_leads_to_the_page_and_other_names_lead_nowhere(connect: Connect) -> None:
    async with connect() as client:
        answer = await client.get("/")
        assert (answer.status_code, answer.headers["location"]) == (307, PAGE)
        for path in ("absent.js", "../page.py", "%2e%2e/page.py", "views", "vendor/"):
            assert (await client.get(f"{PAGE}{path}")).status_code in (401, 404), path


def test_the_policy_lets_nothing_in_from_elsewhere_and_nothing_inline() -> None:
    rules = dict(rule.split(" ", 1) for rule in page.POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert {rules["script-src"], rules["style-src"], rules["connect-src"]} == {"'self'"}
    assert "unsafe" not in page.POLICY and "*" not in page.POLICY and "http" not in page.POLICY


def test_the_markup_has_no_inline_script_style_or_listener() -> None:
    markup = text(page.FOLDER / "index.html")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", markup)
    for path in SCRIPTS:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text(path)
        ), path


def test_nothing_is_asked_of_another_host() -> None:
    for path in OWN:
        for found in re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'`]*", text(path)):
            assert found.startswith("http://www.w3.org/2000/svg"), (path, found)


def test_every_module_and_file_that_is_named_is_there() -> None:
    for path in SCRIPTS:
        for name in _IMPORT.findall(text(path)):
            assert (path.parent / name).resolve().is_file(), (path, name)
    for name in re.findall(r"(?:src|href)=\"([^#\"]+)\"", text(page.FOLDER / "index.html")):
        assert (page.FOLDER / name).is_file(), name


def test_every_path_that_the_page_asks_for_is_a_documented_one() -> None:
    documented = {re.sub(r"\{\w+\}", "{}", path) for path in orjson.loads(COMMITTED.read_bytes())["paths"]}
    asked = {re.sub(r"\$\{[^}]*\}", "{}", path) for script in SCRIPTS for path in _PATH.findall(text(script))}
    asked = {re.sub(r"^(/v1/jobs/\{\}/artifacts/).+", r"\1{}", path) for path in asked}
    assert len(asked) > 15
    assert asked <= documented, sorted(asked - documented)


def test_vendored_files_are_those_whose_digests_are_noted_and_have_their_licence() -> None:
    for folder in VENDOR.iterdir():
        noted = dict(re.findall(r"\| `([^`]+)` \| `([0-9a-f]{64})` \|", text(folder / "README.md")))
        found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        found.pop("README.md")
        assert found == noted
        assert "MIT License" in text(folder / "LICENSE")
