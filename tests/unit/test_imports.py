"""Who may import whom: read from the source, so that a wrong import fails before anything runs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import raydml

PACKAGE = Path(raydml.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

BASE = {"errors", "files", "catalogue", "spec"}
LOWER = BASE | {"membership", "data", "models", "parallel", "losses"}
UPPER = LOWER | {"evaluation", "search", "training"}

# A part of raydml -> the parts that its files may import, at the top or inside functions.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "catalogue": {"errors"},
    "spec": {"errors", "catalogue"},
    "specfile": BASE,
    "plugins": {"errors"},
    "membership": BASE,
    "data": BASE,
    "models": BASE | {"data", "plugins"},
    "datasets": {"errors", "files"},
    "client": {"errors", "spec"},
    "starter": BASE | {"data", "specfile"},
    "parallel": BASE | {"membership", "data", "models"},
    "losses": BASE | {"membership", "data", "models", "parallel", "plugins"},
    "evaluation": LOWER,
    "search": LOWER | {"evaluation"},
    "training": LOWER | {"evaluation"},
    "environment": {"errors"},
    "progress": {"spec", "training"},
    "card": {"files", "spec"},
    "tracking": {"errors", "files", "spec", "training"},
    "runs": UPPER | {"specfile"},
    "indexing": {"errors", "spec", "data", "search", "training", "runs"},
    "comparison": UPPER | {"specfile", "runs"},
    "run": UPPER | {"specfile", "environment", "progress", "card", "runs", "indexing", "plugins", "tracking"},
    "tuning": UPPER | {"specfile", "run", "runs"},
    "jobs": UPPER | {"specfile", "starter", "plugins", "progress", "runs", "run", "tuning"},
    "measuring": BASE | {"data", "models", "parallel", "training"},
    "plan": BASE | {"membership", "data", "models", "parallel"},
    "report": {"errors"},
    "doctor": {"errors"},
    "demo": UPPER | {"run", "runs", "progress", "report", "specfile"},
    "cli": UPPER
    | {"datasets", "run", "runs", "comparison", "measuring", "progress", "report", "specfile", "plan", "demo", "doctor"}
    | {"starter", "jobs", "client", "tuning"},
    "__init__": {"errors", "spec", "models", "search", "run", "runs", "comparison", "client", "tuning"},
}

# What the command line may load before a command runs.
LIGHT = {"cli", "errors", "doctor"}

# A library -> the files (or folders, ending in /) that may import it.
RESERVED: dict[str, tuple[str, ...]] = {
    "ray.train": ("training/fleet/",),
    "ray": ("training/fleet/", "training/driver.py", "training/member.py", "tuning/runner.py"),
    "faiss": ("search/", "evaluation/"),
    "pytorch_metric_learning": ("losses/",),
    "sklearn": ("evaluation/clustering.py",),
    "scipy": ("evaluation/",),
    "transformers": ("models/transformers_backbone.py", "data/text.py"),
    "tokenizers": ("data/text.py",),
    "fontTools": ("datasets/",),
    "resvg_py": ("datasets/",),
    "sqlalchemy": ("jobs/",),
    "alembic": ("jobs/",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "mlflow": ("tracking/",),
    "torch.utils.tensorboard": ("tracking/",),
    "api": ("cli/service.py", "cli/keys.py", "client/local.py"),
    "matplotlib": ("data/", "report.py"),
    "optuna": ("tuning/tpe.py",),
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of every module that the source imports, with `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import_time(tree: ast.Module) -> ast.Module:
    """The tree without the bodies of functions and of `if TYPE_CHECKING`."""

    class Outline(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None: ...

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None: ...

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Outline().visit(tree)  # type: ignore[no-any-return]


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def parts_imported(tree: ast.AST) -> set[str]:
    names = (name.split(".") for name in imported(tree))
    found = {name[1] for name in names if name[0] == "raydml" and len(name) > 1}
    return {name for name in found if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_file_imports_only_what_its_part_may(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"raydml/{part} has no row in the table of imports"
    wrong = parts_imported(ast.parse(path.read_text())) - {part} - MAY_IMPORT[part]
    assert not wrong, f"raydml/{part} may not import {sorted(wrong)}"


def test_the_table_of_imports_has_no_cycle() -> None:
    done: set[str] = set()
    while ready := {part for part, below in MAY_IMPORT.items() if part not in done and below <= done}:
        done |= ready
    assert done == set(MAY_IMPORT)


@pytest.mark.parametrize("library", RESERVED)
def test_a_reserved_library_is_imported_only_in_its_place(library: str) -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(f"{name}.".startswith(f"{library}.") for name in imported(ast.parse(path.read_text())))
    }
    strangers = {user for user in users if not user.startswith(RESERVED[library])}
    assert not strangers, f"{library} is imported in {sorted(strangers)}"
    assert users, f"nothing imports {library}: drop its row"


def test_a_client_of_a_server_loads_no_part_of_it() -> None:
    for path in PACKAGE.glob("client/*.py"):
        outline = at_import_time(ast.parse(path.read_text()))
        wrong = {name for name in imported(outline) if name.split(".")[0] in ("api", "numpy", "pandas", "structlog")}
        assert not wrong, f"{path.name} imports {sorted(wrong)} outside of functions"


def test_the_command_line_loads_nothing_heavy_before_a_command_runs() -> None:
    for path in [*PACKAGE.glob("cli/*.py"), PACKAGE / "__init__.py"]:
        outline = at_import_time(ast.parse(path.read_text()))
        wrong = parts_imported(outline) - LIGHT | {name for name in imported(outline) if name.startswith("api.")}
        assert not wrong, f"{path.name} imports {sorted(wrong)} outside of functions"


@pytest.mark.parametrize(
    "line",
    [
        "import raydml",
        "import raydml; raydml.JobSpec",
        "import raydml; raydml.Client(); raydml.AsyncClient()",
        "from raydml.cli import main; main(['--help'])",
    ],
)
def test_neither_torch_nor_ray_is_loaded_by(line: str) -> None:
    assert loaded_by(line, "torch", "ray", "faiss", "numpy") == []


@pytest.mark.parametrize("module", ["api.serve", "api.supervise", "api.app"])
def test_no_process_of_a_server_loads_torch_before_somebody_asks_for_it(module: str) -> None:
    assert loaded_by(f"import {module}", "torch", "ray", "matplotlib") == []


def test_a_worker_beyond_the_minimum_loads_no_ray_train() -> None:
    assert loaded_by("import raydml.training.member", "ray.train", "ray.data", "pandas") == []


def loaded_by(line: str, *libraries: str) -> list[str]:
    check = f"import sys; print(*sorted({set(libraries)!r} & set(sys.modules)))"
    script = f"try:\n    {line}\nexcept SystemExit:\n    pass\n{check}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return result.stdout.splitlines()[-1].split()
