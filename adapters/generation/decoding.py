"""How answers are decoded: greedily, by beam search, or drawn with a temperature."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from periscope.errors import AdapterError

if TYPE_CHECKING:  # the options are read before torch is imported
    import torch

DRAWING = ("temperature", "top_p", "top_k")


@dataclass(frozen=True)
class Decoding:
    """At most `max_new_tokens` tokens: the likeliest ones, or with several `beams` the likeliest sequence found. With a
    `temperature` above 0 tokens are drawn, from torch's generator, among the likeliest that make up `top_p` of the
    probability (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751) and the `top_k` likeliest, if it isn't 0.

    Raises AdapterError for a value out of range, and for either without a temperature, which would do nothing.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    beams: int = 1
    top_k: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "beams"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise AdapterError(f"{name} is {value!r}; it must be 1 or more")
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise AdapterError(f"{name} is {value!r}; it must be a number")
        if not 0 <= self.temperature < math.inf:
            raise AdapterError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise AdapterError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k and not self.temperature:
            raise AdapterError(f"top_k is {self.top_k}, and without a temperature nothing is drawn; set one, such as 1")
        if self.top_p < 1 and not self.temperature:
            raise AdapterError(
                f"top_p is {self.top_p}, and without a temperature nothing is drawn; set one, such as 0.7"
            )

    def arguments(self) -> dict[str, Any]:
        """Arguments of transformers' `GenerationConfig`; none for greedy decoding."""
        chosen: dict[str, Any] = {"num_beams": self.beams} if self.beams > 1 else {}
        if self.temperature:
            chosen |= {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
            chosen["top_k"] = self.top_k
        return chosen

    def __str__(self) -> str:
        drawn = f"drawn at temperature {self.temperature:g}, top-p {self.top_p:g}" if self.temperature else ""
        drawn += f", top-k {self.top_k}" if self.top_k else ""
        searched = f"{self.beams} beams" if self.beams > 1 else ""
        return ", ".join(filter(None, (searched, drawn))) or "greedy"


def token_chooser(decoding: Mapping[str, Any]) -> "Callable[[torch.Tensor], torch.Tensor]":
    """What picks the next token of each row of logits `(rows, vocabulary)`, by arguments of transformers'
    `GenerationConfig`; for what makes answers token by token itself.

    Raises AdapterError for arguments other than `num_beams` and, without several beams, what tokens are drawn by.
    """
    known = {"num_beams"} if decoding.get("num_beams", 1) > 1 else {"num_beams", "do_sample", *DRAWING}
    if others := set(decoding) - known:
        raise AdapterError(
            "answers are made token by token here: greedy, searched with beams or drawn; leave out "
            f"{', '.join(sorted(others))}"
        )
    if not decoding.get("do_sample"):
        return greedy
    return partial(draw, **{name: decoding[name] for name in DRAWING if name in decoding})


def greedy(logits: "torch.Tensor") -> "torch.Tensor":
    """The likeliest token of each row of `(rows, vocabulary)`."""
    return logits.argmax(-1)


def draw(logits: "torch.Tensor", temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> "torch.Tensor":
    """A token of each row of `(rows, vocabulary)`, drawn as `Decoding` says and as transformers' `generate` does."""
    import torch

    logits = logits / temperature
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ascending, order = logits.sort(descending=False)
        outside = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        outside[:, -1] = False
        logits = logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1)[:, 0]
