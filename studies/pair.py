"""VL-Mamba against Pythia-VL on the demo, side by side: `python -m studies.pair`.

Both recipes, each in two stages, on the same features of the same drawn scenes: a projector on captions with the
language model frozen (`mamba-vl`, `pythia-vl`), then projector and language model on captions, questions and boxes
(`mamba-vl-tune`, `pythia-vl-tune`). The language models are of the architectures' classes, with nearly as many
parameters, pretrained on the same documents in words for as many steps (`studies.pretrain_mamba`). Scored on new scenes
after stage 2, with another scene's features and without any: captions, questions and boxes (grounding).

Runs the scripts as a user would, on one thread, in runs/pair-*. What is done isn't done again, so that a comparison
that was stopped goes on, and once the features are there, several processes can share it by `--only` and `--seeds`.
Each result is added to docs/pair.json at once; docs/pair.md is made from that file.
"""

import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from periscope.demo.making import make_folder
from periscope.demo.scenes import boxes, caption, draw_questions, draw_scenes, render

ROOT = Path(__file__).resolve().parent.parent
FOUND, PAGE = ROOT / "docs" / "pair.json", ROOT / "docs" / "pair.md"
BEGIN, END = "<!-- made by studies.pair -->", "<!-- end -->"
FAMILIES = ("pythia", "mamba")
SCORES = {
    "caption_scene": "captions name all",
    "caption_objects": "objects named",
    "qa_accuracy": "questions",
    "box_accuracy": "boxes, IoU of 0.5",
}
CONTROLS = ("real", "shuffled", "none")


@dataclass
class Options:
    """How long, and for which seeds."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the projector's start and of the order of texts, in both stages."""
    scenes: int = 3000
    """Scenes to train on, with a caption, 3 questions and up to 3 boxes each."""
    heldout: int = 100
    """New scenes to score on, with a caption, up to 4 questions and 3 boxes each."""
    pretraining: tuple[int, ...] = (1000, 700)
    """Steps of 16 documents in words of the Pythia; the demo's Mamba had as many."""
    first: int = 300
    """Steps of 24 captions of stage 1."""
    second: int = 600
    """Steps of 24 texts of stage 2."""
    lr: float = 5e-4
    """Learning rate of stage 2, of both; the recipes' 2e-5 is for a thousand times the parameters."""
    only: str = ""
    """One of the two, pythia or mamba; without it both."""
    tables: bool = False
    """Only make the page from what was found before."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if not options.tables:
        data, features = draw(options), ROOT / "features" / "pair"
        if not (features / "manifest.json").is_file():
            script("precompute.py", "--data", data, "--encoder", "demo", "--kinds", "patches", "--out", features)
        texts = write_texts(features, ROOT / "runs" / "pair-texts")
        for seed in options.seeds:
            for family in (options.only,) if options.only else FAMILIES:
                if not any((row["family"], row["seed"]) == (family, seed) for row in known()):
                    measure(family, seed, features, texts, options)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(known())}\n{END}{rest.partition(END)[2]}")


def known() -> list[dict]:
    """Results so far, one row per family and seed."""
    return json.loads(FOUND.read_text()) if FOUND.is_file() else []


def draw(options: Options) -> Path:
    """The scenes with their words, drawn once."""
    counts = {"train": options.scenes, "heldout": options.heldout}

    def lines(place: Path) -> Iterator[dict]:
        (place / "images").mkdir()
        for split, n in counts.items():
            for number, objects in enumerate(draw_scenes(9000, n, split)):
                name, seed = f"images/{split}-{number:05d}.jpg", f"pair/{split}/{number}"
                render(objects, random.Random(seed)).save(place / name, quality=90)
                yield from lines_of(name, split, objects, random.Random(f"words/{seed}"), random.Random(seed))

    return make_folder(ROOT / "runs" / "pair-scenes", "pair", counts, lines)


def lines_of(name: str, split: str, objects: list[dict], rng: random.Random, drawn: random.Random) -> Iterator[dict]:
    """The texts about one scene: a caption, questions, and a box for each object. drawn: the generator that the picture
    was drawn with, at its start.
    """
    common = {"media": [name], "split": split}
    stem = Path(name).stem
    told = {"role": "assistant", "content": caption(objects, rng)}
    yield {"id": f"{stem}-caption", **common, "turns": [told], "meta": {"form": "caption", "objects": objects}}
    for number, (ask, asked, truth) in enumerate(draw_questions(objects, 3 if split == "train" else 4, rng)):
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": truth}]
        meta = {"form": "question", "objects": objects, "ask": ask}
        yield {"id": f"{stem}-question-{number}", **common, "turns": turns, "meta": meta}
    for number, (thing, box) in enumerate(zip(objects, boxes(objects, drawn), strict=True)):
        asked = f"Where is the {thing['size']} {thing['colour']} {thing['shape']}? Answer with its box."
        answer = {"role": "assistant", "content": "<box>", "boxes": [box]}
        exchange: list[dict] = [{"role": "user", "content": asked}, answer]
        yield {"id": f"{stem}-box-{number}", **common, "turns": exchange, "meta": {"form": "box"}}


def write_texts(features: Path, folder: Path) -> Path:
    """captions.jsonl for stage 1, all.jsonl for stage 2 and asked.jsonl for scores: the feature set's own lines."""
    lines = [json.loads(line) for line in (features / "texts.jsonl").read_text().splitlines()]
    captions = [line for line in lines if line["meta"]["form"] == "caption"]
    heldout = [line for line in lines if line["split"] == "heldout"]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in {"captions": captions, "all": lines, "asked": heldout}.items():
        written = folder / f"{name}.{os.getpid()}"  # another process may read the file, or make it too
        written.write_text("".join(json.dumps(row) + "\n" for row in rows))
        written.replace(folder / f"{name}.jsonl")
    return folder


def measure(family: str, seed: int, features: Path, texts: Path, options: Options) -> None:
    """Train both stages of one family with one seed, score them, and add the result to docs/pair.json."""
    lm = backbone(family, options.pretraining)
    common = ["--features", features, "--seed", seed, "--precision", "fp32", "--gradient-checkpointing", 0]
    first, second = f"pair-{family}-first-{seed}", f"pair-{family}-{seed}"
    length = ["--batch", 24, "--steps", options.first, "--eval-every", options.first]
    trained(first, "--recipe", f"{family}-vl", "--lm", lm, *common, *length, "--text", texts / "captions.jsonl")
    length = ["--batch", 24, "--steps", options.second, "--eval-every", options.second]
    rates = ["--lr", options.lr, "--lm-lr", options.lr]
    start = ["--recipe", f"{family}-vl-tune", "--init", f"runs/{first}"]
    trained(second, *start, *common, *length, *rates, "--text", texts / "all.jsonl")
    script("eval.py", "--run", f"runs/{second}", "--text", texts / "asked.jsonl", "--controls", "shuffled", "none")
    row = {
        "family": family,
        "seed": seed,
        "steps": [options.first, options.second],
        "lr": options.lr,
        "parameters": parameters(ROOT / "runs" / second),
        "seconds": [seconds(ROOT / "runs" / name) for name in (first, second)],
        "scores": scores_of(ROOT / "runs" / second),
    }
    FOUND.write_text(json.dumps([*known(), row], indent=1) + "\n")


def backbone(family: str, steps: tuple[int, ...]) -> Path:
    """The language model of a family: the demo's Mamba, or a Pythia pretrained like it, once."""
    if family == "mamba":
        return ROOT / "demo" / "backbones" / "mamba"
    before = None
    for part, count in enumerate(steps):
        folder = ROOT / "runs" / f"pair-words-{part}"
        if not (folder / "ready").is_file():
            start: list[str | Path] = ["--start", before] if before else []
            script("-m", "studies.pretrain_mamba", "--family", family, "--out", folder, "--steps", count,
                   "--seed", part, "--probe-every", count, *start)  # fmt: skip
            (folder / "ready").touch()
        before = folder
    assert before is not None
    return before / family


def trained(run: str, *flags: object) -> None:
    """Train runs/`run` unless it is finished; go on with one that was stopped."""
    folder = ROOT / "runs" / run
    if not (folder / "ready").is_file():
        resumed = ["--resume", f"runs/{run}"] if (folder / "last").is_file() else [*flags, "--name", run]
        script("train.py", *resumed)
        (folder / "ready").touch()


def scores_of(run: Path) -> dict[str, dict[str, float]]:
    """From the run's newest predictions: score -> {condition: value, "n": items}."""
    from periscope.evaluation.metrics import box_accuracy
    from periscope.evaluation.metrics.boxes import read_box
    from periscope.evaluation.scoring.prediction import Prediction
    from periscope.evaluation.scoring.scores import scores

    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    rows = [Prediction(**{name: value for name, value in line.items() if name != "split"}) for line in lines]
    words = [row for row in rows if row.meta["form"] != "box"]
    grounded = [row for row in rows if row.meta["form"] == "box"]
    found: dict[str, dict[str, float]] = {}
    for condition in CONTROLS:
        part = dict(scores(words, condition))
        right = {row.id: read_box(str(row.reference)) for row in grounded}
        said = {row.id: str(row.answer_under(condition)) for row in grounded}
        part["box_accuracy"] = box_accuracy(said, {key: box for key, box in right.items() if box is not None})
        for name in SCORES:
            found.setdefault(name, {})[condition] = round(part[name].value, 4)
            found[name]["n"] = part[name].n
    return found


def parameters(run: Path) -> int:
    """How many weights of the language model a run trained."""
    from safetensors import safe_open

    (folder,) = run.glob("steps/*/adapter/lm")
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118


def seconds(run: Path) -> float:
    """How long a run's steps took."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return round(sum(row.get("seconds", 0.0) for row in rows), 1)


def script(*command: object) -> None:
    """Run one of the scripts on one thread; its output goes to runs/pair.log."""
    (ROOT / "runs").mkdir(exist_ok=True)
    device = [] if command[0] == "-m" else ["--device", "cpu"]
    with open(ROOT / "runs" / "pair.log", "a") as log:
        print("$ python", *command, file=log, flush=True)
        one = {**os.environ, "OMP_NUM_THREADS": "1"}
        call = [sys.executable, *map(str, command), *device]
        done = subprocess.run(call, cwd=ROOT, stdout=log, stderr=log, env=one)
    if done.returncode:
        raise SystemExit(f"python {' '.join(map(str, command))} failed; see runs/pair.log")


def table(rows: list[dict]) -> str:
    """A Markdown table with two lines per score: mean over the seeds ± half the range, and the controls."""
    if not rows:
        return "Not run yet."
    lines = ["| | language model | own features | another scene's | no picture | items | seeds |",
             "| --- | --- | --- | --- | --- | ---: | ---: |"]  # fmt: skip
    for name, title in SCORES.items():
        for family in FAMILIES:
            group = [row["scores"][name] for row in rows if row["family"] == family]
            if group:
                cells = [spread([row[condition] for row in group]) for condition in CONTROLS]
                lines.append(f"| {title} | {family} | {' | '.join(cells)} | {group[0]['n']} | {len(group)} |")
    weights = {row["family"]: f"{row['family']} {row['parameters']:,}" for row in rows}
    first, second = rows[0]["steps"]
    lines += ["", f"Trained for {first} steps of 24 captions, then {second} of 24 texts at a learning rate of "
              f"{rows[0]['lr']:g}. Weights of the language models: {', '.join(weights.values())}."]  # fmt: skip
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean ± half the range; a single value as it is."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {(max(values) - min(values)) / 2:.2f}"


if __name__ == "__main__":
    main()
