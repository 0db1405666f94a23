"""The client's models, webhooks, shadows and insights, against the application of a folder."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydml.client import Client
from raydml.errors import Conflict, NotFound, RequestRefused
from raydml.search import Collection
from tests.api.test_models import finished
from tests.api.test_upkeep import VECTORS, people, run

__all__ = ["people", "run"]  # fixtures
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def client(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("RAYDML_SUPERVISE", "false")
    with Client(local=home) as made:
        yield made


def test_a_model_is_registered_promoted_exported_and_downloaded(client: Client, home: Path, tmp_path: Path) -> None:
    digest = finished(home / "runs" / "r")
    first = client.models.register(run="r", name="faces")
    second = client.models.register(run="r", name="faces")
    assert first.sha256 == digest and first.metrics == {"map_at_r": 0.5}
    assert client.models.promote(first.id, "production").aliases == ["production"]
    assert client.models.promote(second.id, "production", expected=first.id).aliases == ["production"]
    with pytest.raises(Conflict):
        client.models.promote(first.id, "production", expected=first.id)
    assert [move.before for move in client.models.promotions(first.id)] == [first.id, None]
    assert [model.id for model in client.models.list(alias="production")] == [second.id]
    assert [model.id for model in client.models.list(page_size=1)] == [second.id, first.id]
    file = client.models.download(first.id, "README.md", tmp_path)
    assert file.read_text() == (home / "runs" / "r" / "model" / "README.md").read_text()
    with tarfile.open(client.models.export(first.id, tmp_path)) as archive:
        assert f"{first.id}/SHA256SUMS" in archive.getnames()
    with pytest.raises(NotFound):
        client.models.download(first.id, "nothing", tmp_path)
    assert client.models.get(first.id).aliases == []


def test_a_webhook_of_a_host_that_nobody_allowed_is_refused(client: Client) -> None:
    with pytest.raises(RequestRefused):
        client.webhooks.create("https://elsewhere.example/hook")
    assert client.webhooks.list() == []
    with pytest.raises(NotFound):
        client.webhooks.deliveries("whk_" + "0" * 26)
    with pytest.raises(NotFound):
        client.webhooks.delete("whk_" + "0" * 26)


def test_a_webhook_shows_its_secret_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDML_SUPERVISE", "false")
    monkeypatch.setenv("RAYDML_WEBHOOK_HOSTS", '["hooks.example"]')
    with Client(local=home) as client:
        made = client.webhooks.create("https://hooks.example/a", request="once")
        assert made.secret and client.webhooks.create("https://hooks.example/a", request="once") == made
        assert [(each.id, each.secret) for each in client.webhooks.list()] == [(made.id, None)]
        assert client.webhooks.deliveries(made.id) == []
        client.webhooks.delete(made.id)
        assert client.webhooks.list() == []


def test_a_shadow_is_filled_compared_and_switched_to(client: Client, people: Collection, run: str) -> None:
    client.aliases.switch({"faces": "people"})
    shadow = client.collections["people"].shadow("younger")
    assert not shadow.fill("newer", "picture", limit=40).complete
    assert shadow.fill("newer", "picture", limit=40).complete
    compared = shadow.report("person", k=5, queries=50, false_accept_rate=0.3)
    assert compared.queries == 50 and 0 <= compared.shadow.recall <= 1
    assert shadow.switch("faces").aliases == {"faces": "younger"}
    assert client.aliases.roll_back().aliases == {"faces": "people"}


def test_what_is_confused_is_told_and_explained(client: Client, people: Collection) -> None:
    faces = client.collections["people"]
    lines = [json.loads(line) for line in faces.hard_negatives("person", k=2).splitlines()]
    assert len(lines) == 60
    (explained,) = faces.explain("person", vectors=VECTORS[:1], k=3)
    assert explained.hits[0].payload["person"] == "p0" and len(explained.hubness) == len(explained.hits)
    assert faces.compact().rows >= 0
    assert "raydml_requests_total" in client.prometheus()
    with pytest.raises(Conflict):
        client.collections.add("people", dimension=8)
    assert client.collections.add("others", dimension=3).points == 0
