"""What adapter.json may say. It can come from a stranger, so what is read of it later is checked here first: of which
type each field is, and that no number makes for endless work.
"""

from collections.abc import Callable, Mapping
from math import isfinite

LARGEST = 4 << 20  # bytes of an adapter.json; real ones have some 10 KB
NAME, PART, WORDS = 4096, 255, 100_000  # characters of a path, of a part of it, of words
MOST, LOOPS = 2**31, 4096  # of what sizes tensors; of what is built one by one

Check = Callable[[object], bool]


def whole(least: int, most: int = MOST) -> Check:
    """A check that a value is a whole number from `least` to `most`."""
    return lambda value: type(value) is int and least <= value <= most


def maybe(check: Check) -> Check:
    """A check that a value is None or passes `check`."""
    return lambda value: value is None or check(value)


def a_list_of(check: Check, length: int | None = None) -> Check:
    """A check that a value is a list of what passes `check`, of that `length` or of at most `LOOPS`."""

    def checked(value: object) -> bool:
        fits = isinstance(value, list) and (len(value) == length if length else len(value) <= LOOPS)
        return fits and all(map(check, value))

    return checked


def is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= NAME and all(len(part) <= PART for part in value.split("/"))


def is_words(value: object) -> bool:
    return isinstance(value, str) and len(value) <= WORDS


def is_number(value: object) -> bool:
    return type(value) in (int, float) and isfinite(value)


def is_flag(value: object) -> bool:
    return isinstance(value, bool)


def is_object(value: object) -> bool:
    return isinstance(value, Mapping)


CHECKS: dict[str, Check] = {
    "adapter": is_name,
    "features": is_object,
    "features.kind": is_name,
    "features.tokens": whole(0),
    "features.width": whole(0),
    "features.grid": maybe(a_list_of(whole(1), 2)),
    "hidden_size": whole(1),
    "tokens": whole(0),
    "soft_prompt": whole(0),
    "soft_prompt_mlp": is_flag,
    "output_norm": is_flag,
    "projector_hidden": whole(0),
    "projector_layers": whole(0, LOOPS),
    "injection": maybe(is_object),
    "injection.layer_size": whole(1),
    "injection.start": whole(0, LOOPS),
    "injection.end": whole(0, LOOPS),
    "injection.compat": is_flag,
    "embedding_rms": lambda value: is_number(value) and 0 < value < MOST,
    "lora": maybe(is_object),
    "lora.r": whole(1),
    "lora.alpha": is_number,
    "modality": lambda value: is_name(value) and value.isidentifier(),
    "encoder": is_object,
    "encoder.name": is_name,
    "encoder.library": is_name,
    "encoder.id": is_name,
    "encoder.fingerprint": is_name,
    "encoder.layer": maybe(is_object),
    "encoder.layer.patches": maybe(whole(-LOOPS, LOOPS)),
    "encoder.layer.layers": maybe(whole(0, LOOPS)),
    "encoder.choices": is_object,
    "encoder.preprocessing": is_object,
    "storage": maybe(is_object),
    "storage.codec": is_name,
    "storage.shape": a_list_of(whole(0)),
    "storage.pool": a_list_of(whole(1), 2),
    "language_model": is_object,
    "language_model.name": is_name,
    "language_model.identity": is_object,
    "language_model.identity.model_type": is_name,
    "language_model.identity.hidden_size": whole(1),
    "language_model.identity.config": is_name,
    "language_model.identity.tokenizer": is_name,
    "language_model.identity.embedding_sample": a_list_of(is_number),
    "language_model.identity.weight_sample": lambda value: (
        is_object(value) and len(value) <= LOOPS and all(map(a_list_of(is_number), value.values()))
    ),
    "language_model.identity.precision": maybe(is_name),
    "template": is_object,
    "template.style": is_name,
    "template.delimiters": a_list_of(is_words, 2),
    "template.caption_prompt": is_words,
    "template.question": lambda value: is_words(value) and value.count("{}") == 1,
    "template.soft_prompt": is_name,
    "template.media": is_name,
    "template.row_separator": is_words,
    "template.rows": whole(0, LOOPS),
    "template.eos": is_flag,
    "template.loss_on": is_name,
    "template.box_decimals": whole(0, 20),
    "training": is_object,
}
MISSING = object()


def fault_of(config: Mapping) -> str | None:
    """The first field that holds what it can't, as people read it; None when there is none such. What is missing is
    found where it is needed: older versions wrote fewer fields.
    """
    for name, check in CHECKS.items():
        value: object = config
        for part in name.split("."):
            value = value.get(part, MISSING) if isinstance(value, Mapping) else MISSING
        if value is not MISSING and not check(value):
            shown = repr(value)
            return f"{name} can't be {shown if len(shown) <= 60 else shown[:57] + '...'}"
    return None
