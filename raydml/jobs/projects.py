"""Projects, the owners of everything; and the one place where a read is narrowed to what its caller owns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Delete, ForeignKey, Select, Update, select
from sqlalchemy.orm import Mapped, Session, declared_attr, mapped_column

from raydml.errors import SpecError
from raydml.jobs.database import Base, Milliseconds
from raydml.jobs.ids import DEFAULT_PROJECT, milliseconds, new_id

Statement = TypeVar("Statement", bound=Select[Any] | Update | Delete)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Project(Base):
    """A name under which keys, jobs, data sets, models and collections are kept apart from other projects'."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[int] = mapped_column(Milliseconds)


class Owned:
    """Base of the tables whose rows belong to a project."""

    @declared_attr
    def project_id(cls) -> Mapped[str]:
        """The project's id."""
        return mapped_column(ForeignKey("projects.id"), index=True)


def owned(statement: Statement, project: str | None) -> Statement:
    """The statement, narrowed to the rows of the caller's project; None is the server itself, which sees all.

    Every table that the statement reads must have a `project_id`: one that has none is a mistake in the program.
    """
    if project is None:
        return statement
    if isinstance(statement, Select):
        tables = [described["entity"] for described in statement.column_descriptions]
    else:
        tables = [statement.entity_description["entity"]]
    assert tables and all(hasattr(table, "project_id") for table in tables), f"{tables} belong to nobody"
    for table in dict.fromkeys(tables):
        statement = statement.where(table.project_id == project)  # type: ignore[assignment]  # each kind gives its own
    return statement


def project_of(session: Session, name: str) -> Project:
    """The project of this name, made where there is none. Raises SpecError for what is no name."""
    if not NAME.fullmatch(name):
        raise SpecError(f"{name[:200]!r} is no name of a project: up to 100 letters, digits, dots, _ and -")
    found = session.scalar(select(Project).where(Project.name == name))
    if found is None:
        found = Project(id=new_id("prj"), name=name, created_at=milliseconds())
        session.add(found)
        session.flush()
    return found


def find_project(session: Session, name: str) -> Project:
    """The project of this name. Raises SpecError where there is none."""
    found = session.scalar(select(Project).where(Project.name == name))
    if found is None:
        raise SpecError(f"there is no project {name}; there are {', '.join(p.name for p in projects(session))}")
    return found


def projects(session: Session) -> Sequence[Project]:
    """All of them, the oldest first."""
    return session.scalars(select(Project).order_by(Project.id)).all()


def project_home(home: Path, project: str) -> Path:
    """The folder of a project's runs, collections, snapshots and models: a home of its own, or that of the server."""
    return home if project == DEFAULT_PROJECT else home / "projects" / project
