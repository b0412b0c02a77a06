"""A score in the form of the Hub's leaderboards: `.eval_results/NAME.yaml`, for benchmarks that are registered there.

A dataset of the Hub is a benchmark where it has an eval.yaml, which names its tasks
(https://huggingface.co/docs/hub/eval-results).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, HfApi, RepoFile, eval_result_entries_to_yaml, hf_hub_download

from periscope.adapters.io.card import CONTROLS, OVERALL
from periscope.errors import AdapterError
from periscope.hub_repo import sentences

FOLDER, TASKS = ".eval_results", "eval.yaml"
MOST = 1 << 20  # bytes of a benchmark's eval.yaml


def write_eval_result(staged: Path, result: Mapping[str, Any], benchmark: str, repo: str) -> Path:
    """Write the score of `result`, the content of eval.json, into the folder to be shared; return the file.

    benchmark: OWNER/NAME of the Hub, or OWNER/NAME:TASK where it has several tasks. Raises AdapterError for a dataset
    that is no benchmark, and for scores that aren't those of a whole benchmark.
    """
    name, _, task = benchmark.partition(":")
    split, scores = _whole_split(result)
    score, value = _main_score(scores)
    controls = [
        f"{control} {scores[control][score]:.4g}" for control in CONTROLS if score in (scores.get(control) or {})
    ]
    notes = f"{score} as {result['task']} of Periscope, {split} split" + "".join(f"; {words}" for words in controls)
    entry = EvalResultEntry(name, task_of(name, task), value, source_url=f"https://huggingface.co/{repo}", notes=notes)
    path = staged / FOLDER / f"{name.rpartition('/')[2]}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")
    return path


def task_of(name: str, task: str = "") -> str:
    """The task of the Hub's benchmark `name`: `task`, or its only one. Raises AdapterError when there is none."""
    with sentences(name, AdapterError, repo=name, kind="dataset"):
        entries = HfApi().get_paths_info(name, [TASKS], repo_type="dataset")
        if not any(isinstance(entry, RepoFile) and entry.size <= MOST for entry in entries):
            raise AdapterError(f"{name} on the Hub is no registered benchmark: it has no {TASKS}")
        text = Path(hf_hub_download(name, TASKS, repo_type="dataset")).read_text(encoding="utf-8")
    try:
        tasks = [str(row["id"]) for row in yaml.safe_load(text)["tasks"]]
    except (yaml.YAMLError, KeyError, TypeError):
        raise AdapterError(f"{name} on the Hub has an {TASKS} that names no tasks") from None
    if task not in tasks and (task or len(tasks) != 1):
        raise AdapterError(
            f"--benchmark {name} needs one of its tasks, as {name}:{tasks[0]}; it has {', '.join(tasks)}"
        )
    return task or tasks[0]


def _whole_split(result: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The first split of a run that was scored as a benchmark, all of it, with its scores. Raises AdapterError."""
    if not result.get("task") or not result.get("splits") or not result.get("finished", True):
        raise AdapterError("--benchmark needs the scores of a benchmark: first score the run on it, with --task")
    split, scores = next(iter(result["splits"].items()))
    if any("--limit" in note for note in scores.get("warnings") or ()):
        raise AdapterError("--benchmark needs the scores of the whole benchmark: score the run again without --limit")
    return split, scores


def _main_score(scores: Mapping[str, Any]) -> tuple[str, float]:
    real = scores["real"]
    name = next((name for name in (*OVERALL, *real) if name in real), None)
    if name is None:
        raise AdapterError("--benchmark needs a score, and this run has none: score it again")
    return name, float(real[name])
