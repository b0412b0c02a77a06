"""The frozen language model that one run after another is trained against: loaded once, and shown to be unchanged."""

import gc
import time

import torch

from periscope.adapters.lm.identity import weights_sha256
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.lm.lora import remove_lora
from periscope.errors import RunError


class LanguageModelHolder:
    """Holds one frozen language model on `device`. `seconds` is what its last loading took, `bytes` what its weights
    take, `loaded` counts the loadings.
    """

    def __init__(self, device: str):
        self.device = device
        self.seconds, self.bytes, self.loaded = 0.0, 0, 0
        self._asked, self._lm, self._sha256 = None, None, ""

    def load(self, name: str, precision: str) -> LanguageModel:
        """The language model `name` in `precision`, without LoRA: the one that is held, else that is let go first.
        Prints what it is.

        Raises AdapterError as `load_language_model`.
        """
        if self._asked != (name, precision):
            self._asked = self._lm = None
            gc.collect()
            began = time.monotonic()
            self._lm = load_language_model(name, self.device, precision)
            self.seconds, self.loaded = time.monotonic() - began, self.loaded + 1
            self.bytes = sum(p.numel() * p.element_size() for p in self._lm.model.parameters())
            self._asked, self._sha256 = (name, precision), weights_sha256(self._lm.model)
        lm = self._lm
        remove_lora(lm)  # an earlier run's
        note = f", {lm.note}" if lm.note else ""
        print(f"language model: {lm.name}, {lm.precision} ({lm.reason}), hidden_size {lm.hidden_size}{note}")
        return lm

    def check(self) -> None:
        """Raise RunError when a weight isn't what it was when the model was loaded."""
        if weights_sha256(self._lm.model) != self._sha256:
            raise RunError("the frozen language model's weights changed, which must never happen; please report it")

    def free_cache(self) -> None:
        """Give back what an earlier run held of a GPU's memory, so that the next one's plan counts it as free."""
        gc.collect()
        if torch.device(self.device).type == "cuda":
            torch.cuda.empty_cache()
