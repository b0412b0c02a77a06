"""Answers chosen among given ones by how likely the model finds them, instead of generated."""

from collections.abc import Mapping, Sequence

import torch

from periscope.adapters.model import AdaptedModel, Features, Texts
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.segments import Segment
from periscope.errors import AdapterError

Candidates = Mapping[str, tuple[int, ...]]  # words -> their ids as an answer, with what ends it
ROWS = 64  # candidates of one question in a forward pass


def candidates_of(prompt: Prompt, answers: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The ids that each of `answers` has as an answer to a question, with what ends an answer."""
    turn = {"role": "user", "content": "?"}
    before = _ids(prompt.segments([turn], answer=False))
    whole = {words: _ids(prompt.segments([turn, {"role": "assistant", "content": words}])) for words in answers}
    return {words: ids[len(before) :] for words, ids in whole.items()}


@torch.no_grad()
def by_first_token(model: AdaptedModel, texts: Texts, features: Features, candidates: Candidates) -> torch.Tensor:
    """How likely each candidate's first token is after prompts made with `answer=False`, among those of all candidates:
    `(texts, candidates)` in fp32, rows sum to 1.

    That is how Cobra's harness, https://github.com/h-zhao1997/vlm-evaluation, reads True or False and Yes or No. Raises
    AdapterError for candidates that begin alike.
    """
    first: dict[int, str] = {}
    for words, ids in candidates.items():
        if (other := first.setdefault(ids[0], words)) != words:
            raise AdapterError(f"{other!r} and {words!r} begin with the same token, so it doesn't tell which is meant")
    return _first_logits(model, texts, features)[:, list(first)].softmax(-1)


@torch.no_grad()
def likeliest(
    model: AdaptedModel, texts: Texts, features: Features, candidates: Candidates, keep: int = ROWS
) -> list[str]:
    """The likeliest candidate for each prompt: of the `keep` whose first tokens are, that with the highest probability
    in all its tokens.

    As `rank_answer` of eP-ALM (https://github.com/mshukor/eP-ALM, models/epalm.py), which counts the first token twice.
    """
    words, ids = list(candidates), list(candidates.values())
    starts = _first_logits(model, texts, features)[:, [each[0] for each in ids]]
    chosen = []
    for text, row in zip(texts, starts, strict=True):
        kept = row.topk(min(keep, len(ids))).indices.tolist()
        losses: list[float] = []
        for first in range(0, len(kept), ROWS):
            rows = [[*text, Segment(ids=ids[i], target=True)] for i in kept[first : first + ROWS]]
            losses += [loss for loss, _ in model.text_losses(rows, features)]
        chosen.append(words[min(zip(losses, kept, strict=True))[1]])
    return chosen


def _first_logits(model: AdaptedModel, texts: Texts, features: Features) -> torch.Tensor:
    """Logits `(texts, vocabulary)` in fp32 of what follows each prompt."""
    with model.lm.generating:
        return model._next_logits(texts, [()] * len(texts), model.slots(texts, features))


def _ids(segments: Sequence[Segment]) -> tuple[int, ...]:
    return tuple(token for segment in segments for token in segment.ids)
