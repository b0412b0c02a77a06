"""Adapters in lmms-eval, the evaluation harness for multimodal models: its tasks, asked of a run.

    lmms_eval --model periscope --model_args run=runs/first --tasks mme

lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval) finds `manifest` by this package's entry point, and loads
the class that it names. Nothing else here needs lmms-eval.
"""

import io
import wave
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from periscope import inference
from periscope.adapters.generation.decoding import Decoding
from periscope.errors import AdapterError

USUAL_TOKENS = 256  # of an answer whose task doesn't say


def manifest() -> ModelManifest:
    """How lmms-eval finds the model."""
    return ModelManifest("periscope", simple_class_path=f"{__name__}.Harness")


class Harness(lmms):
    """A run, an adapter folder or an adapter of the Hub, as a model of lmms-eval.

    run: also `image=runs/eyes+audio=runs/ears`, several on one language model; commas divide lmms-eval's own arguments
    · batch_size: questions answered at once. The others are as in `periscope.load`.
    """

    is_simple = True

    def __init__(self, run: str, batch_size: int | str = 1, device: str = "auto", **options: Any):
        super().__init__()
        options = {name: options[name] for name in ("lm", "encoder", "precision") if options.get(name)}
        parts = [part.partition("=") for part in str(run).split("+")]
        if all(equals for _, equals, _ in parts):
            options |= {name: path for name, _, path in parts}
            self.model = inference.load(device=device, **options)
        else:
            self.model = inference.load(run, device, **options)
        self.batch = int(batch_size) if str(batch_size).isdigit() else 1

    def generate_until(self, requests: list) -> list[str]:
        """The answers to questions about media, cut before the first of the task's `until` strings."""
        answers: list[str] = []
        for _, group in groupby((request.args for request in requests), key=lambda arguments: str(arguments[1])):
            rows = list(group)
            decoding, until = decoding_of(rows[0][1])
            for first in range(0, len(rows), self.batch):
                answers += [cut(words, until) for words in self._answers(rows[first : first + self.batch], decoding)]
        return answers

    def _answers(self, rows: Sequence[tuple], decoding: Decoding) -> list[str]:
        """The answers to a few requests, (question, how, media of, document, task, split) each."""
        texts, features = [], dict[str, torch.Tensor]()
        for number, (question, _, visuals, *place) in enumerate(rows):
            slots = self._media(visuals, place, number)
            features |= slots
            texts.append(self.model.prompt.segments([{"role": "user", "content": question}], list(slots), answer=False))
        most = min(self.model.room(text, decoding) for text in texts)
        return self.model.model.generate(texts, features, most, **decoding.arguments())

    def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
        """The mean loss of each continuation in nats per token, and whether it begins the likeliest answer.

        A loss, not its negative: lmms-eval takes the smallest of several choices.
        """
        found = []
        for context, target, visuals, *place in (request.args for request in requests):
            words = target if isinstance(target, str) else target(self._document(place))
            slots = self._media(visuals, place, 0)
            turns = [{"role": "user", "content": context}, {"role": "assistant", "content": str(words).strip()}]
            whole = self.model.prompt.segments(turns, list(slots))
            ((loss, count),) = self.model.model.text_losses([whole], slots)
            asked = self.model.prompt.segments(turns[:1], list(slots), answer=False)
            (answer,) = self.model.model.generate([asked], slots, count)
            found.append((loss / max(1, count), answer.strip().startswith(turns[1]["content"])))
        return found

    def generate_until_multi_round(self, requests: list) -> list[str]:
        """Refused: what a round asks depends on the last one's answer, in a form of each task's own."""
        raise AdapterError("tasks of several rounds can't be asked of an adapter; choose tasks of one question")

    def _document(self, place: Sequence) -> Any:
        number, task, split = place
        return self.task_dict[task][split][number]

    def _media(self, visuals: Callable[[Any], Any] | None, place: Sequence, number: int) -> dict[str, torch.Tensor]:
        """The features of a document's media, by slots that no other document in the batch has."""
        media = visuals(self._document(place)) if visuals else []
        media = media if isinstance(media, list | tuple) else [media]
        encoded = [each for medium in media if medium is not None for each in self.model.encode(readable(medium))]
        return {f"{each.modality}:{number}.{place}": each.features for place, each in enumerate(encoded)}


def decoding_of(given: Mapping[str, Any]) -> tuple[Decoding, list[str]]:
    """A task's generation options: how to decode, and what ends an answer."""
    temperature = float(given.get("temperature") or 0) if given.get("do_sample", True) else 0.0
    decoding = Decoding(
        int(given.get("max_new_tokens") or given.get("max_gen_toks") or USUAL_TOKENS),
        temperature,
        float(given.get("top_p") or 1.0) if temperature else 1.0,
        int(given.get("num_beams") or 1),
    )
    until = given.get("until") or []
    return decoding, [until] if isinstance(until, str) else list(until)


def cut(answer: str, until: Sequence[str]) -> str:
    """An answer without what begins with any of `until`, and without space at its ends."""
    for end in filter(None, until):
        answer = answer.split(end, 1)[0]
    return answer.strip()


def readable(medium: Any) -> Any:
    """A medium in a form that a loaded model reads: sounds that a dataset has decoded become WAV files."""
    if isinstance(medium, Mapping) and medium.get("bytes"):
        return {"audio": medium["bytes"]}
    if isinstance(medium, Mapping) and "array" in medium:
        return {"audio": wav(np.asarray(medium["array"], np.float32), int(medium["sampling_rate"]))}
    return medium


def wav(samples: np.ndarray, rate: int) -> bytes:
    """Samples in [-1, 1], (samples,) or (channels, samples), as a WAV file of 16 bits."""
    mono = samples.mean(0) if samples.ndim > 1 else samples
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(mono, -1, 1) * 32767).astype("<i2").tobytes())
    return stream.getvalue()
