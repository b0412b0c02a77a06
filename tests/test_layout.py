"""The rules of CONTRIBUTING.md that a machine can check: imports, folders, no pickle, no remote code."""

import ast
import re
import subprocess
from collections.abc import Collection, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
APART = {"tests", "studies", "benchmarks"}  # Python that isn't part of the package
SCRIPTS = {"train", "eval", "cli"}  # and precompute.py, whose name the package has
MOST_FILES = 12
CROWDED = {"precompute/sources", "."}  # one file a dataset layout; the root also has the scripts
# Each package or module -> what it may import of Periscope besides itself and errors.py. What may be imported by a path
# inside a package has a row of its own; all else belongs to the longest row that contains it.
MAY: dict[str, set[str]] = {
    "errors": set(),
    "atomic": set(),
    "checked": set(),
    "paths": set(),
    "positions": set(),
    "device": set(),
    "console": {"atomic", "text"},
    "bars": set(),
    "charts": set(),
    "flags": {"console"},
    "units": set(),
    "weights": set(),
    "text": set(),
    "quiet": set(),
    "model_folders": set(),
    "hub_repo": {"paths"},
    "recipes": {"checked"},
    "exports.ways": set(),
    "shards": {"atomic", "checked", "hub_repo", "paths", "positions"},
    "adapters.limits": set(),
    "adapters.prompting": {"adapters.limits"},
    "adapters": {
        *("atomic", "checked", "device", "quiet", "hub_repo", "paths", "weights", "model_folders"),
        *("adapters.limits", "adapters.prompting"),
    },
    "chat_session": {"adapters", "adapters.prompting"},
    "evaluation.metrics": set(),
    "evaluation.tasks": {"evaluation.metrics"},
    "evaluation.controls": {"evaluation.metrics", "shards"},
    "evaluation.scoring.prediction": {"evaluation.controls", "evaluation.metrics"},
    "evaluation.scoring.measures": {"evaluation.metrics", "evaluation.tasks", "evaluation.scoring.prediction"},
    "evaluation.training_scores": {
        *("evaluation.metrics", "evaluation.tasks"),
        *("evaluation.scoring.prediction", "evaluation.scoring.measures"),
    },
    "demo": {"evaluation.tasks"},
    "precompute": {
        *("atomic", "checked", "shards", "recipes", "paths", "device", "flags", "units", "text", "quiet"),
        *("adapters.prompting", "exports.ways", "bars", "console", "hub_repo", "weights", "model_folders"),
    },
    "training": {
        *("atomic", "checked", "shards", "adapters", "recipes", "paths", "device", "console", "flags", "units", "text"),
        *("adapters.prompting", "exports.ways", "bars", "charts", "model_folders"),
        *("evaluation.metrics", "evaluation.controls", "evaluation.training_scores"),
    },
}
LOWER = set(MAY) - {"demo"}
MAY |= {
    "places": LOWER,
    "inference": LOWER | {"places"},
    "loading": {"adapters", "places", "inference"},
    "forecast": LOWER | {"places"},
    "propose": LOWER | {"forecast"},
    "evaluation": LOWER | {"inference", "places"},
    "exports": LOWER | {"inference", "places"},
    "serving": LOWER | {"inference", "evaluation"},
    "": {"loading"},  # __init__.py
}
# Imports of a module whose name is made at run time.
AT_RUN_TIME = {("precompute", "demo")}  # precompute.py without --data draws the demo's media


def sources(*folders: str) -> list[Path]:
    """The Python files of the package, or those of `folders`. Environments aren't searched."""
    tops = [top for top in ROOT.iterdir() if not top.name.startswith((".", "build"))]
    tops = [top for top in tops if (top.name in (folders or APART)) == bool(folders)]
    return sorted(
        path for top in tops for path in (top.rglob("*.py") if top.is_dir() else [top]) if path.suffix == ".py"
    )


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """The dotted name inside periscope: "adapters.lm.lora", "adapters.lm" for its __init__.py, "" for the root's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """The longest row of `MAY` that contains the module, or the module itself."""
    fitting = [name for name in MAY if name and (module == name or module.startswith(f"{name}."))]
    return max(fitting, key=len, default=module)


def is_entry(path: Path) -> bool:
    """True for what a person starts: the scripts, the command and the __main__ files."""
    return path.name == "__main__.py" or place(path) in {"precompute.py", *(f"{name}.py" for name in SCRIPTS)}


FILES = {module_of(path): path for path in sources() if place(path) != "precompute.py"}


def nodes_of(tree: ast.AST, module_level: bool) -> Iterator[ast.AST]:
    """All nodes, or those that run when the module is imported: not in a function, not under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        if module_level and (later or for_types):
            continue
        yield node
        yield from nodes_of(node, module_level)


@cache
def imported(path: Path, module_level: bool = False) -> frozenset[str]:
    """Absolute names of the modules and members that a file imports."""
    names: set[str] = set()
    for node in nodes_of(ast.parse(path.read_text(encoding="utf-8")), module_level):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{place(path)}:{node.lineno}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def ours(names: Collection[str]) -> set[str]:
    """The modules of Periscope among imported names; "periscope.a.b.Name" is the module "a.b"."""
    found = set()
    for name in names:
        if name == "periscope" or name.startswith("periscope."):
            module = name.removeprefix("periscope").removeprefix(".")
            found.add(module if module in FILES else module.rpartition(".")[0])
    return found


def made_at_run_time(path: Path) -> set[str]:
    """Starts of module names of Periscope in calls of import_module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            said = re.findall(r"periscope\.([\w.]*)", ast.unparse(node.args[0]))
            found |= {package_of(name.strip(".")) for name in said}
    return found


@pytest.mark.parametrize("path", sources(), ids=place)
def test_a_file_imports_only_what_its_package_may(path: Path) -> None:
    package = package_of(module_of(path))
    names = imported(path)
    assert not {name.split(".")[0] for name in names} & (APART | SCRIPTS | {"precompute", "periscope_adapters"})
    if is_entry(path):
        return
    assert package in MAY, f"{place(path)} belongs to no package of the import rules"
    allowed = MAY[package] | {package, "errors"}
    assert {package_of(name) for name in ours(names)} <= allowed
    assert {(package, other) for other in made_at_run_time(path) if other != package} <= AT_RUN_TIME


def test_every_rule_is_about_something() -> None:
    assert all(name in FILES for name in MAY)
    assert all(other in MAY for allowed in MAY.values() for other in allowed)


def test_the_layers_have_no_circles() -> None:
    """evaluation is above training, and its parts that training reads are below it."""
    list(TopologicalSorter(MAY).static_order())


def test_no_file_imports_itself_through_others() -> None:
    graph = {name: ours(imported(path, module_level=True)) - {name, ""} for name, path in FILES.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_nothing_imports_a_script() -> None:
    for path in sources():
        if place(path) != "cli.py":
            assert not ours(imported(path)) & SCRIPTS, place(path)


def test_tests_studies_and_benchmarks_import_absolutely() -> None:
    for path in sources(*APART):
        assert not re.search(r"^\s*from \.", path.read_text(encoding="utf-8"), re.M), place(path)


@pytest.mark.parametrize(
    "rule", ["a circle", "an import in a function", "a name made at run time", "a relative import"]
)
def test_a_broken_rule_is_seen(rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules are checked by this file's own functions, so these are tried on files that break them."""
    texts = {
        "shards/__init__.py": "",
        "shards/one.py": "from periscope.shards.two import x\n",
        "shards/two.py": "from periscope.shards import one\n",
        "training/__init__.py": "",
        "adapters/__init__.py": "def f():\n    from periscope.training import y\n",
        "adapters/io.py": "import importlib\nimportlib.import_module(f'periscope.training.{x}')\n",
        "adapters/lm.py": "from . import io\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "FILES", {module_of(path): path for path in sources()})
    if rule == "a circle":
        with pytest.raises(pytest.fail.Exception, match=r"shards\.\w+ -> shards\.\w+"):
            FILES.pop("adapters.lm")
            test_no_file_imports_itself_through_others()
    elif rule == "an import in a function":
        with pytest.raises(AssertionError):
            test_a_file_imports_only_what_its_package_may(tmp_path / "adapters/__init__.py")
    elif rule == "a name made at run time":
        with pytest.raises(AssertionError):
            test_a_file_imports_only_what_its_package_may(tmp_path / "adapters/io.py")
    else:
        with pytest.raises(AssertionError, match="relative import"):
            imported(tmp_path / "adapters/lm.py")


def test_no_folder_is_crowded() -> None:
    counts: dict[str, int] = {}
    for path in sources():
        counts[place(path.parent)] = counts.get(place(path.parent), 0) + (path.name != "__init__.py")
    assert {folder: n for folder, n in counts.items() if n > MOST_FILES and folder not in CROWDED} == {}


def test_metrics_know_no_torch() -> None:
    names = {name for path in (ROOT / "evaluation/metrics").rglob("*.py") for name in imported(path)}
    assert not any(name.split(".")[0] == "torch" for name in names)


def tracked(*patterns: str) -> list[Path]:
    files = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    return [ROOT / name for name in files.stdout.splitlines() if (ROOT / name).exists()]


def test_no_pickle_and_no_code_from_strangers() -> None:
    loads = r"torch\.load\((?!.*weights_only=True)|weights_only=False"
    doors = re.compile(rf"\bpickle\b|{loads}|allow_pickle=True|trust_remote_code=True")
    found = [
        path.name
        for path in tracked("*.py")
        if path.relative_to(ROOT).parts[0] != "tests" and doors.search(path.read_text())
    ]
    assert not found
