"""docs/photos.ipynb: it has no outputs, and all of its cells run, in order, with tiny models on photos of the demo."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from periscope.demo.scenes import make

NOTEBOOK = Path(__file__).parents[1] / "docs" / "photos.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def python_of(cell: dict) -> str:
    """A cell as Python: `!command` and `%pip` become calls of `shell`, with {names} filled in as IPython does."""
    lines = []
    for line in "".join(cell["source"]).split("\n"):
        lines.append(f"shell(f{line[1:]!r})" if line.startswith(("!", "%")) else line)
    return "\n".join(lines)


def test_it_is_stored_without_outputs() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CODE)


def test_each_cell_is_python() -> None:
    for cell in CODE:
        compile(python_of(cell), cell["id"], "exec")
    assert sum("parameters" in cell["metadata"].get("tags", ()) for cell in CODE) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_runs_from_end_to_end_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "photos", train=20, heldout=4, new_pairs=0)
    (tmp_path / "bin").mkdir()
    start = "import sys; sys.argv[0] = 'periscope'; from periscope.cli import main; main()"
    program = tmp_path / "bin" / "periscope"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{start}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for name, value in {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    commands = []

    def shell(command: str) -> None:
        commands.append(command)
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and "Traceback" not in done.stderr, command + done.stdout + done.stderr

    names: dict = {"shell": shell}
    for cell in CODE:
        if "install" in cell["metadata"].get("tags", ()):
            continue  # it is installed
        exec(compile(python_of(cell), cell["id"], "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            names |= {"WORK": "work", "PRECISION": "fp32", "MORE": "--tiny"}
    assert [re.sub("periscope (export )?", "", command).split()[0] for command in commands] == [
        *("plan", "precompute", "train", "eval"),
        *("check", "gguf"),
    ]
    work = tmp_path / "work"
    assert len(names["answers"]) == 3 and all(
        isinstance(answer, str) for answer in names["answers"].values() for answer in answer
    )
    assert (work / "runs/first/eval.json").is_file() and (work / "runs/first/report.html").is_file()
    assert list((work / "export").glob("*.gguf"))
    assert (work / "adapter.zip").stat().st_size > 1000
