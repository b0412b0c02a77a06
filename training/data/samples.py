"""Three texts as they are trained on, printed before training starts."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from periscope.adapters.prompting.segments import SOFT_PROMPT, SOFT_PROMPT_END, Segment
from periscope.adapters.prompting.shown import lines_of_text, shown
from periscope.text import printable
from periscope.training.data.training_set import TrainingSet


def describe_samples(sets: Sequence[TrainingSet]) -> list[str]:
    """Lines that show the first, the middle and the last of the texts to learn from: media, prompt and target, with the
    template that was chosen and with special tokens.
    """
    ends = list(accumulate(len(each.index.texts) for each in sets))
    lines = []
    for number in sorted({0, ends[-1] // 2, ends[-1] - 1}):
        which = bisect_right(ends, number)
        place = number - (ends[which] - len(sets[which].index.texts))
        lines += _sample(sets[which], place, f"sample {number + 1} of {ends[-1]}")
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
        tokenizer = dataset.prompt.tokenizer
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    about = ", ".join(origins.values()) or "no medium"
    parts = shown(dataset.segments(text), decode, name_of)
    return [printable(line) for line in (f"{label}, as it is trained: {about}", *lines_of_text(parts))]
