"""Models that a server keeps: registered from jobs or runs, promoted, exported, downloaded; and their documents."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from raydml.client.calls import LONG, Call, Pages, given, key
from raydml.client.documents import Document
from raydml.client.downloads import Download
from raydml.client.resource import Resource, S, iterating, operation

ONE = "/v1/models/{model}"


class ModelFile(Document):
    """A file of a model."""

    path: str
    size: int
    sha256: str


class Model(Document):
    """A registered model; its files never change. `aliases` are those of its name that point to it now."""

    id: str
    name: str
    source: str
    sha256: str
    dimension: int
    metrics: dict[str, float]
    aliases: list[str]
    files: list[ModelFile]
    created_by: str
    created_at: datetime


class Promotion(Document):
    """That an alias was moved; `before` is the model that it pointed to."""

    alias: str
    model: str
    before: str | None
    caller: str
    time: datetime


class Models(Resource[S]):
    """All models of the key's project."""

    @operation
    def register(
        self, job: str | None = None, run: str | None = None, name: str | None = None, *, request: str | None = None
    ) -> Call[Model]:
        """Keep a copy of the model of a finished job, or of a run in the project's folder."""
        body = given(job=job, run=run, name=name)
        return Call("POST", "/v1/models", Model.model_validate, body=body, key=key(request), seconds=LONG)

    @iterating
    def list(self, name: str | None = None, alias: str | None = None, page_size: int = 100) -> Pages[Model]:
        """Models, the newest first."""

        def page(cursor: Any) -> Call[tuple[Any, Any]]:
            query = {"name": name, "alias": alias, "limit": page_size, "cursor": cursor}
            return Call("GET", "/v1/models", _page, query=query)

        return Pages(page)

    @operation
    def get(self, id: str) -> Call[Model]:
        """A model, its files, and the aliases that point to it."""
        return Call("GET", ONE, Model.model_validate, {"model": id})

    @operation
    def promote(self, id: str, alias: str, expected: str | None = None) -> Call[Model]:
        """Point an alias of the model's name to it; Conflict where it does not point to the model `expected`."""
        body = {"alias": alias, **given(expected=expected)}
        return Call("POST", f"{ONE}/promote", Model.model_validate, {"model": id}, body=body)

    @operation
    def promotions(self, id: str) -> Call[Any]:
        """The moves of the aliases of the model's name, the newest first."""
        return Call("GET", f"{ONE}/promotions", _promotions, {"model": id})

    @operation
    def export(self, id: str, to: str | Path) -> Download:
        """All files as one tar archive with their SHA256SUMS -> a file, or a file in the folder `to`: its path."""
        return Download(Call("GET", f"{ONE}/export", Path, {"model": id}, seconds=LONG), Path(to), f"{id}.tar")

    @operation
    def download(self, id: str, path: str, to: str | Path) -> Download:
        """One file of the model -> a file, or a file in the folder `to`, whole or not at all: its path."""
        return Download(Call("GET", f"{ONE}/files/{{path}}", Path, {"model": id, "path": path}), Path(to), path)


def _page(read: Any) -> tuple[Any, Any]:
    return [Model.model_validate(item) for item in read["items"]], read["next_cursor"]


def _promotions(read: Any) -> Any:
    return [Promotion.model_validate(item) for item in read["items"]]
