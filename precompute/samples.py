"""Three texts as the plain template lays them out, printed before anything is encoded."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from periscope.errors import AdapterError
from periscope.precompute.sources import Collection, Words
from periscope.text import printable

END = 0x10FFFF  # an id that is no character's: the end-of-text token
FIELDS = ("caption_prompt", "question", "eos", "loss_on", "box_decimals")  # of a recipe's [train], as in Template
RENAMED = {"media_place": "media", "soft_prompt_place": "soft_prompt"}


class _Characters:
    """Stands in for the tokenizer of a language model that isn't known yet: each character is a token."""

    eos_token_id, bos_token_id, chat_template, is_fast = END, None, None, False
    eos_token, all_special_ids = "", ()

    def __call__(self, words: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=list(map(ord, words)))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return list(map(chr, ids))


def decode(ids: Sequence[int]) -> str:
    return "".join("[end of text]" if number == END else chr(number) for number in ids)


def describe_samples(collection: Collection, options: Mapping[str, Any], recipe: str = "") -> list[str]:
    """Lines that show the first, the middle and the last text: media, prompt and target.

    options: a recipe's `[train]` table, or {} · recipe: its name. Which chat template a language model has is only
    known to train.py, which prints three samples again.
    """
    total = len(collection.words)
    if not total:
        return []
    whose = f"the plain template of the recipe {recipe}" if recipe else "the plain template"
    lines = [f"samples: with {whose}; train.py shows them with the language model's own before it trains"]
    for number in sorted({0, total // 2, total - 1}):
        words = collection.words[number]
        about = ", ".join(words.media) or "no medium"
        lines.append(f"sample {number + 1} of {total}: {about}" + (f" (split {words.split})" if words.split else ""))
        modality = next((medium.modality for name in words.media if (medium := collection.media.get(name))), "image")
        lines += _laid_out(words, options, modality)
    return list(map(printable, lines))


def _laid_out(words: Words, options: Mapping[str, Any], modality: str) -> list[str]:
    from periscope.adapters.prompting.prompt import Prompt
    from periscope.adapters.prompting.shown import lines_of_text, shown
    from periscope.adapters.prompting.template import Template

    fields = {name: options[name] for name in FIELDS if options.get(name) is not None}
    fields |= {to: options[name] for name, to in RENAMED.items() if name in options}
    if options.get("delimiters") is not None:
        fields["delimiters"] = tuple(options["delimiters"])
    soft = bool(options.get("soft_prompt"))
    answered = bool(words.turns) and words.turns[-1]["role"] == "assistant"
    try:
        prompt = Prompt(_Characters(), Template(**fields), modality)  # type: ignore[arg-type]
        segments = prompt.segments(words.turns, words.media, answer=answered, soft_prompt=soft)
    except AdapterError as error:
        return [f"  not trained on: {error}"]
    lines = lines_of_text(shown(segments, decode, lambda segment: segment.slot or ""))
    return lines if answered else [*lines, "  no target: it has no answer, and isn't trained on"]
