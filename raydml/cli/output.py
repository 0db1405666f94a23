"""A command's answer: one JSON document or something to read on stdout; errors as one message and an exit code."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console, RenderableType

from raydml.errors import DataError, Interrupted, RaydmlError, RequestRefused, SpecError

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130

Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout, everything else on stderr")]
Answer = Callable[[Any, RenderableType], None]


@contextmanager
def answering(as_json: bool) -> Iterator[Answer]:
    """Give the command a function for its answer (document, what a person reads); turn errors into exit codes."""
    with _stdout_kept(as_json) as stdout:
        try:
            yield lambda document, shown: _write(stdout, document) if as_json else _show(stdout, shown)
        except (RaydmlError, KeyboardInterrupt) as error:
            failure = error if isinstance(error, RaydmlError) else Interrupted("interrupted")
            typer.echo(f"raydml: {failure}", err=True)
            if as_json:
                _write(stdout, {"error": {**failure.data, "kind": type(failure).__name__, "message": failure.message}})
            raise typer.Exit(exit_code(failure)) from None


def exit_code(error: RaydmlError) -> int:
    """2 where the input was wrong, 130 where a person stopped it, else 1."""
    if isinstance(error, SpecError | DataError | RequestRefused):
        return WRONG_INPUT
    return INTERRUPTED if isinstance(error, Interrupted) else FAILED


def stderr() -> Console:
    """For everything that is not the answer."""
    return Console(stderr=True)


def _write(stdout: TextIO, document: Any) -> None:
    stdout.write(json.dumps(document, indent=2, default=str) + "\n")
    stdout.flush()


def _show(stdout: TextIO, shown: RenderableType) -> None:
    # Piped output is not cut at 80 columns: another program reads it.
    Console(file=stdout, width=None if stdout.isatty() else 120).print(shown)


@contextmanager
def _stdout_kept(alone: bool) -> Iterator[TextIO]:
    """Yield stdout; `alone` sends whatever else prints there, native code and child processes included, to stderr."""
    if not alone:
        yield sys.stdout
        return
    original = sys.stdout
    original.flush()
    with redirect_stdout(sys.stderr):
        if not _is_descriptor_one(original):
            yield original
            return
        kept = os.dup(1)
        os.dup2(2, 1)
        try:
            with os.fdopen(os.dup(kept), "w", encoding="utf-8") as stdout:
                yield stdout
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _is_descriptor_one(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except (io.UnsupportedOperation, AttributeError):
        return False
