"""How answers are decoded: greedily, by beam search, or drawn with a temperature."""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from periscope.errors import AdapterError


@dataclass(frozen=True)
class Decoding:
    """At most `max_new_tokens` tokens: the likeliest ones, or with several `beams` the likeliest sequence found. With a
    `temperature` above 0 tokens are drawn, from torch's generator, among the likeliest that make up `top_p` of the
    probability (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751).

    Raises AdapterError for a value out of range, and for `top_p` without a temperature, which would do nothing.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    beams: int = 1

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
        if self.top_p < 1 and not self.temperature:
            raise AdapterError(
                f"top_p is {self.top_p}, and without a temperature nothing is drawn; set one, such as 0.7"
            )

    def arguments(self) -> dict[str, Any]:
        """Arguments of transformers' `GenerationConfig`; none for greedy decoding."""
        chosen: dict[str, Any] = {"num_beams": self.beams} if self.beams > 1 else {}
        if self.temperature:
            chosen |= {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return chosen

    def __str__(self) -> str:
        drawn = f"drawn at temperature {self.temperature:g}, top-p {self.top_p:g}" if self.temperature else ""
        searched = f"{self.beams} beams" if self.beams > 1 else ""
        return ", ".join(filter(None, (searched, drawn))) or "greedy"
