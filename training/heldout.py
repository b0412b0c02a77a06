"""Evaluation on held-out texts while training: the loss with its controls, the tokens' scale, sample answers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch

from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.prompting.boxes import turn_text as with_boxes
from periscope.bars import progress_bar
from periscope.evaluation.controls import REAL, conditions, evenly, text_losses
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text
from periscope.training.data.dataset import TextFeatureDataset, question_of
from periscope.training.data.training_set import TrainingSet
from periscope.training.distributed import ALONE, Ranks

SAMPLES = 8  # answers shown in samples.md
SCORED_SAMPLES = 32  # answers scored, where that is cheap
FEWEST_TEXTS = 48  # by which checkpoints can be told apart: by 18, a good early one was taken for the best
LOOK_SHARE = 0.05  # of the training between two evaluations
# In forward passes of one text. Frozen weights have no gradients, so a backward pass costs about a forward pass; an
# answer of about eight tokens, one text's share of its batch, was measured at 1.4 (SmolLM2-135M, two cores).
TRAINING_COST, ANSWER_COST = 2.0, 1.4
BLIND_STEPS, BLIND_DROP = 500, 0.02  # see `still_blind`


class SetResult(TypedDict):
    """One set in an evaluation: losses per condition, projected tokens' RMS over the embeddings', texts trained on, and
    held-out texts left out because their loss isn't finite.
    """

    heldout: dict[str, float]
    rms_ratio: float
    texts: int
    not_finite: int


@dataclass(frozen=True)
class LookSize:
    """How many held-out texts of a set one evaluation takes for the losses, and how many answers it writes."""

    texts: int
    answers: int


def look_size(texts: int, passes: int, trained_between: int) -> LookSize:
    """As many of `texts` held-out texts as keep an evaluation to about 5% of the training since the last, at least 48.

    passes: conditions whose loss is computed each time · trained_between: texts of the set trained on in between. By
    these counts alone, so that a resumed run evaluates the same.
    """
    budget = LOOK_SHARE * TRAINING_COST * trained_between
    answers = min(SCORED_SAMPLES, max(SAMPLES, int(budget / 4 / ANSWER_COST)))
    most = max(FEWEST_TEXTS, int((budget - answers * ANSWER_COST) / passes))
    return LookSize(min(texts, most), min(answers, texts))


def texts_that_pay(texts: int, passes: int) -> float:
    """How many texts must be trained on for the smallest evaluation of `texts` held-out texts to take 5% of that."""
    cost = passes * min(texts, FEWEST_TEXTS) + ANSWER_COST * min(texts, SAMPLES)
    return cost / (LOOK_SHARE * TRAINING_COST)


def heldout_losses(
    model: AdaptedModel,
    dataset: TextFeatureDataset,
    texts: Sequence[Text],
    stand_ins: Mapping[str, str] | None,
    micro: int,
    ranks: Ranks = ALONE,
    not_finite: set[str] | None = None,
    advance: Callable[[int], object] | None = None,
    without_media: float | None = None,
) -> dict[str, float]:
    """Loss per target token, in nats, with the `real` features, with those of `stand_ins` (`shuffled`), and without
    media (`none`).

    A text whose loss isn't finite is left out of a mean, unless it is so of all of them; those left out of the `real`
    one are added to `not_finite`, by id.

    stand_ins: medium -> the medium whose features replace its own; without any that control is left out · micro: texts
    per forward pass · advance: called with the number of texts done, for a progress bar · without_media: the loss of
    `none`, if it is known. Several `ranks` share the texts.
    """
    own = texts[ranks.rank :: ranks.size]
    under = conditions(("shuffled",) if without_media is not None else ("shuffled", "none"), stand_ins)
    losses = {}
    for name, rows in text_losses(model, dataset, own, under, micro, advance).items():
        finite = [(loss, count) for loss, count in rows if math.isfinite(loss)]
        loss, count = ranks.sum(sum(loss for loss, _ in finite), sum(count for _, count in finite))
        losses[name] = loss / count if count else math.nan
        if name == REAL and not_finite is not None:
            not_finite |= {text.id for text, (loss, _) in zip(own, rows, strict=True) if not math.isfinite(loss)}
    return losses if without_media is None else losses | {"none": without_media}


def still_blind(step: int, losses: Mapping[str, float]) -> bool:
    """Whether another medium's features do as well after 500 steps: a loss less than 0.02 nats per token higher."""
    return step >= BLIND_STEPS and "shuffled" in losses and losses["shuffled"] - losses["real"] < BLIND_DROP


@torch.no_grad()
def scale_ratio(adapter: Adapter, features: FeatureSet, texts: Sequence[Text]) -> float:
    """The median RMS of the projected tokens over that of the word embeddings."""
    keys = list(dict.fromkeys(key for text in texts[:32] for key in text.media))
    if not keys or not adapter.tokens:
        return 1.0
    device = next(adapter.parameters()).device
    tokens = adapter(features.read_many(keys, adapter.features.kind).to(device))
    return (tokens.pow(2).mean(-1).sqrt().cpu().nanmedian() / adapter.embedding_rms).item()


def evaluate_heldout(
    model: AdaptedModel,
    sets: Sequence[TrainingSet],
    trained_texts: Sequence[int],
    micro: int,
    ranks: Ranks = ALONE,
    without_media: dict[str, float] | None = None,
) -> tuple[dict[str, float], float, dict[str, SetResult]]:
    """Evaluate every set that has held-out texts: (losses, RMS ratio, path of the set -> its own result).

    The first two are means over the sets, weighted by `trained_texts`, the texts of each set trained on so far.
    without_media: path of a set -> its loss without media where training can't change that; filled by the first
    evaluation.
    """
    results: dict[str, SetResult] = {}
    for training_set, count in zip(sets, trained_texts, strict=True):
        if not (texts := training_set.heldout):
            continue
        bad: set[str] = set()
        path, known = str(training_set.features.path), {} if without_media is None else without_media
        passes = len(conditions(("shuffled", "none"), training_set.stand_ins)) - (path in known)
        total = len(texts[ranks.rank :: ranks.size]) * passes
        with progress_bar(
            total=total, desc="held-out loss", unit=" texts", leave=False, disable=not ranks.first
        ) as bar:
            losses = heldout_losses(
                model,
                training_set.dataset,
                texts,
                training_set.stand_ins,
                micro,
                ranks,
                bad,
                bar.update,
                known.get(path),
            )
        if not training_set.learns_from_words(model):
            known[path] = losses["none"]
        ratio = scale_ratio(training_set.dataset.adapter, training_set.features, texts)
        results[path] = {
            "heldout": losses,
            "rms_ratio": ratio,
            "texts": count,
            "not_finite": int(ranks.sum(len(bad))[0]),
        }
    rows = list(results.values())
    counts = [row["texts"] for row in rows]
    names = [name for name in rows[0]["heldout"] if all(name in row["heldout"] for row in rows)]
    losses = {name: _mean([row["heldout"][name] for row in rows], counts) for name in names}
    return losses, _mean([row["rms_ratio"] for row in rows], counts), results


def _mean(values: Sequence[float], counts: Sequence[int]) -> float:
    """The weighted mean; the plain mean when all counts are 0, and one value as it is."""
    if len(values) == 1:
        return values[0]
    weights = counts if sum(counts) else [1] * len(counts)
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def describe(step: int, result: SetResult, name: str = "") -> str:
    """An evaluation of one set as a line for the terminal; `name` where there are several sets."""
    losses = ", ".join(f"{condition} {value:.4f}" for condition, value in result["heldout"].items())
    line = f"step {step}: {name}{': ' if name else ''}held-out loss {losses}; "
    line += f"tokens at {result['rms_ratio']:.2f} of the embeddings' RMS"
    if name:
        line += f"; {result['texts']:,} texts learnt from"
    if result["not_finite"]:
        line += f"; {result['not_finite']} texts left out, whose loss isn't finite"
    if still_blind(step, result["heldout"]):
        line += (
            "\nstill blind: another medium's features do as well. Check that the captions fit the media, "
            "try a higher --lr, or an adapter that reads patches (--adapter mlp)"
        )
    return line


def sample_answers(
    model: AdaptedModel,
    dataset: TextFeatureDataset,
    texts: Sequence[Text],
    micro: int = SAMPLES,
    ranks: Ranks = ALONE,
    scored: int | None = None,
) -> list[dict]:
    """Answers to the same held-out inputs each time: the first `SAMPLES` to be shown, all of them to be scored.

    micro: texts that are answered at once, at least `SAMPLES`; as many as are trained on at once fit in memory ·
    scored: how many in all (None: `SCORED_SAMPLES`).

    Returns dicts with id, media, prompt, answer, reference and meta.
    """
    shown = evenly(texts, SAMPLES)
    shown_ids = {text.id for text in shown}
    others = [text for text in texts if text.id not in shown_ids]
    count = SCORED_SAMPLES if scored is None else scored
    chosen = [*shown, *evenly(others, max(0, count - len(shown)))]
    answers = []
    together = max(SAMPLES, micro)
    with progress_bar(
        total=len(chosen), desc="held-out answers", unit=" texts", leave=False, disable=not ranks.first
    ) as bar:
        for i in range(0, len(chosen), together):
            chunk = chosen[i : i + together]
            batch = dataset.batch(chunk, answer=False)
            for text, answer in zip(chunk, model.generate(batch.texts, batch.features), strict=True):
                reference = with_boxes(text.turns[-1], model.prompt.template.box_decimals)
                row = {"id": text.id, "media": " ".join(text.media), "prompt": question_of(text) or ""}
                answers.append(row | {"answer": answer, "reference": reference, "meta": text.meta})
            bar.update(len(chunk))
    return answers


def for_people(row: Mapping, dataset: TextFeatureDataset) -> dict:
    """A row of `sample_answers` as samples.md shows it: the medium by the name of its file, the paths of its thumbnails
    (`pictures`), and the prompt that was asked, with the template's words around it.
    """
    template = dataset.prompt.template
    if not row["prompt"]:
        prompt = template.caption_prompt or "(caption)"
    else:
        prompt = row["prompt"] if template.style == "chat" else template.question.replace("{}", row["prompt"]).strip()
    keys = row["media"].split()
    names = [str(dataset.features.info(key)["origin"]) for key in keys]
    pictures = [picture for key in keys if (picture := dataset.features.thumbnail(key))]
    shown = {"media": " ".join(names), "prompt": prompt, "answer": row["answer"], "reference": row["reference"]}
    return shown | {"pictures": pictures}
