"""Whether a model sees: one sentence on whether a medium's own features do better than another medium's.

The loss per target token decides where it can. It is sensitive (every token counts, guessed right or not) and paired
(the same targets under both). Where its interval leaves the question open, the scores that suit the data decide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from periscope.evaluation.metrics.score import Score, mean
from periscope.evaluation.scoring.losses import LossPair
from periscope.evaluation.scoring.measures import caption_length
from periscope.evaluation.scoring.prediction import OVERALL, Prediction

SEES, BLIND, UNCLEAR = "It sees", "It doesn't see yet", "Too little data to tell whether it sees"
LEAST = 0.02  # nats per token, or of a score: a smaller difference isn't worth the name
FEWEST_MEDIA = 6  # of fewer not even a sign test could reach 5%


@dataclass(frozen=True)
class Verdict:
    """seeing: "sees", "blind" or "unclear" · sentence: the same in words, with the numbers · measure: what decided
    ("loss" or the name of a score); "" where nothing did.
    """

    seeing: Literal["sees", "blind", "unclear"]
    sentence: str
    measure: str = ""

    @property
    def style(self) -> str:
        """Its colour on a terminal, as rich names it."""
        return {"sees": "bold green", "blind": "bold red", "unclear": "bold yellow"}[self.seeing]

    def to_dict(self) -> dict[str, str]:
        """The fields for eval.json."""
        return asdict(self)


def loss_verdict(split: str, losses: LossPair | None) -> Verdict | None:
    """What the held-out losses decide; None where they leave it open."""
    if not losses or not losses.drop or losses.media < FEWEST_MEDIA:
        return None
    seeing = _decide([losses.drop])
    if not seeing:
        return None
    return Verdict(seeing, f"{SEES if seeing == 'sees' else BLIND}: {_of_loss(split, losses)}.", "loss")


def verdict(
    split: str,
    losses: LossPair | None,
    rows: Sequence[Prediction],
    found: Mapping[str, Mapping[str, Score]],
) -> Verdict:
    """The verdict on a split. found: condition -> name -> score of `rows`."""
    if decided := loss_verdict(split, losses):
        return decided
    differences = score_differences(rows, found)
    why = _of_loss(split, losses) if losses and losses.drop else "no other medium of it can stand in for each"
    media = len({row.media for row in rows})
    seeing = _decide(list(differences.values())) if media >= FEWEST_MEDIA else None
    words = "; ".join(
        f"{name} is {found['real'][name].value:.3f}, and {found['shuffled'][name].value:.3f} with another medium's "
        f"features (95% interval of the difference {score.low:.3f} to {score.high:.3f})"
        for name, score in differences.items()
    )
    if seeing and words:
        measure = next(iter(differences))
        return Verdict(seeing, f"{SEES if seeing == 'sees' else BLIND}: {words}; the loss can't tell ({why}).", measure)
    if media < FEWEST_MEDIA:
        why, words = f"{split} has {media} media, and at least {FEWEST_MEDIA} are needed", ""
    return Verdict("unclear", f"{UNCLEAR}: {why}{f'; {words}' if words else ''}.")


def score_differences(rows: Sequence[Prediction], found: Mapping[str, Mapping[str, Score]]) -> dict[str, Score]:
    """The paired difference between real and shuffled, by name, of the scores that suit the data: of questions their
    overall score; of captions exact match and set F1 where they are short, otherwise the F1 of words. Intervals are
    over media.
    """
    real, shuffled = found["real"], found.get("shuffled", {})
    names = [*OVERALL, "vqa_always", "box_accuracy"]
    names += ["caption_exact", "caption_set_f1"] if "caption_exact" in real else ["caption_f1"]
    media = {row.id: row.media for row in rows}
    differences = {}
    for name in names:
        if name in real and name in shuffled:
            own, other = real[name].each, shuffled[name].each
            if each := {key: own[key] - other[key] for key in own if key in other}:
                differences[name] = mean(each, clusters=media)
    return differences


def caption_note(rows: Sequence[Prediction], found: Mapping[str, Mapping[str, Score]]) -> str:
    """Why CIDEr, BLEU and ROUGE-L say little of these captions; "" where they don't say little."""
    captions = {row.id: row for row in rows if not row.prompt}
    if "caption_exact" not in found["real"] or "caption_cider" not in found["real"]:
        return ""
    length = caption_length(captions)
    return (
        f"the reference captions have a median of {length:g} word{'s' * (length != 1)}, too few for CIDEr, BLEU and "
        "ROUGE-L to tell answers apart: read caption_exact and caption_set_f1"
    )


def _decide(differences: Sequence[Score]) -> Literal["sees", "blind"] | None:
    """ "sees" where one of the differences is surely above 0 and large enough to matter, "blind" where none can be."""
    if any(each.low > 0 and each.value >= LEAST for each in differences):
        return "sees"
    return "blind" if differences and all(each.high < LEAST for each in differences) else None


def _of_loss(split: str, losses: LossPair) -> str:
    drop = losses.drop
    assert drop is not None and losses.shuffled is not None
    return (
        f"the loss on {split} is {losses.real:.3f} nats per token with a medium's own features and "
        f"{losses.shuffled:.3f} with another's, a difference of {drop.value:.3f} (95% interval {drop.low:.3f} to "
        f"{drop.high:.3f}, {losses.media} media)"
    )
