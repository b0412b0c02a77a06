"""How right an answer is: word for word, by its words, and by the nearest known name of a sentence encoder.

The nearest name forgives other spellings ("a cat's face" for "cat face") and, through the names' groups, tells a
wrong animal from a wrong kind of thing. Every score stands beside the same score of shuffled answers: those that the
model gave with another medium's features.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

WORD = re.compile(r"[\w'-]+")
BATCH = 64


@dataclass(frozen=True)
class Answer:
    """An answer, the right name and its group; the split, the answer to another medium, the picture's file name."""

    said: str
    name: str
    group: str
    split: str = ""
    shuffled: str = ""
    picture: str = ""


def normal(text: str) -> str:
    """Lower case, single spaces, without the punctuation and the article around a name."""
    text = " ".join(text.lower().split()).strip(" .,;:!?\"'")
    return re.sub(r"^(an?|the) ", "", text)


def exact(said: str, name: str) -> float:
    """1.0 when the answer is the name, up to case, spaces, an article and a full stop."""
    return float(normal(said) == normal(name))


def word_f1(said: str, name: str) -> float:
    """F1 of the set of an answer's words against the name's."""
    ours, theirs = set(WORD.findall(normal(said))), set(WORD.findall(normal(name)))
    both = len(ours & theirs)
    return 2 * both / (len(ours) + len(theirs)) if both else 0.0


class Sentences:
    """all-MiniLM-L6-v2: texts to unit vectors, the mean of the last hidden states (Reimers and Gurevych 2019, arXiv
    1908.10084; https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2).
    """

    def __init__(self, folder: Path):
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """(texts, width) float32, each of length 1."""
        parts = []
        for start in range(0, len(texts), BATCH):
            batch = self.tokenizer(
                list(texts[start : start + BATCH]), padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            states, mask = self.model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            parts.append((states * mask).sum(1) / mask.sum(1))
        return functional.normalize(torch.cat(parts), dim=-1)


def nearest(said: torch.Tensor, known: torch.Tensor) -> list[int]:
    """The index of the known vector with the largest dot product, for each of `said (texts, width)`."""
    return (said @ known.T).argmax(1).tolist()


def judge(
    answers: Sequence[Answer],
    groups: dict[str, str],
    vectors: Callable[[Sequence[str]], torch.Tensor],
    shuffled: bool = False,
) -> dict[str, float]:
    """The means over the answers, or over their shuffled controls: `exact`, `f1`, `nearest` (the nearest of all known
    names is the right one), `group` (it is at least of the right group), and `commonest` (the share of the answer
    given most often, near 1 where a model says the same to everything).

    groups: every known name and its group · vectors: texts -> (texts, width), such as `Sentences`.
    """
    said = [answer.shuffled if shuffled else answer.said for answer in answers]
    names = list(groups)
    found = [names[index] for index in nearest(vectors([normal(text) for text in said]), vectors(names))]
    rows = list(zip(said, found, answers, strict=True))
    scores = {
        "exact": [exact(text, answer.name) for text, _, answer in rows],
        "f1": [word_f1(text, answer.name) for text, _, answer in rows],
        "nearest": [float(name == answer.name) for _, name, answer in rows],
        "group": [float(groups[name] == answer.group) for _, name, answer in rows],
    }
    most = Counter(map(normal, said)).most_common(1)[0][1]
    return {name: sum(values) / len(values) for name, values in scores.items()} | {"commonest": most / len(said)}
