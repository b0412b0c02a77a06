"""Several adapters on one frozen language model, one for each modality: pictures, sounds and clips in one prompt.

Everything that belongs to one of them is named so: its slots are `image:...`, `audio:...`, `video:...`. A text whose
media are of one modality is that adapter's own text, to the last bit; what a mixed one looks like is in
docs/composition.md.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import nn

from periscope.adapters.model import AdaptedModel, Features, Texts
from periscope.adapters.prompting.prompt import SOFT_PROMPT, SOFT_PROMPT_END, Piece, Prompt, Segment, mark_of
from periscope.errors import AdapterError


def owned(modality: str, segments: Sequence[Segment]) -> list[Segment]:
    """Segments whose slots are said to be of `modality`."""
    return [part._replace(slot=f"{modality}:{part.slot}") if part.slot else part for part in segments]


def modality_of(slot: str) -> str:
    """Which modality a slot, or a medium, so named is of."""
    return slot.partition(":")[0]


class ComposedPrompt(Prompt):
    """Turns texts about media of several modalities into segments; media are named `image:...`, `audio:...`.

    A text about one modality has the form of that prompt. In a mixed one each medium has its own prompt's delimiters
    and row separators, and all else is the first prompt's. The soft prompts of `soft`, where their media occur, stand
    before the first or after the last of these, around the first user's words, or first of all, as each template says.
    """

    def __init__(self, prompts: Mapping[str, Prompt], soft: Collection[str] = ()):
        first = next(iter(prompts.values()))
        super().__init__(first.tokenizer, first.template)
        self.prompts, self.soft = dict(prompts), frozenset(soft)
        self.marks = tuple(map(mark_of, prompts))

    def segments(
        self, turns: Sequence[dict], media: Sequence[str] = (), *, answer: bool = True, soft_prompt: bool = True
    ) -> list[Segment]:
        """As `Prompt.segments`. In a mixed text every medium has its own modality's mark, or none has any."""
        named = {modality_of(name) for name in media} or (set(self.prompts) if len(self.prompts) == 1 else set())
        used = [modality for modality in self.prompts if modality in named]
        if len(used) == 1:
            return self._of_one(used[0], turns, media, answer, soft_prompt)
        return super().segments(turns, media, answer=answer, soft_prompt=soft_prompt and bool(used))

    def _of_one(
        self, modality: str, turns: Sequence[dict], media: Sequence[str], answer: bool, soft_prompt: bool
    ) -> list[Segment]:
        prompt, soft = self.prompts[modality], soft_prompt and modality in self.soft
        asked = " ".join(turn["content"] for turn in turns if turn["role"] == "user")
        if absent := [mark for mark in self.marks if media and mark not in prompt.marks and mark in asked]:
            raise AdapterError(f"the words mark {absent[0]}, and the media given are all {modality}")
        names = [name.removeprefix(f"{modality}:") for name in media]
        return owned(modality, prompt.segments(turns, names, answer=answer, soft_prompt=soft))

    def _check(self, marks: Sequence[str], media: Sequence[str]) -> None:
        wanted = [mark_of(modality_of(name)) for name in media]
        if marks and sorted(marks) != sorted(wanted):
            raise AdapterError(
                f"the words mark {', '.join(marks)}, and the media given are {', '.join(map(modality_of, media))}; "
                "mark each of them, or none"
            )

    def _take(self, mark: str, waiting: list[str]) -> str:
        return waiting.pop(next(i for i, name in enumerate(waiting) if mark_of(modality_of(name)) == mark))

    def _slot(self, medium: str) -> list[Segment | Piece]:
        return self.prompts[modality_of(medium)]._slot(medium)

    def _place(self, asked: list[list[Segment | Piece]]) -> list[Segment]:
        before = []
        for modality, prompt in self.prompts.items():
            own = [(content, i) for content in asked for i in _of(content, modality)]
            if modality not in self.soft or not own:
                continue
            soft, end = (Segment(slot=f"{modality}:{name}") for name in (SOFT_PROMPT, SOFT_PROMPT_END))
            place, delimited = prompt.template.soft_prompt, [bool(text) for text in prompt.template.delimiters]
            if place == "first":
                before.append(soft)
            elif place == "before":
                content, i = own[0]
                content.insert(i - delimited[0], soft)
            elif place == "after":
                content, i = own[-1]
                content.insert(i + 1 + delimited[1], soft)
            else:
                words = [i for i, part in enumerate(asked[0]) if isinstance(part, Piece) and part.from_data]
                asked[0].insert(words[-1] + 1 if words else len(asked[0]), end)
                asked[0].insert(words[0] if words else len(asked[0]) - 1, soft)
        return before


def _of(content: Sequence[Segment | Piece], modality: str) -> list[int]:
    """Where in a turn's content the media of a modality stand."""
    return [i for i, part in enumerate(content) if isinstance(part, Segment) and modality_of(part.slot) == modality]


class Adapters(nn.ModuleDict):
    """Adapters by modality, whose tokens stand among the words."""

    injects = False


class ComposedModel(AdaptedModel):
    """One frozen language model that reads through several adapters, the `parts` by modality, all on the same `lm`.

    Texts and features name media as `ComposedPrompt` does. `adapter` holds all adapters, so that they are trained as
    one. Raises AdapterError for parts on different language models, and for one that gives its medium to inner layers.
    """

    def __init__(self, parts: Mapping[str, AdaptedModel]):
        first = next(iter(parts.values()))
        for modality, part in parts.items():
            if part.lm is not first.lm:
                raise AdapterError(f"the {modality} adapter is on another language model than the first")
            if part.adapter.injects and len(parts) > 1:
                raise AdapterError(
                    f"the {modality} adapter ({part.adapter.spec}) gives its medium to inner layers, where a row knows "
                    "of one medium only; load it alone"
                )
        soft = [modality for modality, part in parts.items() if part.adapter.soft_prompt is not None]
        prompt = ComposedPrompt({modality: part.prompt for modality, part in parts.items()}, soft)
        adapters = Adapters({modality: part.adapter for modality, part in parts.items()})
        noise = max(part.token_noise for part in parts.values())
        super().__init__(first.lm, adapters, prompt, noise, first.loss_mean)
        self.parts = nn.ModuleDict(parts)

    def slots(
        self, texts: Texts, features: Features, noise: float = 0.0, draw: str | None = None
    ) -> dict[str, torch.Tensor]:
        """As `AdaptedModel.slots`, each adapter's own filled by it."""
        filled = {}
        for modality in _modalities(texts):
            own, given = _stripped(modality, texts), _given(modality, features)
            part, named = self.parts[modality], None if draw is None else f"{draw}/{modality}"
            found = part.slots(own, given, min(noise, part.token_noise), named)
            filled |= {f"{modality}:{name}": vectors for name, vectors in found.items()}
        return filled

    def generate(self, texts: Texts, features: Features, max_new_tokens: int = 64, **decoding) -> list[str]:
        """As `AdaptedModel.generate`; texts about one modality are answered by that adapter alone."""
        used = _modalities(texts) or list(self.parts)
        if len(used) == 1:
            (modality,) = used
            own, given = _stripped(modality, texts), _given(modality, features)
            return self.parts[modality].generate(own, given, max_new_tokens, **decoding)
        return super().generate(texts, features, max_new_tokens, **decoding)


def _modalities(texts: Texts) -> list[str]:
    return list(dict.fromkeys(modality_of(part.slot) for text in texts for part in text if part.slot))


def _stripped(modality: str, texts: Texts) -> list[list[Segment]]:
    """The texts with the slots of one modality alone, by their bare names."""
    prefix = f"{modality}:"

    def bare(text: Iterable[Segment]) -> list[Segment]:
        own = [part for part in text if not part.slot or part.slot.startswith(prefix)]
        return [part._replace(slot=part.slot.removeprefix(prefix)) if part.slot else part for part in own]

    return [bare(text) for text in texts]


def _given(modality: str, features: Features) -> dict[str, torch.Tensor]:
    prefix = f"{modality}:"
    return {name.removeprefix(prefix): row for name, row in features.items() if name.startswith(prefix)}
