"""Models of a server: registered from finished jobs and runs, copied with the digest of every file, and promoted.

A model's folder, `models/ID` of its project, never changes. What changes is where an alias such as `production` points:
one transaction moves it and writes its history.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ForeignKey, Integer, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from raydml.errors import RecordConflict, RecordNotFound
from raydml.files import remove_folder, sha256_file, whole_folder
from raydml.jobs.database import Base, Database, Document, Milliseconds
from raydml.jobs.ids import milliseconds, new_id
from raydml.jobs.projects import Owned, owned, project_home

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


class ModelRow(Base, Owned):
    """One model. `files`: path, size and sha256 of each; `sha256` is that of the weights."""

    __tablename__ = "models"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    source: Mapped[str]  # the job or the run that trained it
    sha256: Mapped[str]
    dimension: Mapped[int]
    files: Mapped[list[dict[str, Any]]] = mapped_column(Document)
    metrics: Mapped[dict[str, Any]] = mapped_column(Document)
    created_by: Mapped[str]
    created_at: Mapped[int] = mapped_column(Milliseconds)


class ModelAliasRow(Base, Owned):
    """Where an alias of a name points now."""

    __tablename__ = "model_aliases"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))


class PromotionRow(Base, Owned):
    """That an alias was moved: never changed again."""

    __tablename__ = "promotions"

    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    name: Mapped[str]
    alias: Mapped[str]
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    before: Mapped[str | None]  # the model that it pointed to
    caller: Mapped[str]
    time: Mapped[int] = mapped_column(Milliseconds)


@dataclass(frozen=True)
class Models:
    """The models of one server; for any number of threads and processes."""

    database: Database
    home: Path

    def copy(self, project: str, source: str, run: Path, name: str, by: str) -> ModelRow:
        """A copy of the model of a finished run, for `keep`. Raises RecordConflict where it has none that is whole."""
        identity = new_id("mdl")
        config, facts = _finished(run, source)
        with whole_folder(self._folder(project, identity)) as draft:
            files = list(_copied(run / "model", draft))
            if config["sha256"] != sha256_file(draft / _WEIGHTS):
                raise RecordConflict(f"the weights of {source} are damaged: their SHA-256 is not the recorded one")
        return ModelRow(
            id=identity,
            project_id=project,
            name=name,
            source=source,
            sha256=config["sha256"],
            dimension=config["model"]["dimension"],
            files=files,
            metrics=facts.get("metrics", {}),
            created_by=by,
            created_at=milliseconds(),
        )

    def keep(self, row: ModelRow) -> None:
        """Register what was copied."""
        with self.database.transaction() as session:
            session.add(row)
            session.flush()

    def forget(self, row: ModelRow) -> None:
        """Remove a copy that was not kept."""
        remove_folder(self.folder(row))

    def get(self, identity: str, project: str | None) -> ModelRow:
        """The model. Raises RecordNotFound."""
        with self.database.reading() as session:
            return _row(session, identity, project)

    def aliases(self, identities: Sequence[str]) -> dict[str, list[str]]:
        """The aliases that point to each of the models."""
        found: dict[str, list[str]] = {identity: [] for identity in identities}
        query = select(ModelAliasRow).where(ModelAliasRow.model_id.in_(identities)).order_by(ModelAliasRow.alias)
        with self.database.reading() as session:
            for row in session.scalars(query):
                found[row.model_id].append(row.alias)
        return found

    def promote(self, identity: str, project: str, alias: str, expected: str | None, by: str) -> ModelRow:
        """Point an alias of the model's name to it. Raises RecordConflict where it does not point to `expected` now."""
        with self.database.transaction() as session:
            row = _row(session, identity, project, locked=True)
            there = session.get(ModelAliasRow, (project, row.name, alias), with_for_update=True)
            before = None if there is None else there.model_id
            if expected is not None and before != expected:
                raise RecordConflict(f"{alias} of {row.name} points to {before or 'nothing'}, not to {expected}")
            if before == identity:
                return row
            session.merge(ModelAliasRow(project_id=project, name=row.name, alias=alias, model_id=identity))
            session.add(
                PromotionRow(
                    project_id=project,
                    name=row.name,
                    alias=alias,
                    model_id=identity,
                    before=before,
                    caller=by,
                    time=milliseconds(),
                )
            )
            return row

    def history(self, identity: str, project: str) -> Sequence[PromotionRow]:
        """Every move of an alias of the model's name, the newest first."""
        with self.database.reading() as session:
            name = _row(session, identity, project).name
            query = owned(select(PromotionRow), project).where(PromotionRow.name == name)
            return session.scalars(query.order_by(PromotionRow.seq.desc()).limit(1000)).all()

    def list(
        self, project: str | None, name: str | None, alias: str | None, before: str | None, limit: int
    ) -> Sequence[ModelRow]:
        """The newest first; `before`: those with a smaller id; those that an alias points to, where one is given."""
        query = owned(select(ModelRow), project).order_by(ModelRow.id.desc()).limit(limit)
        if name is not None:
            query = query.where(ModelRow.name == name)
        if alias is not None:
            pointed = owned(select(ModelAliasRow), project).where(ModelAliasRow.alias == alias)
            query = query.where(ModelRow.id.in_(pointed.with_only_columns(ModelAliasRow.model_id)))
        if before is not None:
            query = query.where(ModelRow.id < before)
        with self.database.reading() as session:
            return session.scalars(query).all()

    def folder(self, row: ModelRow) -> Path:
        """Where the model lies."""
        return self._folder(row.project_id, row.id)

    def _folder(self, project: str, identity: str) -> Path:
        return project_home(self.home, project) / "models" / identity


def _row(session: Session, identity: str, project: str | None, locked: bool = False) -> ModelRow:
    query = owned(select(ModelRow).where(ModelRow.id == identity), project)
    row = session.scalar(query.with_for_update() if locked else query)
    if row is None:
        raise RecordNotFound(f"there is no model {identity[:40]}")
    return row


def _finished(run: Path, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What config.json of the model and run.json of the run say."""
    try:
        facts = json.loads((run / "run.json").read_text())
        config = json.loads((run / "model" / _CONFIG).read_text())
    except (OSError, ValueError):
        raise RecordConflict(f"{source} has exported no model: wait until it has succeeded") from None
    if facts.get("state") != "succeeded":
        raise RecordConflict(f"{source} is {facts.get('state')}: a model is registered once its run has succeeded")
    return config, facts


def _copied(model: Path, draft: Path) -> Iterator[dict[str, Any]]:
    """Copy every regular file; links are passed over."""
    for path in sorted(model.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        target = draft / path.relative_to(model)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        yield {
            "path": path.relative_to(model).as_posix(),
            "size": target.stat().st_size,
            "sha256": sha256_file(target),
        }
