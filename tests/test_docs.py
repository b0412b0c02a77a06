"""The documentation: links resolve, the README is short, and quoted errors are the program's."""

import ast
import multiprocessing
import os
import re
import runpy
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from periscope.cli import COMMANDS, EXPORTS, IMPORTS
from periscope.console import page_about

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
APART = {"tests", "studies", "benchmarks"}
TOOLS = [
    *(["-m", "precompute", tool] for tool in ("verify", "inspect", "merge", "recode", "push", "fetch")),
    *(["periscope", *tool] for tool in (["caption"], ["plan"], ["init"], ["serve"], ["import", "mamba-ssm"])),
    ["periscope", "export", "embeds"],
    *(["-m", "adapters", tool] for tool in ("import-epalm", "export-prompt", "merge-lora")),
]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: a repeated one gets a number."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    found: list[str] = []
    for head in heads:
        name = re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")
        count = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in found)
        found.append(f"{name}-{count}" if count else name)
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        known = file.exists() and file.is_relative_to(ROOT.resolve())
        if not known or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            missing.append(target)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    """`adapters/model.py` and the like are files of the repository; the new_*.md pages also name one to be written."""
    folders = "adapters|training|evaluation|precompute|shards|tests|recipes|studies"
    named = set(re.findall(rf"`((?:{folders})/[\w/-]+\.(?:py|toml))", page.read_text(encoding="utf-8")))
    missing = {name for name in named if not (ROOT / name).exists()}
    assert len(missing) <= page.name.startswith("new_"), missing


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_page_is_in_the_index(page: Path) -> None:
    assert page.name == "README.md" or f"({page.name}" in (ROOT / "docs/README.md").read_text()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_modules_to_run_exist() -> None:
    """`python -m studies.compare` and the like name modules that there are."""
    modules = "studies|benchmarks|demo|scoring|precompute|adapters|training|evaluation"
    for page in set(PAGES) - {ROOT / "CHANGELOG.md"}:
        for name in re.findall(rf"python -m ((?:{modules})[\w.]*)", page.read_text(encoding="utf-8")):
            place = ROOT / name.rstrip(".").replace(".", "/")
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), f"{page.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    """`periscope export merged` and the like, as code, are commands that there are."""
    tools = {"export": EXPORTS, "import": IMPORTS}
    for name, tool in re.findall(r"(?:^ {4}|`)periscope ([a-z]+)(?: ([a-z]+(?:-[a-z]+)*))?", page.read_text(), re.M):
        assert name in COMMANDS and (not tool or tool in tools.get(name, {tool})), f"{page.name}: {name} {tool}"


@cache
def sentences() -> list[str]:
    """Strings of the program, with a gap where a value is filled in; implicitly joined parts are one string."""
    found = []
    tops = [top for top in ROOT.iterdir() if not top.name.startswith((".", "build", *APART))]  # no environments
    for path in (path for top in tops for path in (top.rglob("*.py") if top.is_dir() else [top])):
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def quoted_errors() -> list[str]:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    return [head.partition("`")[2].rpartition("`")[0] for head in re.findall(r"^### (.+)$", text, re.M)]


@pytest.mark.parametrize("error", quoted_errors())
def test_a_quoted_error_is_one_of_the_program(error: str) -> None:
    """Its pieces around each … stand in one string, in this order."""
    pattern = ".*".join(map(re.escape, error.split("…")))
    assert len(error.replace("…", "")) >= 20
    assert any(re.search(pattern, sentence, re.S) for sentence in sentences()), error


@pytest.mark.parametrize("error", [error for error in quoted_errors() if not error.endswith("--resume …")])
def test_an_error_names_its_page(error: str) -> None:
    assert page_about(f"before {error.replace('…', 'this')} after") == " (see docs/troubleshooting.md)"


def test_an_error_that_no_page_explains_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert page_about("another error") == ""
    assert page_about("no run in runs/ yet; train one first: python train.py --adapter mlp16") == ""
    monkeypatch.setattr("periscope.console.TROUBLESHOOTING", ROOT / "nowhere.md")
    assert page_about("has no words to train on") == ""


def test_twenty_errors_are_explained() -> None:
    assert len(set(quoted_errors())) >= 20


# Flags of other programs that the pages call.
OTHERS = {
    *("--nproc-per-node", "--nnodes", "--no-python", "--rdzv-backend", "--rdzv-endpoint"),  # torchrun
    *("--local-dir", "--repo-type"),  # hf download
    *("--logdir",),  # tensorboard
    *("--chat-template-file", "--jinja", "--mmproj", "--temp"),  # llama.cpp
    *("--enable-lora", "--enable-prompt-embeds"),  # vLLM
    *("--model",),  # lmms_eval
}


def print_each_help(place: Path) -> None:
    """Write the --help of every script and tool to a file, in a process that may be changed by them."""
    from periscope.cli import main

    os.chdir(ROOT)
    os.environ["COLUMNS"] = "200"
    with open(place, "w") as written, redirect_stdout(written):
        for name, *tool in (["precompute.py"], ["train.py"], ["eval.py"], *TOOLS):
            sys.argv = [*tool, "--help"] if name == "-m" else [name, *tool, "--help"]
            try:
                if name == "periscope":
                    main()
                elif name == "-m":
                    runpy.run_module(tool[0], run_name="__main__")
                else:
                    runpy.run_path(name, run_name="__main__")
            except SystemExit as end:
                assert not end.code, (name, tool)
            else:
                raise AssertionError(f"{name} {tool} went on after --help")


def test_every_flag_in_the_pages_is_one_of_the_program(tmp_path: Path) -> None:
    """Of the scripts and tools by their --help, of studies and benchmarks by their names in the source."""
    process = multiprocessing.get_context("fork").Process(target=print_each_help, args=(tmp_path / "help",))
    process.start()
    process.join()
    assert not process.exitcode
    known = {*OTHERS, *re.findall(r"--[a-z][a-z0-9-]*", (tmp_path / "help").read_text())}
    apart = "".join(path.read_text() for name in ("studies", "benchmarks") for path in (ROOT / name).glob("*.py"))
    known |= {f"--{name.replace('_', '-')}" for name in re.findall(r"^    (\w+): .* = ", apart, re.M)}
    known |= set(re.findall(r"--[a-z][a-z0-9-]*", apart))
    unknown = {}
    for page in set(PAGES) - {ROOT / "CHANGELOG.md"}:
        said = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", page.read_text(encoding="utf-8")))
        if said - known:
            unknown[page.name] = sorted(said - known)
    assert unknown == {}
