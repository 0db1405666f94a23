"""The serve command: collections over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from raydml.cli.output import answering

Host = Annotated[str | None, typer.Option("--host", help="others than 127.0.0.1 need keys  [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option("--port", help="0 takes any that is free  [default: 8080]")]
Workers = Annotated[int | None, typer.Option("--workers", help="processes that answer  [default: 1]")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="change a setting, e.g. max_k=5000")]


def serve(host: Host = None, port: Port = None, workers: Workers = None, changes: Set = None) -> None:
    """Serve collections over HTTP until Ctrl-C, to this machine alone unless told; RAYDML_... says more."""
    given: dict[str, Any] = {"host": host, "port": port, "workers": workers, **_parse(changes or [])}
    with answering(False):
        from api.serve import serve as run
        from api.settings import load_settings

        settings = load_settings({name: value for name, value in given.items() if value is not None})
        run(settings, lambda url: typer.echo(f"raydml: {url} serves {settings.home}; Ctrl-C stops it", err=True))


def _parse(changes: list[str]) -> dict[str, str]:
    parsed = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {change}: write name=value")
        parsed[name] = value
    return parsed
