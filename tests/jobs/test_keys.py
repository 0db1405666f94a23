"""API keys and projects: what is stored of them, when they are refused, and whose rows a caller sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update
from typer.testing import CliRunner

from raydml.cli import app
from raydml.errors import SpecError
from raydml.jobs.audit import AuditRow, Deed, deeds, record
from raydml.jobs.callers import LOCAL, SCOPES, Caller, parse_scopes
from raydml.jobs.database import Database
from raydml.jobs.ids import milliseconds
from raydml.jobs.keys import DAY, ApiKey, any_key, caller_of, create_key, revoke_key
from raydml.jobs.projects import Project, find_project, owned, project_home
from raydml.jobs.rate import Buckets
from raydml.jobs.tokens import hashed, matches, new_token, prefix_of, without_secrets


def test_a_token_has_256_random_bits_and_only_its_hash_and_prefix_are_stored(database: Database) -> None:
    with database.transaction() as session:
        key, token = create_key(session, ["jobs:read"], "default")
        row = session.execute(select(ApiKey.__table__)).one()
    secret = token.split("_", 2)[2]
    assert len(secret) == 43  # 256 bits, 6 a character
    assert secret not in repr(row) and token not in repr(row)
    assert key.sha256 == hashed(token) and prefix_of(token) == key.prefix
    assert len({new_token()[0] for _ in range(1000)}) == 1000


def test_a_key_is_known_until_it_is_revoked_or_expires_and_a_changed_token_never_is(database: Database) -> None:
    now = milliseconds()
    with database.transaction() as session:
        _, ended = create_key(session, ["jobs:read"], "default", days=1)
        key, token = create_key(session, ["jobs:write", "jobs:read"], "lab")
        assert caller_of(session, token, now) == Caller(
            key.project_id, parse_scopes(["jobs:read", "jobs:write"]), key.id
        )
        assert caller_of(session, ended, now) is not None
        assert caller_of(session, ended, now + DAY + 10_000) is None
        other = token[:-1] + ("A" if token[-1] != "A" else "B")
        for wrong in (other, token + "x", token.upper(), "", "raydml_", token.replace(key.prefix, "aaaaaaaaaa")):
            assert caller_of(session, wrong, now) is None, wrong
        revoke_key(session, key.prefix)
        assert caller_of(session, token, now) is None
        assert any_key(session) and any_key(session, now)
        assert not any_key(session, now + 2 * DAY)


def test_a_wrong_scope_is_named_with_those_that_there_are(database: Database) -> None:
    with database.transaction() as session, pytest.raises(SpecError, match=r"scopes: jobs:delete; there are jobs:read"):
        create_key(session, ["jobs:read", "jobs:delete"], "default")
    with database.transaction() as session, pytest.raises(SpecError, match="is no name of a project"):
        create_key(session, ["jobs:read"], "../lab")
    with pytest.raises(SpecError, match="none given"):
        parse_scopes([])
    assert all(LOCAL.may(scope) for scope in SCOPES)
    assert all(Caller("p", parse_scopes(["admin"])).may(scope) for scope in SCOPES)
    assert [scope for scope in SCOPES if Caller("p", parse_scopes(["jobs:write"])).may(scope)] == ["jobs:write"]


def test_a_caller_reads_changes_and_removes_rows_of_its_own_project_alone(database: Database) -> None:
    with database.transaction() as session:
        callers = [Caller(create_key(session, ["admin"], name)[0].project_id, LOCAL.scopes, name) for name in "ab"]
        for number, caller in enumerate(callers * 3):
            record(session, [Deed(caller, "PUT", f"/{number}", 200, "r", "::1")])
    one, other = callers
    with database.transaction() as session:
        assert [row.target for row in deeds(session, one.project, None, 10)] == ["/4", "/2", "/0"]
        assert [row.target for row in deeds(session, None, None, 10)] == ["/5", "/4", "/3", "/2", "/1", "/0"]
        first = deeds(session, other.project, None, 1)
        assert [row.target for row in deeds(session, other.project, first[-1].seq, 10)] == ["/3", "/1"]
        session.execute(owned(update(AuditRow).values(status=500), one.project))
        session.execute(owned(delete(AuditRow).where(AuditRow.target == "/1"), one.project))
        rows = session.execute(select(AuditRow.target, AuditRow.status).order_by(AuditRow.seq)).all()
    assert [tuple(row) for row in rows] == [(f"/{n}", 200 if n % 2 else 500) for n in range(6)]


def test_a_table_of_nobody_cannot_be_narrowed_to_a_caller(database: Database) -> None:
    with pytest.raises(AssertionError, match="belong to nobody"):
        owned(select(Project), LOCAL.project)


def test_projects_have_homes_of_their_own_and_the_default_one_has_the_servers(database: Database, home: object) -> None:
    with database.reading() as session:
        default = find_project(session, "default").id
        with pytest.raises(SpecError, match="there is no project lab; there are default"):
            find_project(session, "lab")
    assert project_home(Path("/h"), default) == Path("/h")
    assert project_home(Path("/h"), "prj_x") == Path("/h/projects/prj_x")


def test_a_bucket_takes_a_burst_and_then_its_rate() -> None:
    buckets = Buckets(rate=2.0, burst=3)
    taken = [buckets.take("a", now) for now in (0.0, 0.0, 0.0, 0.0, 0.25, 0.5, 0.5, 100.0, 100.0, 100.0, 100.0)]
    assert taken == [0, 0, 0, 0.5, 0.25, 0, 0.5, 0, 0, 0, 0.5]
    assert buckets.take("b", 0.5) == 0  # another key's


def test_logs_show_neither_keys_nor_secrets_nor_control_characters() -> None:
    token = new_token()[0]
    shown = without_secrets(
        {
            "a": f"sent {token} and Bearer abc.def",
            "Authorization": "Basic 1234",
            "inner": {"secret": "x", "list": [token, 1]},
            "line": "a\nlevel=error\r\x1b[31m\u202e",
            "bytes": token.encode(),
        }
    )
    text = json.dumps(shown)
    assert token.split("_", 2)[2] not in text and "abc.def" not in text and "1234" not in text
    assert shown["Authorization"] == shown["inner"]["secret"] == "***"
    assert shown["line"] == "a\\nlevel=error\\r\\x1b[31m\\u202e"
    assert prefix_of(token) in shown["a"]  # type: ignore[operator]
    assert matches(token, hashed(token)) and not matches(token, hashed(token + "x"))


def test_the_command_line_makes_shows_once_lists_and_revokes_keys(home: object) -> None:
    def run(*arguments: str) -> dict[str, object]:
        done = CliRunner().invoke(app, ["keys", *arguments, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    made = run("create", "--scopes", "jobs:read, search:read", "--project", "lab", "--days", "2")
    assert (made["project"], made["scopes"], made["state"]) == ("lab", ["jobs:read", "search:read"], "live")
    listed = run("list")["keys"]
    assert listed == [{name: value for name, value in made.items() if name != "token"}]
    assert run("revoke", str(made["id"]))["state"] == "revoked"
    refused = CliRunner().invoke(app, ["keys", "revoke", "key_0"])
    assert refused.exit_code == 1 and "there is no key key_0" in refused.stderr
