"""What commands about a server share: where it is, its client, and ids and labels as they are typed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raydml.cli.output import Answer, answering

if TYPE_CHECKING:
    from raydml.client import Client

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="the server; by default RAYDML_URL, else http://127.0.0.1:8080"),
]
Local = Annotated[
    Path | None, typer.Option("--local", metavar="DIR", help="no server: do it in this process, on this RAYDML_HOME")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="a job's id", show_default=False)]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="a label; may be repeated")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="how many at most")]


@contextmanager
def asking(url: str | None, local: Path | None, as_json: bool) -> Iterator[tuple[Client, Answer]]:
    """A client of the server, and a function for the command's answer; errors become exit codes. The key is
    RAYDML_API_KEY's: a command line is seen by everybody on the machine."""
    with answering(as_json) as answer:
        from raydml.client import Client

        with Client(url if local is None else None, local=local) as client:
            yield client, answer


def pairs(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """KEY=VALUE, as a mapping."""
    parsed = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{option} {text}: write key=value")
        parsed[key] = value
    return parsed


def changes(texts: Sequence[str] | None) -> dict[str, Any]:
    """PATH=VALUE, such as train.steps=500 (the value is YAML), as a merge patch."""
    import yaml

    patch: dict[str, Any] = {}
    for path, text in pairs(texts, "--set").items():
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise typer.BadParameter(f"--set {path}={text}: {text!r} is not a YAML value") from None
        *parents, last = path.split(".")
        place = patch
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return patch


def workers(text: str) -> int | tuple[int, int]:
    """`4`, or fewest and most as `2:8`."""
    fewest, colon, most = text.partition(":")
    try:
        return (int(fewest), int(most)) if colon else int(fewest)
    except ValueError:
        raise typer.BadParameter(f"{text}: write a number of workers, or fewest:most") from None
