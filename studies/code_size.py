"""Size and complexity of the code: `python -m studies.code_size [--folder FOLDER]`, from a clone.

Counts tracked Python files by part of the repository. To measure an earlier commit, check it out into another folder:
`git worktree add FOLDER COMMIT`. Complexity is McCabe's, counted by ruff (C901).
"""

import ast
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent
APART = ("tests", "benchmarks", "studies")  # everything else is the package
MOST = 10  # complexity


@dataclass
class Options:
    """What to count."""

    folder: Path = ROOT
    """A clone, or a worktree of an earlier commit."""


def main() -> None:
    """Print one row for the package and for each part beside it."""
    folder = tyro.cli(Options, description=__doc__).folder.resolve()
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=folder, check=True, capture_output=True, text=True)
    files = [Path(line) for line in listed.stdout.splitlines() if (folder / line).is_file()]
    print(
        f"{'':<11} files   lines  most files in a folder        longest function                functions over {MOST}"
    )
    for part in ("package", *APART):
        some = [file for file in files if (file.parts[0] if file.parts[0] in APART else "package") == part]
        if some:
            print(row(part, folder, some))


def row(name: str, folder: Path, files: list[Path]) -> str:
    """The counts of `files`, relative to `folder`."""
    texts = {file: (folder / file).read_text(encoding="utf-8") for file in files}
    lines = sum(bool(line.strip()) for text in texts.values() for line in text.splitlines())
    crowded, most = Counter(file.parent.as_posix() for file in files).most_common(1)[0]
    length, longest = max(found for file, text in texts.items() for found in functions(file, text))
    over = complex_functions(folder, files)
    return f"{name:<11} {len(files):>5} {lines:>7}  {most:>3} in {crowded:<22} {length:>4} {longest:<26} {over:>5}"


def functions(file: Path, text: str) -> list[tuple[int, str]]:
    """(lines from def to end, where) of each function of a file."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    return [((node.end_lineno or 0) - node.lineno + 1, f"{file}:{node.name}") for node in nodes] or [(0, "")]


def complex_functions(folder: Path, files: list[Path]) -> int:
    """How many functions have more than MOST independent paths."""
    call = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "C901", "--output-format", "json"]
    call += ["--config", f"lint.mccabe.max-complexity={MOST}", "--exit-zero", *map(str, files)]
    return len(json.loads(subprocess.run(call, cwd=folder, check=True, capture_output=True, text=True).stdout))


if __name__ == "__main__":
    main()
