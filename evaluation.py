"""What eval.py does between a run and its table: which task, which answers, which scores."""

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from PIL import Image

from adapters.boxes import said as in_words
from adapters.model import AdaptedModel
from adapters.prompt import Prompt
from precompute.encoders import Encoder
from precompute.similarity import TextTower
from scoring import captions, clip_score
from scoring.benchmarks import OWN, QUESTION, Benchmark, benchmark_of, find_benchmark
from scoring.control import stand_ins
from scoring.score import Score
from scoring.summary import CONTROLS, REAL, Prediction, kind_of, majority, scores
from shards.atomic import json_line, replace_bytes
from shards.read import FeatureSet, Text
from training import RunError
from training.answers import answer, blank_feature, caption_groups, conditions
from training.data import Encoded, medium_contents, question_of
from training.run import Run

MOST_TOKENS = 64
PREFIX = "A photo depicts"  # before each caption, as Hessel et al. 2021 have it


@dataclass(frozen=True)
class Chosen:
    """How texts are asked and scored: the task, if they belong to one, whose prompt, and the decoding."""

    task: Benchmark | None = None
    system: str = OWN
    prompt: str = QUESTION
    max_new_tokens: int = MOST_TOKENS
    beams: int = 1

    def facts(self) -> dict:
        """For eval.json."""
        return {"task": self.task.name if self.task else None} | {
            name: getattr(self, name) for name in ("system", "prompt", "max_new_tokens", "beams")
        }


def choose(
    name: str, system: str, texts: Sequence[Text], max_new_tokens: int = 0, beams: int = 0
) -> tuple[Chosen, list[Text]]:
    """The task called `name`, with its prompt and decoding, and which of the held-out texts it is about; or, without a
    name, the one that the texts say they are of: then they are scored as it does, and asked as the adapter was trained.

    Raises ScoreError for a name or a system's prompt that there isn't, RunError where none of the texts is of the task.
    """
    if not name:
        task = benchmark_of(text.meta for text in texts)
        system, prompt = task.prompt_of(system or OWN) if task else (OWN, QUESTION)
        return Chosen(task, system, prompt, max_new_tokens or MOST_TOKENS, beams or 1), list(texts)
    task = find_benchmark(name)
    system, prompt = task.prompt_of(system)
    marked = [text for text in texts if text.meta.get("task") == name]
    if not marked and any("task" in text.meta for text in texts):
        found = sorted({str(text.meta.get("task")) for text in texts})
        raise RunError(f"no held-out text is of {name}; there are texts of {', '.join(found)}")
    asked = "captions" not in task.measures
    kept = [text for text in marked or texts if (question_of(text) is not None) == asked]
    splits = [split for split in task.splits if any(text.split == split for text in kept)]
    if not kept:
        raise RunError(f"{name} scores {'questions' if asked else 'captions'}, and none is held out")
    if splits:
        kept = [text for text in kept if text.split in splits]
    lacking = {"letter": lambda text: "letter" in text.meta, "boxes": lambda text: text.turns[-1].get("boxes")}
    if any(measure in lacking and not all(map(lacking[measure], kept)) for measure in task.measures):
        raise RunError(f"these texts don't hold what {name} is scored by; make the set from {task.files}")
    chosen = Chosen(task, system, prompt, max_new_tokens or task.max_new_tokens, beams or task.beams)
    return chosen, kept


def prompted(model: AdaptedModel, chosen: Chosen) -> Prompt:
    """The adapter's prompt in the form that the task asks for; with the adapter's own, as it is."""
    template = model.prompt.template
    if chosen.system == OWN:
        return model.prompt
    if QUESTION not in chosen.prompt:
        fields = {"question": "{}", "caption_prompt": chosen.prompt}
    else:
        fields = {"question": chosen.prompt.replace(QUESTION, "{}")}
    if template.style == "chat":
        fields = {"caption_prompt": chosen.prompt.strip()}
    prompt = copy(model.prompt)
    prompt.template = replace(template, **fields)
    return prompt


def posed(text: Text, chosen: Chosen, style: str) -> Text:
    """The text as it is asked: with its options, and in a chat within the task's words."""
    turns = chosen.task.posed(text.turns, text.meta, chosen.system) if chosen.task else list(text.turns)
    asked = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=None)
    if style == "chat" and asked is not None and chosen.prompt != QUESTION:
        content = chosen.prompt.replace(QUESTION, turns[asked]["content"]).strip()
        turns[asked] = turns[asked] | {"content": content}
    return replace(text, turns=tuple(turns))


def prediction(text: Text, alike: Sequence[Text], chosen: Chosen, decimals: int = 2) -> Prediction:
    """What is right for a text, or for all that are answered alike; not yet answered."""
    said = [in_words(one.turns[-1], decimals) for one in alike]
    references = said
    if chosen.task and question_of(text):
        references = chosen.task.references(text.turns[-1], text.meta, said[0])
    elif question_of(text) and len(text.meta.get("answers") or ()) > 1:
        references = text.meta["answers"]
    return Prediction(text.id, " ".join(text.media), question_of(text) or "", "", said[0], meta=text.meta,
                      references=references)  # fmt: skip


def predict(
    model: AdaptedModel,
    features: FeatureSet,
    texts: Sequence[Text],
    chosen: Chosen,
    controls: Sequence[str],
    batch: int,
) -> list[Prediction]:
    """The answers to `texts` with their media and under each control; captions of one medium are one prediction."""
    encoded = Encoded(features, prompted(model, chosen), model.adapter)
    stand_in = stand_ins(medium_contents(features, texts)) if "shuffled" in controls else {}
    if "shuffled" in controls and not stand_in:
        print("no shuffled features: more than half of these media show the same, so none can stand in for another")
    blank = blank_feature(features, encoded.kind) if "blank" in controls else None
    groups = caption_groups([text for text in texts if text.turns[-1]["role"] == "assistant"])
    template = encoded.prompt.template
    asked = [posed(text, chosen, template.style) for text, _ in groups]
    decoding = {"num_beams": chosen.beams} if chosen.beams > 1 else {}
    said = answer(
        model, encoded, asked, conditions(controls, blank, stand_in), batch, chosen.max_new_tokens, **decoding
    )
    meta = {key: text.meta for text in texts for key in text.media}
    rows = []
    for i, (text, alike) in enumerate(groups):
        row = prediction(text, alike, chosen, template.box_decimals)
        row.answer, row.control = said[REAL][i], said["shuffled"][i] if "shuffled" in said else None
        row.blank, row.none = (said[name][i] if name in said else None for name in ("blank", "none"))
        row.control_meta = meta.get(stand_in.get(text.media[0]), {})
        rows.append(row)
    return rows


def clip_scores(rows: Sequence[Prediction], features: FeatureSet, encoder: Encoder) -> dict[str, dict[str, Score]]:
    """Condition -> the CLIPScore of its captions against their pictures' pooled features, by the encoder's text tower.

    Raises RunError where the set holds no pooled features or there is no caption, PrecomputeError for an encoder
    without a text tower.
    """
    captioned = [row for row in rows if not row.prompt and " " not in row.media]
    if "pooled" not in features.manifest["features"] or not captioned:
        raise RunError(f"--clip-score compares captions with pooled features; {features.path} lacks one of these")
    tower, pictures = TextTower(encoder), features.read_many([row.media for row in captioned], "pooled").float()
    found = {}
    for condition in (REAL, *CONTROLS):
        said = {row.id: row.said(condition) for row in captioned if row.said(condition) is not None}
        if said:
            words = tower.vectors([f"{PREFIX} {text}" for text in said.values()])
            seen = {row.id: pictures[i].numpy() for i, row in enumerate(captioned) if row.id in said}
            found[condition] = {"caption_clip": clip_score(dict(zip(said, words.numpy(), strict=True)), seen)}
    return found


def all_scores(
    rows: Sequence[Prediction],
    texts: Sequence[Text],
    chosen: Chosen,
    more: Mapping[str, Mapping[str, Score]] | None = None,
) -> tuple[dict[str, dict[str, Score]], list[str]]:
    """Condition -> name -> score, and what is to be said about them; `more` are further ones. Each prediction gets its
    own scores and its majority answer.
    """
    kinds, measures = (chosen.task.kinds, chosen.task.measures) if chosen.task else ("", ())
    learnt = [
        (kind_of(text, kinds), text.turns[-1]["content"])
        for text in texts
        if text.split == "train" and question_of(text) and text.turns[-1]["role"] == "assistant"
    ]
    source = majority(rows, [] if {"letter", "boxes"} & set(measures) else learnt, kinds)
    wordy = [row for row in rows if not row.prompt]
    captions.prepare(str(text) for row in wordy for text in (*row.right(), *map(row.said, (REAL, *CONTROLS))) if text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = {condition: scores(rows, condition, measures, kinds) for condition in (REAL, *CONTROLS)}
    found = {name: dict(sorted((part | (more or {}).get(name, {})).items())) for name, part in found.items()}
    found = {condition: part for condition, part in found.items() if part or condition == REAL}
    for name, score in found[REAL].items():
        for row in rows:
            if row.id in score.each:
                row.score[name] = round(score.each[row.id], 4)
    said = list(dict.fromkeys(str(warning.message) for warning in caught))
    if wordy and not captions.available():
        said.append("no CIDEr, BLEU and ROUGE-L of captions: they need pip install -e '.[scores]'")
    if source:
        said.append(f"majority: the commonest answer of each kind of question, from {source}")
    return found, said


def pick(rows: Sequence[Prediction], most: int = 8) -> list[Prediction]:
    """A few predictions for the picture: captions and questions in turn, each about another medium."""
    captions, questions = [row for row in rows if not row.prompt], [row for row in rows if row.prompt]
    share = most // 2 if captions and questions else most
    chosen, seen = ([], []), set()
    for part, candidates in zip(chosen, (captions, questions), strict=True):
        for row in candidates[:: max(1, len(candidates) // (4 * share))]:
            if len(part) < share and row.media not in seen:
                seen.add(row.media)
                part.append(row)
    return [row for pair in zip_longest(*chosen) for row in pair if row is not None]


def write(folder: Run, result: dict, predictions: Sequence[dict], sheet: Image.Image) -> Path:
    """Write evals/<n>.json and the newest eval.json, predictions.jsonl and samples.png, each whole or not at all."""
    evals = folder.path / "evals"
    evals.mkdir(exist_ok=True)
    number = max((int(file.stem) for file in evals.glob("*.json") if file.stem.isdigit()), default=0) + 1
    text = (json.dumps(result, indent=1) + "\n").encode()
    picture = io.BytesIO()
    sheet.save(picture, "PNG")
    replace_bytes(evals / f"{number}.json", text)
    replace_bytes(folder.path / "predictions.jsonl", b"".join(json_line(row) for row in predictions))
    replace_bytes(folder.path / "samples.png", picture.getvalue())
    replace_bytes(folder.path / "eval.json", text)
    return folder.path / "eval.json"
