"""The house rules that a machine can check: who imports whom, no pickle, no code from strangers."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {
    "precompute",
    "shards",
    "adapters",
    "training",
    "scoring",
    "live",
    "evaluation",
    "console",
    "demo",
    "train",
    "eval",
    "benchmarks",
}
MAY = {
    "shards": set(),
    "adapters": set(),
    "scoring": set(),
    "precompute": {"shards"},
    "training": {"shards", "adapters"},
    "live": {"shards", "adapters", "precompute", "training"},
    "evaluation": {"shards", "adapters", "precompute", "training", "scoring", "live"},
    "sharing": {"adapters", "scoring", "live"},
    "console": {"shards", "adapters", "precompute", "training", "scoring"},
}
# The command line of a package is a script in all but its place: it may talk to the person.
ENTRIES = {"precompute/cli.py", "precompute/__main__.py", "adapters/__main__.py"}
SOURCES = sorted(
    path for room in MAY for path in ([ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() and room not in
    ("precompute",) else (ROOT / room).rglob("*.py"))
)  # fmt: skip


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path):
    place = path.relative_to(ROOT).as_posix()
    room = place.split("/")[0].removesuffix(".py")
    allowed = MAY[room] | {room} | ({"console"} if place in ENTRIES else set())
    assert (imported(path) & OURS) <= allowed


def test_scoring_knows_no_torch():
    assert not any("torch" in imported(path) for path in (ROOT / "scoring").rglob("*.py"))


def tracked(*patterns: str) -> list[Path]:
    files = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    return [ROOT / name for name in files.stdout.splitlines() if (ROOT / name).exists()]


def test_no_pickle_and_no_code_from_strangers():
    loads = r"torch\.load\((?!.*weights_only=True)|weights_only=False"
    doors = re.compile(rf"\bpickle\b|{loads}|allow_pickle=True|trust_remote_code=True")
    found = [path.name for path in tracked("*.py") if path.parent.name != "tests" and doors.search(path.read_text())]
    assert not found


def test_every_package_is_declared():
    declared = re.search(r"packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.S)[1]
    named = set(re.findall(r'"([\w.]+)"', declared))
    found = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in ROOT.glob("*/**/__init__.py")
             if not path.relative_to(ROOT).parts[0].startswith((".", "tests", "build"))}  # fmt: skip
    assert found <= named, found - named
