"""Commands about the API keys of this machine's server: create, list, revoke."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raydml.cli.output import Json, answering

if TYPE_CHECKING:
    from raydml.jobs.keys import ApiKey

app = typer.Typer(help="Make, list and revoke the API keys of this machine's server.", no_args_is_help=True)

Scopes = Annotated[str, typer.Option("--scopes", metavar="A,B", help="e.g. jobs:read,jobs:write, or admin for all")]
ProjectName = Annotated[str, typer.Option("--project", help="what the key may see is of this project alone")]
KeyName = Annotated[str, typer.Option("--name", help="for whom or what it is")]
Days = Annotated[float | None, typer.Option("--days", help="valid for so long; for ever if not given")]
Identity = Annotated[str, typer.Argument(metavar="KEY", help="its id or its prefix", show_default=False)]


@app.command("create")
def create(
    scopes: Scopes, project: ProjectName = "default", name: KeyName = "", days: Days = None, as_json: Json = False
) -> None:
    """Make a key and show its token, once: from now on the server refuses requests without one."""
    with answering(as_json) as answer, _session() as session:
        from raydml.jobs.keys import create_key

        key, token = create_key(session, [scope.strip() for scope in scopes.split(",")], project, name, days)
        shown = (
            f"{token}\n\nThis is shown once. Send it as `Authorization: Bearer ...`; {_line(_document(session, key))}"
        )
        session.commit()
        answer({**_document(session, key), "token": token}, shown)


@app.command("list")
def list_keys(as_json: Json = False) -> None:
    """Show all keys: whose, what they may, when they were used; never the tokens."""
    with answering(as_json) as answer, _session() as session:
        from raydml.jobs.keys import keys

        documents = [_document(session, key) for key in keys(session)]
        answer({"keys": documents}, "\n".join(map(_line, documents)) or "there are no keys")


@app.command("revoke")
def revoke(key: Identity, as_json: Json = False) -> None:
    """Refuse a key from now on; processes that know it do so within a second."""
    with answering(as_json) as answer, _session() as session:
        from raydml.jobs.keys import revoke_key

        document = _document(session, revoke_key(session, key))
        session.commit()
        answer(document, _line(document))


@contextmanager
def _session() -> Iterator[Any]:
    from api.settings import load_settings
    from raydml.jobs.database import Database

    settings = load_settings({})
    settings.home.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database_url)
    try:
        database.migrate()
        with database.transaction() as session:
            yield session
    finally:
        database.close()


def _document(session: Any, key: ApiKey) -> dict[str, Any]:
    from api.times import maybe
    from raydml.jobs.ids import milliseconds
    from raydml.jobs.projects import Project

    project = session.get(Project, key.project_id)
    assert project is not None
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "project": project.name,
        "scopes": key.scopes,
        "state": key.state(milliseconds()),
        "created_at": maybe(key.created_at),
        "expires_at": maybe(key.expires_at),
        "used_at": maybe(key.used_at),
    }


def _line(document: dict[str, Any]) -> str:
    name = f" ({document['name']})" if document["name"] else ""
    return (
        f"{document['id']} raydml_{document['prefix']}_... {document['state']}, project {document['project']}, "
        f"{','.join(document['scopes'])}, used {document['used_at'] or 'never'}{name}"
    )
