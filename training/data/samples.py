"""Three texts as they are trained on, printed before training starts."""

from collections.abc import Sequence
from itertools import chain

from periscope.adapters.prompting.segments import SOFT_PROMPT, SOFT_PROMPT_END, Segment
from periscope.adapters.prompting.shown import lines_of_text, shown
from periscope.text import printable
from periscope.training.data.training_set import TrainingSet

SHOWN = 3


def describe_samples(sets: Sequence[TrainingSet]) -> list[str]:
    """Lines that show the first, the middle and the last of the texts to learn from: media, prompt and target, with the
    template that was chosen and with special tokens.
    """
    places = list(chain.from_iterable(((each, i) for i in range(len(each.index.texts))) for each in sets))
    lines = []
    for number in sorted({0, len(places) // 2, len(places) - 1})[:SHOWN]:
        training_set, place = places[number]
        lines += _sample(training_set, place, f"sample {number + 1} of {len(places)}")
    return lines


def _sample(training_set: TrainingSet, place: int, label: str) -> list[str]:
    dataset, text = training_set.dataset, training_set.index.texts[place]
    origins = {dataset.slot_name(key): training_set.features.info(key)["origin"] for key in text.media}

    def name_of(segment: Segment) -> str:
        slot = segment.slot or ""
        if slot not in origins:
            return slot.rpartition(":")[2] if slot.endswith((SOFT_PROMPT, SOFT_PROMPT_END)) else slot
        if segment.part:
            return f"{origins[slot]}, row {segment.part[0] + 1} of {segment.part[1]}"
        return f"{origins[slot]}: {dataset.tokens} tokens" if dataset.tokens else origins[slot]

    def decode(ids: Sequence[int]) -> str:
        return dataset.prompt.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    about = ", ".join(origins.values()) or "no medium"
    parts = shown(dataset.segments(text), decode, name_of)
    return [printable(line) for line in (f"{label}, as it is trained: {about}", *lines_of_text(parts))]
