"""Adapters on real weights and real pictures: `python -m studies.real.run`.

Emoji through EfficientNet-Lite0 into a frozen SmolLM2-135M-Instruct, trained on the names of pictures in three styles
and asked about a fourth style (val) and about names that no training showed (test). The same with sounds through
Whisper base: these names spoken by four voices in place of the styles, and Tux Paint's recordings of what its stamps
show. Every arm's answers are judged beside those to another medium's features. Some arms use no language model: the
name of the nearest training medium, and ridge regression to the names.

The scripts run as a user would run them, on one thread each. A run that was stopped goes on, and what is done isn't
done again, so that the study can be made in pieces. Writes runs/real/ARM.json, the tables of docs/real.md, and
docs/real-curves.png and docs/real-answers.png.
"""

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count, pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import tyro

from periscope.console import run
from periscope.errors import UserError
from periscope.shards.read import FeatureSet
from studies.real.assets import folder, metadata
from studies.real.encode import key_of_file
from studies.real.judge import Answer, Sentences, judge
from studies.real.similarities import write_vectors

ROOT = Path(__file__).resolve().parents[2]
FOUND, PAGE = ROOT / "runs" / "real", ROOT / "docs" / "real.md"
CURVES, GRID = ROOT / "docs" / "real-curves.png", ROOT / "docs" / "real-answers.png"
BEGIN = {"pictures": "<!-- made by studies.real.run -->", "sounds": "<!-- sounds, made by studies.real.run -->"}
END = "<!-- end -->"
TRAIN = (
    *("--template", "plain", "--warm-start", "60", "--batch", "8", "--lr", "1e-3", "--feature-shift", "1"),
    *("--precision", "bf16"),
)
RIDGE = 3000.0  # on standardised features


class StudyError(UserError):
    """A script that failed, or a page without the study's marks."""


@dataclass(frozen=True)
class Data:
    """A folder of captioned media among the assets, its encoder, and what the encoder gives."""

    asset: str
    within: str
    encoder: str
    kinds: tuple[str, ...] = ("pooled",)
    modality: str = "pictures"

    def folder(self) -> Path:
        return folder(self.asset) / self.within


LITE0, WHISPER = "timm:efficientnet-lite0", "transformers:whisper-base"
DATA = {
    "small": Data("emoji", "small", LITE0, ("pooled", "patches")),
    "spoken": Data("spoken", "", WHISPER, modality="sounds"),
    "sounds": Data("stamps", "sounds", WHISPER, modality="sounds"),
}


@dataclass(frozen=True)
class Arm:
    """One way to train: train.py's flags on top of TRAIN, how many steps, on which of DATA, and whether its features
    are `similarities`.
    """

    flags: tuple[str, ...]
    steps: int = 1200
    data: str = "small"
    similar: bool = False


def nearest(known: np.ndarray, names: np.ndarray, asked: np.ndarray) -> list[str]:
    """The name of the known vector with the largest cosine. known (n, width), names (n,), asked (m, width)."""
    known = known / np.linalg.norm(known, axis=1, keepdims=True)
    return names[(asked @ known.T).argmax(1)].tolist()


def ridge(known: np.ndarray, names: np.ndarray, asked: np.ndarray, strength: float = RIDGE) -> list[str]:
    """The name with the largest value of a ridge regression from standardised features to one-hot names."""
    middle, spread = known.mean(0), known.std(0) + 1e-3
    inputs, classes = (known - middle) / spread, sorted(set(names.tolist()))
    targets = (names[:, None] == np.array(classes)[None]).astype(float)
    covariance = inputs.T @ inputs + strength * np.eye(inputs.shape[1])
    weights = np.linalg.solve(covariance, inputs.T @ (targets - targets.mean(0)))
    best = (((asked - middle) / spread) @ weights + targets.mean(0)).argmax(1)
    return [classes[index] for index in best]


ARMS = {
    "mlp16": Arm(("--adapter", "mlp16")),
    "similarities": Arm(("--adapter", "linear16", "--feature-shift", "0"), similar=True),
    "linear": Arm(("--adapter", "linear")),
    "window3": Arm(("--adapter", "window3")),
    "perceiver16": Arm(("--adapter", "perceiver16")),
    "soft prompt": Arm(("--adapter", "none", "--soft-prompt", "16", "--warm-start", "0", "--feature-shift", "0")),
    "spoken, mlp16": Arm(("--adapter", "mlp16"), 600, "spoken"),
    "sounds, mlp16": Arm(("--adapter", "mlp16", "--feature-shift", "0"), 120, "sounds"),
}
BASELINES = {  # name -> (how the name is guessed, from which of DATA)
    "nearest picture": (nearest, "small"),
    "ridge regression": (ridge, "small"),
    "spoken, nearest": (nearest, "spoken"),
    "spoken, ridge regression": (ridge, "spoken"),
    "sounds, nearest": (nearest, "sounds"),
    "sounds, ridge regression": (ridge, "sounds"),
}
FREE_STYLES = (("val", "fluent"), ("test", "google"))  # pictures that may be shown: MIT and Apache 2.0


@dataclass
class Options:
    """Which arms, how often, and whether to train at all."""

    arms: tuple[str, ...] = (*BASELINES, *ARMS)
    """Which to train and judge; what was found of others stays."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of each arm."""
    steps: int = 0
    """Steps of each arm (0: its own number)."""
    tables: bool = False
    """Only make the page from what was found before."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if unknown := [name for name in options.arms if name not in (*ARMS, *BASELINES)]:
        raise StudyError(f"--arms {unknown[0]}: no arm is called so; there are {', '.join((*BASELINES, *ARMS))}")
    if not options.tables:
        measure(options)
    write_page(found())


def measure(options: Options) -> None:
    """Train, evaluate and judge what isn't yet, one JSON file per arm and seed."""
    FOUND.mkdir(parents=True, exist_ok=True)
    judged = None
    for name in options.arms:
        for seed in options.seeds if name in ARMS else (0,):
            place = FOUND / f"{slug(name)}-{options.steps or 'all'}-{seed}.json"
            if place.is_file():
                print(f"{place.name}: already there")
                continue
            judged = judged or Sentences(folder("minilm"))
            if name in ARMS:
                one = arm_result(name, seed, options.steps or ARMS[name].steps, judged)
            else:
                one = baseline_result(name, judged)
            place.write_text(json.dumps(one, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(line_of(one))


def slug(name: str) -> str:
    """A name in letters, digits and hyphens, for files."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())


# Arms


def arm_result(name: str, seed: int, steps: int, vectors: Sentences) -> dict:
    """Train and evaluate one arm with one seed; what came of it."""
    arm, where = ARMS[name], f"real-{slug(name)}-{steps}-{seed}"
    features = feature_set(arm.data, arm.similar)
    command = ["--features", features, "--lm", folder("smollm2"), *TRAIN, *arm.flags, "--steps", steps, "--seed", seed]
    train(where, steps, [*command, "--eval-every", max(1, steps // 4)])
    folder_of = ROOT / "runs" / where
    if not (folder_of / "predictions.jsonl").is_file():
        script("eval.py", "--run", folder_of, "--controls", "shuffled", "--max-new-tokens", 16)
    log = [json.loads(line) for line in (folder_of / "metrics.jsonl").read_text().splitlines()]
    return {
        "arm": name,
        "seed": seed,
        "data": arm.data,
        "texts": steps * int(flag_of("--batch", (*TRAIN, *arm.flags))),
        "minutes": round(sum(row.get("seconds", 0.0) for row in log) / 60, 2),
        "curve": [[row["step"], row["loss"]] for row in log if "loss" in row],
        "heldout": [[row["step"], row["heldout"]] for row in log if "heldout" in row],
        **judged_answers(predictions(folder_of, features, arm.data), arm.data, vectors),
    }


def feature_set(data: str, similar: bool = False) -> Path:
    """The feature set of one of DATA, or of its pictures' `similarities`, made unless it is there."""
    about, out = DATA[data], ROOT / "features" / f"real-{data}{'-similar' if similar else ''}"
    if (out / "manifest.json").is_file():
        return out
    if similar:
        with tempfile.TemporaryDirectory() as vectors:
            encoder = f"vectors:similarities/{write_vectors(about.folder(), Path(vectors))}"
            script("precompute.py", "--data", vectors, "--encoder", encoder, "--kinds", "pooled", "--out", out)
    else:
        library, name = about.encoder.split(":")
        encoder = f"{library}:{folder(name)}"
        script("precompute.py", "--data", about.folder(), "--encoder", encoder, "--kinds", *about.kinds, "--out", out)
    return out


def pooled(data: str) -> np.ndarray:
    """The pooled features of one of DATA, in the order of its metadata.jsonl: (media, width)."""
    features = FeatureSet(feature_set(data))
    keys = key_of_file(features)
    rows = metadata(DATA[data].folder())
    return features.read_many([keys[row["file_name"]] for row in rows], "pooled").double().numpy()


def train(name: str, steps: int, command: Sequence[object]) -> None:
    """Train runs/NAME to its end: from the start, or on from its last checkpoint."""
    place = ROOT / "runs" / name
    if (place / "last").is_file():
        if int((place / "last").read_text()) < steps:
            script("train.py", "--resume", place)
    else:
        if place.is_dir():  # stopped before its first checkpoint
            number = next(number for number in count(1) if not place.with_name(f"{name}.stopped-{number}").exists())
            place.rename(place.with_name(f"{name}.stopped-{number}"))
        script("train.py", *command, "--name", name)
    if int((place / "last").read_text()) < steps:
        raise StudyError(f"{place} was stopped before its last step; the same command goes on with it")


def script(*command: object) -> None:
    """Run one of the scripts on one thread, on the CPU, politely; its words go into runs/real/log.txt."""
    FOUND.mkdir(parents=True, exist_ok=True)
    with open(FOUND / "log.txt", "a", encoding="utf-8") as log:
        print("$ python", *command, file=log, flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "30"}
        call = [sys.executable, *map(str, command), "--device", "cpu"]
        done = subprocess.run(call, cwd=ROOT, stdout=log, stderr=log, env=environment)
    if done.returncode:
        raise StudyError(f"python {' '.join(map(str, command))} failed; see {FOUND / 'log.txt'}")


def flag_of(name: str, flags: Sequence[str]) -> str:
    """The last value given to a flag."""
    return [value for flag, value in pairwise(flags) if flag == name][-1]


def predictions(place: Path, features_at: Path, data: str) -> list[Answer]:
    """What eval.py wrote about a run on a feature set of one of DATA."""
    features = FeatureSet(features_at)
    rows = {str(Path(row["file_name"]).with_suffix("")): row for row in metadata(DATA[data].folder())}
    answers = []
    for line in (place / "predictions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        of = rows[str(Path(features.info(row["media"])["origin"]).with_suffix(""))]  # of similarities it ends in .npy
        answers.append(
            Answer(row["answer"], row["reference"], of["group"], row["split"], row["control"] or "", of["file_name"])
        )
    return answers


def judged_answers(answers: Sequence[Answer], data: str, vectors: Sentences) -> dict:
    """{"scores": split -> {"real", "shuffled"} -> scores, "answers": the answers}."""
    groups = {row["text"]: row["group"] for row in metadata(DATA[data].folder())}
    scores = {}
    for split in ("val", "test"):
        part = [answer for answer in answers if answer.split == split]
        scores[split] = {
            condition: rounded(judge(part, groups, vectors, shuffled))
            for condition, shuffled in (("real", False), ("shuffled", True))
        } | {"n": len(part)}
    return {"scores": scores, "answers": [asdict(answer) for answer in answers]}


def rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in scores.items()}


# Baselines


def baseline_result(name: str, vectors: Sentences) -> dict:
    """What the features alone name, without a language model."""
    guess, data = BASELINES[name]
    start = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    rows = metadata(DATA[data].folder())
    features = pooled(data)
    names, splits = np.array([row["text"] for row in rows]), np.array([row["split"] for row in rows])
    seen = splits == "train"
    answers = []
    for split in ("val", "test"):
        asked = [row for row in rows if row["split"] == split]
        said = guess(features[seen], names[seen], features[splits == split])
        order = np.random.default_rng(0).permutation(len(said))
        others = dict(zip(order, np.roll(order, 1), strict=True))  # each is given another's answer
        for number, (row, answer) in enumerate(zip(asked, said, strict=True)):
            other = said[others[number]]
            answers.append(Answer(answer, row["text"], row["group"], split, other, row["file_name"]))
    minutes = (resource.getrusage(resource.RUSAGE_SELF).ru_utime - start) / 60
    about = {"arm": name, "seed": 0, "data": data, "texts": int(seen.sum()), "minutes": round(minutes, 2)}
    return about | {"curve": [], "heldout": [], **judged_answers(answers, data, vectors)}


# The page


def found() -> list[dict]:
    """All results that are there, the arms in their order."""
    arms, data = [*BASELINES, *ARMS], list(DATA)
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOUND.glob("*.json"))]
    rows = [row for row in rows if row["arm"] in arms]
    return sorted(rows, key=lambda row: (data.index(row["data"]), arms.index(row["arm"]), row["texts"]))


def write_page(rows: Sequence[dict]) -> None:
    """Put the tables between the page's marks, and draw the pictures."""
    page = PAGE.read_text(encoding="utf-8")
    for modality, begin in BEGIN.items():
        before, mark, rest = page.partition(begin)
        if not mark or END not in rest:
            raise StudyError(f"{PAGE} lacks the line {begin} or {END}, between which a table goes")
        part = [row for row in rows if DATA[row["data"]].modality == modality]
        page = f"{before}{begin}\n{table(part)}\n{END}{rest.partition(END)[2]}"
    PAGE.write_text(page, encoding="utf-8")
    pictures = [row for row in rows if DATA[row["data"]].modality == "pictures" and row["heldout"]]
    draw_curves(pictures)
    draw_answers(pictures)


COLUMNS = (("val", "exact"), ("val", "f1"), ("val", "group"), ("test", "exact"), ("test", "f1"), ("test", "group"))


def table(rows: Sequence[dict]) -> str:
    """Markdown: a line for each arm and length, means over its seeds, the shuffled control in brackets."""
    heads = ["arm", "texts seen", "minutes", "loss, val", *(f"{score}, {split}" for split, score in COLUMNS), "seeds"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for arm, texts in dict.fromkeys((row["arm"], row["texts"]) for row in rows):
        lines.append(line_of(*(row for row in rows if (row["arm"], row["texts"]) == (arm, texts))))
    return "\n".join(lines)


def line_of(*same: dict) -> str:
    """A line of the table, of one arm's runs at one length."""
    losses = [row["heldout"][-1][1] for row in same if row["heldout"]]
    loss = " / ".join(
        f"{fmean(found[condition] for found in losses):.2f}"
        for condition in ("real", "shuffled")
        if losses and all(condition in found for found in losses)
    )
    cells = [same[0]["arm"], same[0]["texts"], f"{fmean(row['minutes'] for row in same):.1f}", loss]
    for split, score in COLUMNS:
        real, other = (
            fmean(row["scores"][split][condition][score] for row in same) for condition in ("real", "shuffled")
        )
        cells.append(f"{real:.2f} ({other:.2f})")
    return f"| {' | '.join(map(str, [*cells, len(same)]))} |"


def draw_curves(rows: Sequence[dict]) -> None:
    """The held-out loss of each arm at each length, the mean over its seeds, and its shuffled control, dashed."""
    if not rows:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (arm, texts) in enumerate(dict.fromkeys((row["arm"], row["texts"]) for row in rows)):
        same = [row["heldout"] for row in rows if (row["arm"], row["texts"]) == (arm, texts)]
        steps = [step for step, _ in same[0]]
        for condition, style in (("real", "-"), ("shuffled", "--")):
            losses = [[found[condition] for _, found in run if condition in found] for run in same]
            if all(len(of_run) == len(steps) for of_run in losses):
                seeds = f"{len(same)} seed{'s' if len(same) > 1 else ''}"
                label = f"{arm}, {texts} texts, {seeds}" if style == "-" else None
                means = [fmean(of_step) for of_step in zip(*losses, strict=True)]
                axes.plot(steps, means, style, color=f"C{number % 10}", label=label)
    axes.set(xlabel="step", ylabel="held-out loss, nats per token", title="dashed: with another picture's features")
    axes.legend(fontsize="small")
    figure.savefig(CURVES, dpi=90)


def draw_answers(rows: Sequence[dict], columns: int = 8) -> None:
    """Held-out pictures, wrong answers in red, of the arm with the best exact score on val that reads the encoder's own
    features.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from PIL import Image

    trained = [row for row in rows if not ARMS[row["arm"]].similar]
    if not trained:
        return
    best = max(trained, key=lambda row: row["scores"]["val"]["real"]["exact"])
    shown = []
    for split, style in FREE_STYLES:
        part = [one for one in best["answers"] if one["split"] == split and one["picture"].startswith(f"{style}/")]
        shown += part[:: max(1, len(part) // (2 * columns))][: 2 * columns]
    size = (1.5 * columns, 2 * len(shown) / columns)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.15))
    for axes, one in zip(figure.subplots(len(shown) // columns, columns).flat, shown, strict=False):
        axes.imshow(Image.open(DATA[best["data"]].folder() / one["picture"]))
        axes.axis("off")
        right = one["said"].strip().lower() == one["name"].lower()
        axes.set_title(one["said"].strip()[:24], fontsize=8, color="darkgreen" if right else "darkred")
        axes.text(0.5, -0.08, one["name"], fontsize=7, color="gray", ha="center", va="top", transform=axes.transAxes)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80)
    Image.open(drawn).convert("RGB").quantize(128).save(GRID, optimize=True)


if __name__ == "__main__":
    run(main)
