"""Ask about a picture and a sound in one prompt, through two separately trained adapters: `python -m studies.compose`.

The adapters are the demo's, trained on captions alone. Held-out questions are asked with their medium alone, with a
medium of the other modality before or after it, and with their own medium exchanged for another. The same is repeated
with descriptions in words in place of the adapters' tokens, which shows what the language model itself makes of two
media. Results go to docs/composition.json, and as tables to docs/composition.md.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from periscope import inference as live
from periscope.adapters.composed import ComposedModel
from periscope.adapters.io.schema import AdapterConfig
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.model import AdaptedModel
from periscope.evaluation.controls import stand_ins
from periscope.evaluation.metrics.answers import same_answer
from periscope.evaluation.metrics.score import mean
from periscope.evaluation.tasks import TASKS
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text
from periscope.training.data.dataset import medium_contents, question_of
from periscope.training.run import Run
from studies.corpus import MEDIA, describe

ROOT = Path(__file__).resolve().parent.parent
FOUND, PAGE = ROOT / "docs" / "composition.json", ROOT / "docs" / "composition.md"
BEGIN, END = "<!-- made by studies.compose -->", "<!-- end -->"
NAMES = {"image": "picture", "audio": "sound"}
THINGS = {"image": "objects", "audio": "events"}
TOKENS, WORDS = "adapters' tokens", "words"


@dataclass
class Options:
    """Which adapters, and how many questions."""

    image: Path = ROOT / "runs" / "eyes"
    """A run on the demo's pictures: python train.py --adapter mlp16 --features features/demo --name eyes"""
    audio: Path = ROOT / "runs" / "ears"
    """A run on the demo's sounds: python train.py --adapter mlp16 --features features/demo-audio --name ears"""
    questions: int = 600
    """Questions asked of each modality."""
    captions: int = 100
    """Pairs of a picture and a sound that are captioned."""
    batch: int = 64
    """Answers generated at once."""


class Set:
    """The held-out media of a run's feature set: `questions`, `captions`, features by key, and for each medium one with
    other content (`instead`).
    """

    def __init__(self, run: Path, kind: str, things: str):
        self.features = FeatureSet(ROOT / Run.open(run).config.features[0])
        self.kind, self.things = kind, things
        texts = [text for text in self.features.texts() if text.split == "heldout"]
        self.questions = [text for text in texts if question_of(text)]
        self.captions = [text for text in texts if not question_of(text)]
        self.instead = stand_ins(medium_contents(self.features, texts))
        self.shown = {text.media[0]: text.meta[things] for text in texts}

    def read(self, modality: str, key: str) -> torch.Tensor:
        """A medium's features."""
        return self.features.read(key, self.kind)


class Told(ComposedModel):
    """Takes vectors in place of what the adapters would make of features."""

    def slots(self, texts, features, *_) -> dict[str, torch.Tensor]:
        return dict(features)

    def generate(self, *given, **decoding) -> list[str]:
        return AdaptedModel.generate(self, *given, **decoding)


class Words(Set):
    """Like Set, with the word embeddings of a description as features."""

    def __init__(self, run: Path, kind: str, things: str, lm: LanguageModel):
        super().__init__(run, kind, things)
        self.lm = lm

    def read(self, modality: str, key: str) -> torch.Tensor:
        """The embedded words of a description of a medium."""
        words = describe(MEDIA[modality], self.shown[key], random.Random(key))
        return self.lm.embed(torch.tensor(self.lm.tokenizer.encode(words, add_special_tokens=False)))


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    paths: dict[str | None, Path] = {"image": options.image, "audio": options.audio}
    loaded = {str(modality): pair for modality, pair in live.load_several(paths).items()}
    parts = {modality: part for modality, (part, _) in loaded.items()}
    kinds = {m: config.features.kind for m, (_, config) in loaded.items()}
    sets = {m: Set(paths[m], kinds[m], THINGS[m]) for m in parts}
    words = {m: Words(paths[m], kinds[m], THINGS[m], part.lm) for m, part in parts.items()}
    found = {"adapters": {m: about(paths[m], config) for m, (_, config) in loaded.items()}}
    for name, model, read in ((TOKENS, ComposedModel(parts), sets), (WORDS, Told(parts), words)):
        found[name] = {"questions": {}}
        for modality, other in (("image", "audio"), ("audio", "image")):
            chosen = random.Random(0).sample(sets[modality].questions, options.questions)
            beside = random.Random(1).choices(list(sets[other].shown), k=2 * options.questions)
            found[name]["questions"][modality] = ask(model, read, modality, other, chosen, beside, options.batch)
        found[name]["captions"] = caption(model, read, options.captions, options.batch)
    FOUND.write_text(json.dumps(found, indent=1) + "\n")
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    tables = f"The adapters' tokens:\n\n{table(found[TOKENS])}\n\nDescriptions in words:\n\n{table(found[WORDS])}"
    PAGE.write_text(f"{before}{BEGIN}\n{tables}\n{END}{rest.partition(END)[2]}")
    print(tables)


def about(path: Path, config: AdapterConfig) -> dict:
    """What was composed, for the record."""
    return {"adapter": config.adapter} | {key: config.training[key] for key in ("texts", "step", "seed")}


def ask(
    model: ComposedModel,
    sets: Mapping[str, Set],
    modality: str,
    other: str,
    texts: Sequence[Text],
    beside: Sequence[str],
    batch: int,
) -> dict:
    """Accuracy on questions about one modality's media under each condition: name -> value, low, high, n."""
    own, n = sets[modality], len(texts)
    keys = [text.media[0] for text in texts]
    conditions = {
        "alone": [[(modality, key)] for key in keys],
        "own first": [[(modality, key), (other, one)] for key, one in zip(keys, beside[:n], strict=True)],
        "own second": [[(other, one), (modality, key)] for key, one in zip(keys, beside[:n], strict=True)],
        "beside another": [[(modality, key), (other, one)] for key, one in zip(keys, beside[n:], strict=True)],
        "exchanged": [[(modality, own.instead[key]), (other, one)] for key, one in zip(keys, beside[:n], strict=True)],
        "other alone": [[(other, one)] for one in beside[:n]],
    }
    asked = [question_of(text) for text in texts]
    said = {name: answers(model, sets, media, asked, batch) for name, media in conditions.items()}
    right = [text.turns[-1]["content"] for text in texts]
    found = {name: share(map(same_answer, said[name], right)) for name in said}
    truth = [
        TASKS[own.things].answer(text.meta["ask"], own.shown[own.instead[key]])
        for text, key in zip(texts, keys, strict=True)
    ]
    valid = [i for i in range(n) if truth[i] is not None]
    found["exchanged, by the other's truth"] = share(same_answer(said["exchanged"][i], truth[i] or "") for i in valid)
    found["unchanged beside another"] = share(map(same_answer, said["own first"], said["beside another"]))
    return found


def caption(model: ComposedModel, sets: Mapping[str, Set], n: int, batch: int) -> dict:
    """Accuracy of captions of a picture and a sound together, about each, and of captions of each alone."""
    chosen = {m: random.Random(2).sample([text.media[0] for text in part.captions], n) for m, part in sets.items()}
    pairs = [[(m, chosen[m][i]) for m in sets] for i in range(n)]
    together = answers(model, sets, pairs, [None] * n, batch)
    found = {}
    for modality, part in sets.items():
        alone = answers(model, sets, [[(modality, key)] for key in chosen[modality]], [None] * n, batch)
        task, shown = TASKS[part.things], [part.shown[key] for key in chosen[modality]]
        found[modality] = {
            "alone": share(map(task.correct, alone, shown)),
            "together": share(map(task.correct, together, shown)),
        }
    return found


def answers(
    model: ComposedModel,
    sets: Mapping[str, Set],
    media: Sequence[Sequence[tuple[str, str]]],
    asked: Sequence[str | None],
    batch: int,
) -> list[str]:
    """Answers to questions (None: captions), each about a list of (modality, key)."""
    said = []
    for start in range(0, len(media), batch):
        texts = []
        features: dict[str, torch.Tensor] = {}
        for shown, question in zip(media[start : start + batch], asked[start : start + batch], strict=True):
            turns = [{"role": "user", "content": question}] if question else []
            names = [f"{modality}:{key}" for modality, key in shown]
            texts.append(model.prompt.segments(turns, names, answer=False))
            features |= {name: sets[m].read(m, key) for name, (m, key) in zip(names, shown, strict=True)}
        said += model.generate(texts, features, 72)
    return said


def share(right) -> dict:
    """A proportion with its 95% interval."""
    score = mean(dict(enumerate(map(float, right))))
    return {"value": round(score.value, 4), "low": round(score.low, 4), "high": round(score.high, 4), "n": score.n}


def table(found: dict) -> str:
    """A Markdown table: one row per condition, one column per modality."""

    def cell(part: dict) -> str:
        return f"{part['value']:.3f} ({part['low']:.3f} to {part['high']:.3f})"

    first = found["questions"]["image"]
    lines = [f"| questions right (95% interval) | about the picture, n = {first['alone']['n']} | about the sound, n = "
             f"{found['questions']['audio']['alone']['n']} |", "|---|---|---|"]  # fmt: skip
    for label, name in (
        ("its medium alone", "alone"),
        ("with one of the other modality, its own first", "own first"),
        ("its own second", "own second"),
        ("its own first, beside another of the other modality", "beside another"),
        ("the same answer beside the one and the other", "unchanged beside another"),
        ("its own exchanged for another: still right for its own", "exchanged"),
        ("... right for the exchanged one, where that has an answer", "exchanged, by the other's truth"),
        ("the other modality alone", "other alone"),
    ):
        cells = [cell(found["questions"][m][name]) for m in NAMES]
        if name == "exchanged, by the other's truth":
            cells = [f"{text}, n = {found['questions'][m][name]['n']}" for m, text in zip(NAMES, cells, strict=True)]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    for label, name in (("caption right, alone", "alone"), ("caption of both right about it", "together")):
        cells = [f"{cell(found['captions'][m][name])}, n = {found['captions'][m][name]['n']}" for m in NAMES]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
