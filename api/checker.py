"""The process that looks at specs for a server: a JSON line in, a JSON line out, until its stdin ends.

It opens data and builds models, which may take long or all memory: the server itself must do neither.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from raydml import run
from raydml.data import open_dataset
from raydml.errors import RaydmlError
from raydml.plan import plan
from raydml.specfile import parse_spec
from raydml.tuning import study


def main() -> None:
    """Answer line by line: {"spec": ..., "home": ..., "plan": ...} -> {"plan": ...} or {"error": ...}."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # the first to go where memory ends
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not be among the answers
    out.write("\n")  # everything is loaded
    out.flush()
    for line in sys.stdin:
        out.write(json.dumps(_answer(json.loads(line))) + "\n")
        out.flush()


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    try:
        spec, home = parse_spec(asked["spec"]), Path(asked["home"])
        if asked["plan"]:
            return {"plan": plan(spec, open_dataset(spec.data, home), home).to_dict()}
        collections = Path(asked["collections"])
        if spec.tune is not None:
            study.check(spec, home, collections)
        else:
            run.check(spec, home, collections)
        return {"plan": None}
    except RaydmlError as error:
        return {"error": {"kind": type(error).__name__, "message": error.message}}


if __name__ == "__main__":
    main()
