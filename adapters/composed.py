"""Several adapters on one frozen language model, one per modality: images, sounds and clips in one prompt.

Slots carry their modality as a prefix: `image:...`, `audio:...`, `video:...`. A text whose media are of one modality is
exactly that adapter's own text; docs/composition.md describes mixed ones.
"""

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from periscope.adapters.generation.streaming import AnswerEnd
from periscope.adapters.model import AdaptedModel, Adapter, Features, Texts
from periscope.adapters.prompting.prompt import Prompt, Turn
from periscope.adapters.prompting.segments import SOFT_PROMPT, SOFT_PROMPT_END, Piece, Segment, is_data, mark_of
from periscope.adapters.splice import length_of
from periscope.errors import AdapterError


def with_modality(modality: str, segments: Sequence[Segment]) -> list[Segment]:
    """The segments with `modality:` before the names of their slots."""
    return [s._replace(slot=f"{modality}:{s.slot}") if s.slot else s for s in segments]


def modality_of(slot: str) -> str:
    """The modality in the name of a slot."""
    return slot.partition(":")[0]


class ComposedPrompt(Prompt):
    """Turns conversations about media of several modalities, named `image:...`, `audio:...`, into segments.

    A text about one modality has the form of that modality's prompt. In a mixed text, media have their own prompt's
    delimiters and row separators; everything else is the first prompt's. The soft prompts of the modalities in `soft`
    stand, where their media occur, before the first or after the last of them, around the first user turn's words, or
    first in the sequence, as each template says.
    """

    def __init__(self, prompts: Mapping[str, Prompt], soft: Collection[str] = ()):
        first = next(iter(prompts.values()))
        super().__init__(first.tokenizer, first.template)
        self.prompts, self.soft = dict(prompts), frozenset(soft)
        self.marks = tuple(map(mark_of, prompts))

    def segments(
        self,
        turns: Sequence[Turn],
        media: Sequence[str] = (),
        *,
        answer: bool = True,
        soft_prompt: bool = True,
        start: bool = False,
    ) -> list[Segment]:
        """As `Prompt.segments`. In a mixed text all media are marked, each with its own modality's mark, or none is."""
        named = {modality_of(name) for name in media} or (set(self.prompts) if len(self.prompts) == 1 else set())
        used = [modality for modality in self.prompts if modality in named]
        if len(used) == 1:
            return self._single_modality(used[0], turns, media, answer, soft_prompt, start)
        return super().segments(turns, media, answer=answer, soft_prompt=soft_prompt and bool(used), start=start)

    def _single_modality(
        self, modality: str, turns: Sequence[Turn], media: Sequence[str], answer: bool, soft_prompt: bool, start: bool
    ) -> list[Segment]:
        prompt, soft = self.prompts[modality], soft_prompt and modality in self.soft
        questions = " ".join(turn["content"] for turn in turns if turn["role"] == "user")
        if absent := [mark for mark in self.marks if media and mark not in prompt.marks and mark in questions]:
            raise AdapterError(f"the words mark {absent[0]}, and the media given are all {modality}")
        names = [name.removeprefix(f"{modality}:") for name in media]
        return with_modality(modality, prompt.segments(turns, names, answer=answer, soft_prompt=soft, start=start))

    def _check_marks(self, marks: Sequence[str], media: Sequence[str]) -> None:
        expected = [mark_of(modality_of(name)) for name in media]
        if marks and sorted(marks) != sorted(expected):
            raise AdapterError(
                f"the words mark {', '.join(marks)}, and the media given are {', '.join(map(modality_of, media))}; "
                "mark each of them, or none"
            )

    def _take(self, mark: str, waiting: list[str]) -> str:
        return waiting.pop(next(i for i, name in enumerate(waiting) if mark_of(modality_of(name)) == mark))

    def _slot(self, medium: str) -> list[Segment | Piece]:
        return self.prompts[modality_of(medium)]._slot(medium)

    def _place_soft_prompt(self, user_contents: list[list[Segment | Piece]]) -> list[Segment]:
        before = []
        for modality, prompt in self.prompts.items():
            media = [(content, i) for content in user_contents for i in _positions(content, modality)]
            if modality not in self.soft or not media:
                continue
            soft, end = (Segment(slot=f"{modality}:{name}") for name in (SOFT_PROMPT, SOFT_PROMPT_END))
            place, delimited = prompt.template.soft_prompt, [bool(text) for text in prompt.template.delimiters]
            if place == "first":
                before.append(soft)
            elif place == "before":
                content, i = media[0]
                content.insert(i - delimited[0], soft)
            elif place == "after":
                content, i = media[-1]
                content.insert(i + 1 + delimited[1], soft)
            else:
                content = user_contents[0]
                words = [i for i, item in enumerate(content) if is_data(item)]
                content.insert(words[-1] + 1 if words else len(content), end)
                content.insert(words[0] if words else len(content) - 1, soft)
        return before


def _positions(content: Sequence[Segment | Piece], modality: str) -> list[int]:
    """Where in a turn's content the media of a modality are."""
    return [
        i for i, item in enumerate(content) if isinstance(item, Segment) and modality_of(item.slot or "") == modality
    ]


class AdapterDict(nn.ModuleDict):
    """Adapters by modality, whose vectors stand among the words."""

    injects = False


class ComposedModel(AdaptedModel):
    """One frozen language model that reads through several adapters: `models` by modality, all on the same `lm`.

    Texts and features name media as `ComposedPrompt` does. `adapter` holds all adapters, so they are trained as one.
    Raises AdapterError for models on different language models, and for one among several that injects.
    """

    def __init__(self, models: Mapping[str, AdaptedModel]):
        first = next(iter(models.values()))
        for modality, model in models.items():
            if model.lm is not first.lm:
                raise AdapterError(f"the {modality} adapter is on another language model than the first")
            if model.adapter.injects and len(models) > 1:
                raise AdapterError(
                    f"the {modality} adapter ({model.adapter.spec}) injects into inner layers, where there is room for "
                    "one medium only; load it alone"
                )
        soft = [modality for modality, model in models.items() if model.adapter.soft_prompt is not None]
        prompt = ComposedPrompt({modality: model.prompt for modality, model in models.items()}, soft)
        adapters = AdapterDict({modality: model.adapter for modality, model in models.items()})
        noise = max(model.token_noise for model in models.values())
        # The base class reads only `injects` and the parameters of its adapter; the rest is overridden here.
        super().__init__(first.lm, cast(Adapter, adapters), prompt, noise, first.loss_mean)
        self.models = nn.ModuleDict(models)

    def slots(
        self, texts: Texts, features: Features, noise: float = 0.0, draw: str | None = None
    ) -> dict[str, torch.Tensor]:
        """As `AdaptedModel.slots`, each slot filled by its own adapter."""
        filled: dict[str, torch.Tensor] = {}
        for modality in _modalities(texts):
            model = self._model(modality)
            seed = None if draw is None else f"{draw}/{modality}"
            slots = model.slots(
                _texts_of(modality, texts), _features_of(modality, features), min(noise, model.token_noise), seed
            )
            filled |= {f"{modality}:{name}": vectors for name, vectors in slots.items()}
        return filled

    def generate(self, texts: Texts, features: Features, max_new_tokens: int = 64, **decoding: Any) -> list[str]:
        """As `AdaptedModel.generate`; texts about one modality are answered by that adapter alone."""
        used = _modalities(texts) or list(self.models)
        if len(used) > 1:
            return super().generate(texts, features, max_new_tokens, **decoding)
        (modality,) = used
        texts, features = _texts_of(modality, texts), _features_of(modality, features)
        return self._model(modality).generate(texts, features, max_new_tokens, **decoding)

    def stream(
        self, text: Sequence[Segment], features: Features, max_new_tokens: int = 64, **decoding: Any
    ) -> Generator[str, None, AnswerEnd]:
        """As `AdaptedModel.stream`; a text about one modality is answered by that adapter alone."""
        used = _modalities([text]) or list(self.models)
        if len(used) > 1:
            return super().stream(text, features, max_new_tokens, **decoding)
        (modality,) = used
        (text,), features = _texts_of(modality, [text]), _features_of(modality, features)
        return self._model(modality).stream(text, features, max_new_tokens, **decoding)

    def length(self, text: Sequence[Segment]) -> int:
        """Positions that a text takes in the language model."""
        return length_of(text, self.slot_tokens([text]))

    def slot_tokens(self, texts: Texts) -> dict[str, int]:
        """Positions of every slot that `texts` name."""
        tokens: dict[str, int] = {}
        for modality in _modalities(texts):
            own = self._model(modality).slot_tokens(_texts_of(modality, texts))
            tokens |= {f"{modality}:{name}": count for name, count in own.items()}
        return tokens

    def _model(self, modality: str) -> AdaptedModel:
        return cast(AdaptedModel, self.models[modality])


def _modalities(texts: Texts) -> list[str]:
    return list(dict.fromkeys(modality_of(segment.slot) for text in texts for segment in text if segment.slot))


def _texts_of(modality: str, texts: Texts) -> list[list[Segment]]:
    """The texts with the slots of one modality only, by their names without it."""
    prefix = f"{modality}:"

    def without_prefix(text: Iterable[Segment]) -> list[Segment]:
        own = [segment for segment in text if not segment.slot or segment.slot.startswith(prefix)]
        return [s._replace(slot=s.slot.removeprefix(prefix)) if s.slot else s for s in own]

    return [without_prefix(text) for text in texts]


def _features_of(modality: str, features: Features) -> dict[str, torch.Tensor]:
    prefix = f"{modality}:"
    return {name.removeprefix(prefix): value for name, value in features.items() if name.startswith(prefix)}
