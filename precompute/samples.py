"""Three texts as the plain template lays them out, printed before anything is encoded."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from periscope.console import spelled
from periscope.errors import AdapterError
from periscope.precompute.sources import Collection, Words
from periscope.text import printable

END = "[end of text]"  # how the end-of-text token is shown
FIELDS = ("caption_prompt", "question", "eos", "loss_on", "box_decimals")  # of a recipe's [train], as in Template
RENAMED = {"media_place": "media", "soft_prompt_place": "soft_prompt"}


@cache
def byte_tokenizer() -> Any:
    """Stands in for the tokenizer of a language model that isn't known yet: each byte of UTF-8 is a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def describe_samples(collection: Collection, options: Mapping[str, Any], recipe: str = "") -> list[str]:
    """Lines that show the first, the middle and the last text: media, prompt and target.

    options: a recipe's `[train]` table, or {} · recipe: its name. Which chat template a language model has is only
    known to train.py, which prints three samples again.
    """
    total = len(collection.words)
    if not total:
        return []
    whose = f"the plain template of the recipe {recipe}" if recipe else "the plain template"
    lines = [f"samples: with {whose}; {spelled('train.py')} shows them with the language model's own before it trains"]
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
    from periscope.adapters.prompting.template import default_template

    fields = {name: options[name] for name in FIELDS if options.get(name) is not None}
    fields |= {to: options[name] for name, to in RENAMED.items() if name in options}
    soft = bool(options.get("soft_prompt"))
    answered = bool(words.turns) and words.turns[-1]["role"] == "assistant"
    try:
        template = default_template(byte_tokenizer(), "plain", options.get("delimiters"), modality, **fields)
        prompt = Prompt(byte_tokenizer(), template, modality)
        segments = prompt.segments(words.turns, words.media, answer=answered, soft_prompt=soft)
    except AdapterError as error:
        return [f"  not trained on: {error}"]
    lines = lines_of_text(shown(segments, byte_tokenizer().decode, lambda segment: segment.slot or ""))
    return lines if answered else [*lines, "  no target: it has no answer, and isn't trained on"]
