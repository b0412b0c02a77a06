"""Measure on the demo what stage 2 gains and costs: `python -m studies.stage2`.

Stage 1 is the demo's own training on captions. Stage 2 continues it on questions about training pictures, in wordings
that no training has used: with the projector alone, with LoRA on the language model, and with LoRA and a quarter of
texts without a picture. The same questions are also trained on by the two-stage recipes of LLaVA-1.5 and AnyMAL. Before
and after each, on new scenes: captions, and each question in the language model's own wording, in a taught one and in
one that no training has used. Questions about what is beside an object are never in stage 2. The language model alone,
with its LoRA, answers the same from descriptions in words.

Runs the scripts as a user would, on one thread, in runs/stage2-*; a run that exists isn't trained again. Writes
docs/stage2.json, and the tables in docs/stage2.md.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from periscope.demo.scenes import draw_questions, draw_scenes
from studies.corpus import MEDIA, describe
from studies.probe import answer_scores, caption_scores

ROOT = Path(__file__).resolve().parent.parent
FOUND, PAGE = ROOT / "docs" / "stage2.json", ROOT / "docs" / "stage2.md"
BEGIN, END = "<!-- made by studies.stage2 -->", "<!-- end -->"
LEFT_OUT = "relation"  # a kind of question that is never in stage 2

TAUGHT = {
    ("colour", "shape"): ("the {shape} is of which colour?", "the colour of the {shape} is?"),
    ("colour", "place"): ("at the {place} is which colour?", "the object at the {place} has which colour?"),
    ("shape", "colour"): ("the {colour} object is which shape?", "the shape of the {colour} object is?"),
    ("shape", "place"): ("at the {place} is which shape?", "the object at the {place} has which shape?"),
    ("size", "colour", "shape"): ("the {colour} {shape} is how big?", "the size of the {colour} {shape} is?"),
    ("size", "place"): ("the object at the {place} is how big?", "at the {place} the size is?"),
    ("place", "colour", "shape"): ("the {colour} {shape} is where?", "the place of the {colour} {shape} is?"),
    ("place", "shape"): ("the {shape} is where?", "the place of the {shape} is?"),
    ("count",): ("there are how many objects?", "the picture shows how many objects?"),
    ("count", "size"): ("there are how many {size} objects?", "the picture shows how many {size} objects?"),
    ("exists", "colour", "shape"): ("{a} {colour} {shape}, is there one?", "the picture shows {a} {colour} {shape}?"),
    ("relation", "side", "colour", "shape"): ("{side} the {colour} {shape} is which object?",),
}
UNSEEN = {
    ("colour", "shape"): ("Of which colour is the {shape}?",),
    ("colour", "place"): ("What is the colour at the {place}?",),
    ("shape", "colour"): ("Of which shape is the {colour} object?",),
    ("shape", "place"): ("What is the shape at the {place}?",),
    ("size", "colour", "shape"): ("Of what size is the {colour} {shape}?",),
    ("size", "place"): ("What is the size at the {place}?",),
    ("place", "colour", "shape"): ("What is the place of the {colour} {shape}?",),
    ("place", "shape"): ("What is the place of the {shape}?",),
    ("count",): ("Of objects, how many are there?",),
    ("count", "size"): ("Of {size} objects, how many are there?",),
    ("exists", "colour", "shape"): ("Is one object {a} {colour} {shape}?",),
    ("relation", "side", "colour", "shape"): ("Which is the object {side} the {colour} {shape}?",),
}
WORDINGS = {"own": None, "taught": TAUGHT, "unseen": UNSEEN}

FIRSTS = {  # the runs of stage 1, and train.py's flags for them
    "stage2-first": "--adapter mlp16",
    "stage2-llava-1.5": "--recipe llava-1.5 --lm demo/backbones/lm --precision fp32 --batch 24 --steps 700",
    "stage2-anymal-image": "--recipe anymal-image --lm demo/backbones/lm --precision fp32 --batch 16 --steps 500",
}


@dataclass(frozen=True)
class Arm:
    """A variant of stage 2: the run that it starts from, its flags (none: nothing is trained), and its texts."""

    first: str
    flags: tuple[str, ...] = ()
    text: str = "pictures"


LORA = ("--lr", "1e-4", "--lora", "r=16,alpha=32", "--lora-lr", "1e-3")
ARMS = {
    "after stage 1": Arm("stage2-first"),
    "projector alone": Arm("stage2-first", ("--lr", "3e-4")),
    "LoRA": Arm("stage2-first", LORA),
    "LoRA, a quarter of text": Arm("stage2-first", LORA, "mixed"),
}
SYSTEMS = {
    "llava-1.5": Arm("stage2-llava-1.5"),
    "llava-1.5-tune": Arm("stage2-llava-1.5", ("--recipe", "llava-1.5-tune", "--precision", "fp32")),
    "anymal-image": Arm("stage2-anymal-image"),
    "anymal-instruct": Arm("stage2-anymal-image", ("--recipe", "anymal-instruct", "--precision", "fp32")),
}


@dataclass
class Options:
    """How many steps, scenes and variants."""

    features: Path = Path("features/demo")
    """The demo's features, as `python precompute.py` makes them."""
    steps: int = 300
    """Steps of 32 texts of each stage 2."""
    scenes: int = 60
    """New scenes whose 8 questions each are asked in three wordings (what is beside a thing: all new scenes)."""
    arms: tuple[str, ...] = (*ARMS, *SYSTEMS)
    """Which to train and score; what was found of others stays."""
    tables: bool = False
    """Only make the page from what was found before."""


class Worded:
    """The demo's questions about scenes in one of `WORDINGS`; takes the place of periscope.demo.scenes."""

    def __init__(self, wording: str, left_out: bool = True):
        self.forms, self.left_out = WORDINGS[wording], left_out

    def draw_questions(self, objects: list[dict], n: int, rng: random.Random) -> list[tuple[dict, str, str]]:
        """Like periscope.demo.scenes.draw_questions, without the kind that stage 2 leaves out if so asked."""
        drawn = draw_questions(objects, n, rng)
        kept = [(ask, said, truth) for ask, said, truth in drawn if not self.left_out or ask["kind"] != LEFT_OUT]
        return [(ask, self.word(ask, said, rng), truth) for ask, said, truth in kept]

    def word(self, ask: dict, said: str, rng: random.Random) -> str:
        """The question in this wording; `said` is the language model's own wording."""
        if not self.forms:
            return said
        form = next(form for form in self.forms if form[0] == ask["kind"] and set(form[1:]) == set(ask) - {"kind"})
        article = "an" if ask.get("colour", "")[:1] in tuple("aeiou") else "a"
        return rng.choice(self.forms[form]).format(**ask, a=article)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if not options.tables:
        found = json.loads(FOUND.read_text()) | measure(options)
        FOUND.write_text(json.dumps(found, indent=1) + "\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(json.loads(FOUND.read_text()))}\n{END}{rest.partition(END)[2]}")


def measure(options: Options) -> dict:
    """Train what isn't trained yet and score everything: variant -> {"pictures": {score: {"real", "shuffled", "n"}},
    "words": {score: value}}.
    """
    folder = ROOT / "runs" / "stage2-texts"
    write_texts(folder, options)
    found = {}
    for name in options.arms:
        arm = (ARMS | SYSTEMS)[name]
        trained(arm.first, *FIRSTS[arm.first].split(), "--features", options.features)
        run = arm.first
        if arm.flags:
            run = "-".join(["stage2", *"".join(c if c.isalnum() else " " for c in name).lower().split()])
            length = ["--steps", options.steps, "--eval-every", options.steps, "--batch", "32"]
            start = ["--init", f"runs/{arm.first}", "--features", options.features, "--text"]
            trained(run, *start, folder / f"{arm.text}.jsonl", *arm.flags, *length)
        script("eval.py", "--run", f"runs/{run}", "--text", folder / "asked.jsonl", "--controls", "shuffled")
        found[name] = {"pictures": picture_scores(ROOT / "runs" / run), "words": word_scores(ROOT / "runs" / run)}
    return found


def trained(run: str, *flags: object) -> None:
    """Train runs/`run` unless it exists."""
    if not (ROOT / "runs" / run / "last").is_file():
        script("train.py", *flags, "--name", run)


def write_texts(folder: Path, options: Options) -> None:
    """Write pictures.jsonl and mixed.jsonl to train on and asked.jsonl to score on: the feature set's own lines,
    reworded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in (options.features / "texts.jsonl").read_text().splitlines()]
    rng, taught = random.Random("stage2"), Worded("taught")
    pictures: list[dict] = []
    alone: list[dict] = []
    asked: list[dict] = []
    scenes: list[list[str]] = []
    for line in lines:
        things = line["meta"]["objects"]
        if line["split"] == "train" and len(pictures) < 8000:
            for number, (ask, said, truth) in enumerate(taught.draw_questions(things, 2, rng)):
                pictures.append(text(f"{line['id']}-{number}", line, said, truth, ask, "taught"))
        elif line["split"] == "heldout":
            if line["media"] not in scenes:
                scenes.append(line["media"])
            ask, number = line["meta"].get("ask"), scenes.index(line["media"])
            if number >= options.scenes and ask and ask["kind"] != LEFT_OUT and len(scenes) < options.scenes + 60:
                truth = line["turns"][-1]["content"]
                said = taught.word(ask, "", rng)
                pictures.append(text(line["id"], line, said, truth, ask, "taught"))  # for the held-out loss
            elif number < options.scenes and not ask:
                asked.append(line)
            elif ask and (number < options.scenes or ask["kind"] == LEFT_OUT):
                for wording in WORDINGS:
                    said = Worded(wording).word(ask, line["turns"][0]["content"], rng)
                    form = f"{wording}, left out" if ask["kind"] == LEFT_OUT else wording
                    asked.append(text(f"{line['id']}-{wording}", line, said, line["turns"][-1]["content"], ask, form))
    for number, things in enumerate(draw_scenes(7000, 1000, "train")):
        told = f"{MEDIA['image'].opening}{describe(MEDIA['image'], things, rng)}\n"
        for k, (_, said, truth) in enumerate(taught.draw_questions(things, 3, rng)):
            turns = [{"role": "user", "content": told + said}, {"role": "assistant", "content": truth}]
            alone.append({"id": f"words-{number}-{k}", "media": [], "split": "train", "turns": turns, "meta": {}})
    for name, rows in {"pictures": pictures, "mixed": [*pictures, *alone], "asked": asked}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def text(name: str, line: dict, said: str, truth: str, ask: dict, form: str) -> dict:
    """A question about the medium of `line`."""
    turns = [{"role": "user", "content": said}, {"role": "assistant", "content": truth}]
    meta = line["meta"] | {"ask": ask, "form": form}
    return {"id": name, "media": line["media"], "split": line["split"], "turns": turns, "meta": meta}


def picture_scores(run: Path) -> dict[str, dict[str, float]]:
    """From the run's newest predictions: scenes named completely, and question accuracy by form, real and shuffled."""
    from periscope.evaluation.scoring.prediction import Prediction
    from periscope.evaluation.scoring.scores import scores

    lines = (run / "predictions.jsonl").read_text().splitlines()
    rows = [Prediction(**{k: v for k, v in json.loads(line).items() if k != "split"}) for line in lines]
    found = {name: scores(rows, condition, kinds="form") for name, condition in (("real", "real"), ("shuffled",) * 2)}
    names = ["caption_scene", *sorted(name for name in found["real"] if name.startswith("qa_") and "acc" not in name)]
    return {
        name: {kind: round(part[name].value, 4) for kind, part in found.items()} | {"n": found["real"][name].n}
        for name in names
    }


def word_scores(run: Path, n: int = 150) -> dict[str, float]:
    """The run's language model with its LoRA on descriptions in words: questions in each wording, questions about
    sounds, and captions of both.
    """
    from periscope import inference as live

    lm = live.load_adapted(run)[0].lm
    drawn = draw_scenes(8000, n, "heldout")
    found = {
        wording: answer_scores(lm.model, lm.tokenizer, drawn, medium=replace(MEDIA["image"], words=Worded(wording)))
        for wording in WORDINGS
    }
    scored = {f"qa_{wording}": part["qa_accuracy"] for wording, part in found.items()}
    rng = random.Random("stage2/sounds")
    heard = [MEDIA["audio"].draw(rng, "heldout") for _ in range(n)]
    scored["qa_sounds"] = answer_scores(lm.model, lm.tokenizer, heard, medium=MEDIA["audio"])["qa_accuracy"]
    scored |= caption_scores(lm.model, lm.tokenizer, drawn)
    return {name: round(value, 4) for name, value in scored.items()}


def script(*command: object) -> None:
    """Run one of the scripts on one thread; its output goes to runs/stage2.log."""
    (ROOT / "runs").mkdir(exist_ok=True)
    with open(ROOT / "runs" / "stage2.log", "a") as log:
        print("$ python", *command, file=log, flush=True)
        one = {**os.environ, "OMP_NUM_THREADS": "1"}
        call = [sys.executable, *map(str, command), "--device", "cpu"]
        done = subprocess.run(call, cwd=ROOT, stdout=log, stderr=log, env=one)
    if done.returncode:
        raise SystemExit(f"python {' '.join(map(str, command))} failed; see runs/stage2.log")


PICTURES = {
    "caption_scene": "caption names all",
    "qa_own": "own wording",
    "qa_taught": "taught",
    "qa_unseen": "unseen",
    "qa_own, left out": "beside: own",
    "qa_taught, left out": "beside: as taught",
    "qa_unseen, left out": "beside: unseen",
}
WORDS = {
    "caption_scene": "caption names all",
    "qa_own": "own wording",
    "qa_taught": "taught",
    "qa_unseen": "unseen",
    "qa_sounds": "sounds, own wording",
}


def table(found: dict) -> str:
    """Markdown tables with one row per variant: from pictures, with the control in brackets, and from words; then the
    same for the recipes of published systems.
    """
    lines = []
    for title, arms in (("", ARMS), ("\nThe recipes of LLaVA-1.5 and of AnyMAL. ", SYSTEMS)):
        parts = {arm: found[arm] for arm in arms if arm in found}
        pictures = {arm: [_both(part["pictures"][name]) for name in PICTURES] for arm, part in parts.items()}
        words = {arm: [f"{part['words'][name]:.3f}" for name in WORDS] for arm, part in parts.items()}
        lines += [f"{title}From pictures of new scenes, in brackets from another scene's features:\n"]
        lines += rows("", PICTURES.values(), pictures)
        lines += ["\nFrom descriptions in words, by the language model with what stage 2 put on it:\n"]
        lines += rows("", WORDS.values(), words)
    return "\n".join(lines)


def _both(score: dict[str, float]) -> str:
    return f"{score['real']:.3f} ({score['shuffled']:.3f})"


def rows(corner: str, heads: Iterable[str], lines: dict[str, list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    heads = list(heads)
    cells = [[corner, *heads], ["---"] + ["---:"] * len(heads), *([name, *values] for name, values in lines.items())]
    return [f"| {' | '.join(row)} |" for row in cells]


if __name__ == "__main__":
    main()
