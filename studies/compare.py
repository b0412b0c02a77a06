"""Compare all projectors on the demo for the same training time: `python -m studies.compare`.

Runs the three scripts as a user would: each variant and seed is a run of its own in runs/compare/, on one thread. A
short pilot run determines how many steps fit into the time. After every run the results are added to
docs/comparison.json, so that an interrupted comparison continues; docs/comparison.md and .png are made from that file.
"""

import json
import os
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from periscope.charts import OTHER, OWN, panels, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
FOUND = ROOT / "docs" / "comparison.json"
PAGE = ROOT / "docs" / "comparison.md"
BEGIN, END = "<!-- made by studies.compare -->", "<!-- end -->"
SCORES = ("caption_scene", "caption_objects", "qa_accuracy")
PILOT = 30
PLAIN = ["--projector-hidden", "0", "--start-words", "", "--token-noise", "0.0"]  # without the demo's recipe

VARIANTS: dict[str, tuple[str, list[str]]] = {
    "linear1": ("linear1", []),
    "mlp1": ("mlp1", []),
    "linear16": ("linear16", []),
    "mlp8": ("mlp8", []),
    "mlp16": ("mlp16", PLAIN),
    "mlp16, the demo's recipe": ("mlp16", []),
    "clipcap10": ("clipcap10", []),
    "linear": ("linear", []),
    "mlp": ("mlp", []),
    "fusedmlp": ("fusedmlp", []),
    "group9": ("group9", []),
    "window3": ("window3", []),
    "shuffle2": ("shuffle2", []),
    "perceiver16": ("perceiver16", []),
    "mapl16": ("mapl16", []),
    "ldp": ("ldp", []),
    "ldpv2": ("ldpv2", []),
    "fusedldp": ("fusedldp", []),
    "mlp, no delimiters": ("mlp", ["--delimiters", "", ""]),
    "mlp, no end learnt": ("mlp", ["--eos", "False"]),
    "mlp, soft prompt of 10": ("mlp", ["--soft-prompt", "10"]),
}


@dataclass
class Options:
    """What to compare."""

    seconds: float = 60
    """Training time of each run, on one thread."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the adapter's start and of the order of texts."""
    only: tuple[str, ...] = ()
    """These variants alone; none: all."""
    texts: int = 900
    """Held-out texts of each kind that are scored (9 a scene); 0: all."""
    tables: bool = False
    """Only make the table and the picture from what was found before."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if not options.tables:
        features = ROOT / "features" / "compare"
        if not (features / "manifest.json").is_file():
            script("precompute.py", "--kinds", "pooled", "patches", "--out", str(features))
        for seed in options.seeds:
            for name in options.only or VARIANTS:
                if (name, seed) not in {(row["variant"], row["seed"]) for row in known()}:
                    measure(name, seed, features, options)
    rows = known()
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}")
    (ROOT / "docs" / "comparison.png").write_bytes(png(picture(rows)))


def known() -> list[dict]:
    """Results so far, one row per run."""
    return json.loads(FOUND.read_text()) if FOUND.is_file() else []


def measure(name: str, seed: int, features: Path, options: Options) -> None:
    """Train and score one variant with one seed, and add the result to docs/comparison.json."""
    adapter, flags = VARIANTS[name]
    stem = "-".join(re.findall(r"\w+", name))
    common = ["--adapter", adapter, "--features", str(features), *flags, "--device", "cpu"]
    pilots = [row["seconds_a_step"] for row in known() if row["variant"] == name]
    if not pilots:
        pilots = [pilot([*common, "--name", f"compare-{stem}-pilot"])]
    steps = max(1, round(options.seconds / pilots[0]))
    run = f"compare-{stem}-{seed}"
    length = ["--steps", str(steps), "--eval-every", str(steps), "--seed", str(seed), "--name", run]
    script("train.py", *common, *length)
    script("eval.py", "--run", f"runs/{run}", "--limit", str(options.texts), "--device", "cpu")
    took = [row["seconds"] for row in metrics(run) if "seconds" in row]
    scored = json.loads((ROOT / "runs" / run / "eval.json").read_text())
    about = json.loads(next((ROOT / "runs" / run).glob("steps/*/adapter/adapter.json")).read_text())
    row = {
        "variant": name,
        "seed": seed,
        "adapter": adapter,
        "tokens": about["tokens"],
        "steps": steps,
        "seconds_a_step": pilots[0],
        "seconds": round(sum(took), 1),
        "scores": {split: part_of(found) for split, found in scored["splits"].items()},
    }
    FOUND.write_text(json.dumps([*known(), row], indent=1) + "\n")


def part_of(found: dict) -> dict:
    """The scores to compare, real and shuffled."""
    return {kind: {name: round(found[kind][name], 4) for name in SCORES} for kind in ("real", "shuffled")}


def pilot(flags: list[str]) -> float:
    """Median seconds per step."""
    name = flags[-1]
    if not (ROOT / "runs" / name).exists():
        script("train.py", *flags, "--steps", str(PILOT), "--eval-every", str(PILOT))
    return statistics.median(row["seconds"] for row in metrics(name)[PILOT // 3 :] if "seconds" in row)


def metrics(run: str) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (ROOT / "runs" / run / "metrics.jsonl").read_text().splitlines()]


def script(*command: str) -> None:
    """Run one of the three scripts on one thread; its output goes to runs/compare.log."""
    (ROOT / "runs").mkdir(exist_ok=True)
    with open(ROOT / "runs" / "compare.log", "a") as log:
        print("$ python", *command, file=log, flush=True)
        one = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=log, stderr=log, env=one)
    if done.returncode:
        raise SystemExit(f"python {' '.join(command)} failed; see runs/compare.log")


def spread(values: list[float]) -> str:
    """Mean ± half the range; a single value as it is."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {(max(values) - min(values)) / 2:.2f}"


def table(rows: list[dict]) -> str:
    """A Markdown table with one row per variant: mean over seeds ± half the range."""
    lines = [
        "| projector | tokens | steps | scenes named | shuffled | questions | shuffled | named, new pairs "
        "| questions, new pairs | seeds |",
        "| --- | ---: | ---: | --- | --- | --- | --- | --- | --- | ---: |",
    ]
    for name, group in by_variant(rows).items():
        splits = list(group[0]["scores"])

        def cell(split: str, kind: str, score: str, group: list[dict] = group) -> str:
            return spread([row["scores"][split][kind][score] for row in group])

        new = splits[1] if len(splits) > 1 else splits[0]
        cells = [
            cell(splits[0], "real", "caption_scene"),
            cell(splits[0], "shuffled", "caption_scene"),
            cell(splits[0], "real", "qa_accuracy"),
            cell(splits[0], "shuffled", "qa_accuracy"),
            cell(new, "real", "caption_scene"),
            cell(new, "real", "qa_accuracy"),
        ]
        steps = round(statistics.mean(row["steps"] for row in group))
        lines.append(f"| {name} | {group[0]['tokens']} | {steps} | {' | '.join(cells)} | {len(group)} |")
    return "\n".join(lines)


def by_variant(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows by variant, highest question accuracy first."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["variant"], []).append(row)

    def score(group: list[dict]) -> float:
        return statistics.mean(next(iter(row["scores"].values()))["real"]["qa_accuracy"] for row in group)

    return dict(sorted(groups.items(), key=lambda item: -score(item[1])))


def picture(rows: list[dict]) -> "Figure":
    """One dot per run: scenes named and questions answered, with hollow dots for the controls."""
    groups = by_variant(rows)
    titles = {"caption_scene": "scenes named completely", "qa_accuracy": "questions answered right"}
    figure, axes = panels(10, 1.4 + 0.25 * len(groups), columns=len(titles), sharey=True)
    points = [
        (place, next(iter(row["scores"].values()))) for place, group in enumerate(groups.values()) for row in group
    ]
    marks = {"real": ("own features, one dot for each seed", OWN, "full"),
             "shuffled": ("another scene's features (shuffled)", OTHER, "none")}  # fmt: skip
    for (score, title), panel in zip(titles.items(), axes, strict=True):
        for kind, (label, colour, fill) in marks.items():
            shares = [found[kind][score] for _, found in points]
            panel.plot(shares, [place for place, _ in points], "o", color=colour, fillstyle=fill, label=label)
        panel.set(title=title, xlabel=f"{score}, share of all", xlim=(-0.02, 1.02))
    axes[0].set_yticks(range(len(groups)), labels=list(groups))
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    main()
