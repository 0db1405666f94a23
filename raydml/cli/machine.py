"""The doctor command: is this machine able to train and search?"""

from __future__ import annotations

import typer

from raydml.cli.output import FAILED, Json, answering


def doctor(as_json: Json = False) -> None:
    """Check versions, GPUs, Ray, Faiss and disk; each problem comes with the way out."""
    with answering(as_json) as answer:
        from raydml.cli.tables import checks_table
        from raydml.doctor import examine

        checks = examine()
        healthy = all(check.ok for check in checks)
        answer({"ok": healthy, "checks": [check.to_dict() for check in checks]}, checks_table(checks))
    if not healthy:
        raise typer.Exit(FAILED)
