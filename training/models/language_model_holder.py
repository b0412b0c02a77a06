"""The language model that consecutive runs train against: loaded once, and verified to be unchanged; or trained itself,
by one run.
"""

import gc
import time
from dataclasses import dataclass

import torch

from periscope.adapters.lm.identity import weights_sha256
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.lm.lora import remove_lora
from periscope.adapters.lm.precision import trained_precision
from periscope.device import empty_cache
from periscope.errors import RunError


@dataclass(frozen=True)
class _Held:
    name: str
    precision: str
    lm: LanguageModel
    sha256: str


class LanguageModelHolder:
    """Holds one language model on `device`.

    trust_remote_code: as in `load_language_model` · seconds: duration of the last load · bytes: size of its weights ·
    loaded: number of loads so far.
    """

    def __init__(self, device: str, trust_remote_code: bool = False):
        self.device, self.trust_remote_code = device, trust_remote_code
        self.seconds, self.bytes, self.loaded = 0.0, 0, 0
        self._held: _Held | None = None

    def load(self, name: str, precision: str, trained: bool = False, place: str = "") -> LanguageModel:
        """The language model `name` in `precision`, without LoRA; another one that is held is released first. Prints
        what it is.

        trained: it is to be trained itself, so that no other run can have it · place: its folder, where that isn't
        `name`. Raises AdapterError as `load_language_model` and `trained_precision`.
        """
        held = self._held
        if trained:
            precision, _ = trained_precision(precision, torch.device(self.device))
        if held is None or trained or held.lm.trained or (held.name, held.precision) != (name, precision):
            if held is not None:
                held = self._held = None  # frees the memory of the other one
                gc.collect()
            start = time.monotonic()
            lm = load_language_model(place or name, self.device, precision, self.trust_remote_code)
            lm.name = name
            self.seconds, self.loaded = time.monotonic() - start, self.loaded + 1
            self.bytes = sum(p.numel() * p.element_size() for p in lm.model.parameters())
            held = self._held = _Held(name, precision, lm, weights_sha256(lm.model))
        remove_lora(held.lm)  # an earlier run's
        lm = held.lm
        note = f", {lm.note}" if lm.note else ""
        print(f"language model: {lm.name}, {lm.precision} ({lm.reason}), hidden_size {lm.hidden_size}{note}")
        return lm

    @property
    def sha256(self) -> str:
        """The hash of the held model's weights."""
        assert self._held is not None, "no language model was loaded"
        return self._held.sha256

    def check(self) -> None:
        """Raise RunError when a weight of a frozen model has changed since it was loaded."""
        if self._held and not self._held.lm.trained and weights_sha256(self._held.lm.model) != self._held.sha256:
            raise RunError("the frozen language model's weights changed, which must never happen; please report it")

    def free_cache(self) -> None:
        """Release the GPU memory that an earlier run cached, so that the next memory plan counts it as free."""
        if self.device != "cpu":
            gc.collect()
            empty_cache(self.device)
