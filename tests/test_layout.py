"""The house rules that a machine can check: who imports whom, no pickle, no code from strangers."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOT_PACKAGED = {"tests", "benchmarks", "studies", "build"}
# package -> the packages and modules of ours that it may import, besides errors.py and itself
EVALUATION = {"evaluation.metrics", "evaluation.tasks"}
MAY = {
    "shards": set(),
    "adapters": set(),
    "evaluation.metrics": set(),
    "evaluation.tasks": {"evaluation.metrics"},
    "recipes": set(),
    "precompute": {"shards", "recipes", "paths", "device"},
    "training": {"shards", "adapters", "recipes", "evaluation.controls", "evaluation.metrics"},
    "demo": {"evaluation.tasks"},
    "exports": {"shards", "adapters", "precompute", "inference"},
    "inference": {"shards", "adapters", "precompute", "training"},
    "evaluation": {"shards", "adapters", "precompute", "training", "inference", *EVALUATION},
}
# The command line of a package is a script in all but its place: it may talk to the person.
ENTRIES = {"precompute/__main__.py", "adapters/__main__.py", "exports/__main__.py"}
SOURCES = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in NOT_PACKAGED | {".venv"}]


def package_of(module: str) -> str:
    """The longest package of `MAY` that holds the module (a dotted name inside periscope), or the module itself."""
    fitting = [name for name in MAY if module == name or module.startswith(f"{name}.")]
    return max(fitting, key=len, default=module.split(".")[0])


def imported(path: Path) -> set[str]:
    """The modules that a file imports, absolute."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_import_only_what_they_may(path):
    place = path.relative_to(ROOT).as_posix()
    package = package_of(place.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    if package not in MAY or len(path.relative_to(ROOT).parts) == 1:
        return
    ours = {name.removeprefix("periscope.") for name in imported(path) if name.startswith("periscope.")}
    allowed = MAY[package] | {package, "errors"} | ({"console"} if place in ENTRIES else set())
    assert {package_of(name) for name in ours} <= allowed
    assert not any(name.split(".")[0] in ("studies", "benchmarks") for name in imported(path))


def test_metrics_know_no_torch():
    names = {name for path in (ROOT / "evaluation/metrics").rglob("*.py") for name in imported(path)}
    assert not any(name.split(".")[0] == "torch" for name in names)


def tracked(*patterns: str) -> list[Path]:
    files = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    return [ROOT / name for name in files.stdout.splitlines() if (ROOT / name).exists()]


def test_no_pickle_and_no_code_from_strangers():
    loads = r"torch\.load\((?!.*weights_only=True)|weights_only=False"
    doors = re.compile(rf"\bpickle\b|{loads}|allow_pickle=True|trust_remote_code=True")
    found = [
        path.name
        for path in tracked("*.py")
        if path.relative_to(ROOT).parts[0] != "tests" and doors.search(path.read_text())
    ]
    assert not found


def test_every_package_is_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in ROOT.rglob("__init__.py")}
    found = {".".join(("periscope", *folder.parts)) for folder in folders
             if not folder.parts or folder.parts[0] not in NOT_PACKAGED | {".venv"}}  # fmt: skip
    assert found == set(declared)
