"""What adapter.json says, as dataclasses, read strictly: the file can come from a stranger.

Every value has a type and a range (`periscope.adapters.limits`), so nothing read from it can cause endless work or name
a file outside its folder.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from periscope.adapters.limits import (
    MAX_FILE_BYTES,
    MAX_LOOPS,
    Count,
    Identifier,
    Layer,
    Name,
    Positive,
    Size,
    SizeOrZero,
)
from periscope.adapters.names import CONFIG as CONFIG
from periscope.adapters.prompting.template import Template
from periscope.adapters.recorded import FeatureShape, Injection, LanguageModelIdentity, LoraSize
from periscope.atomic import replace_bytes
from periscope.errors import AdapterError

FORMAT = 1
LANGUAGE_MODEL: Literal["lm"] = "lm"  # folder of a language model that was trained too


@dataclass(frozen=True)
class RecordedLanguageModel:
    """The language model that an adapter was trained with: where it was, and how it is recognised.

    folder: where it is in the adapter's own folder, if its weights were trained too; `name` is then what it was made
    from.
    """

    name: Name
    identity: LanguageModelIdentity
    folder: Literal["", "lm"] = ""


@dataclass(frozen=True)
class AdapterConfig:
    """adapter.json: how the adapter is built, and what it needs around it.

    - `format`: the version of the file format.
    - `adapter`: the projector's spec, such as `mlp16`.
    - `features`: kind and shape of the features it reads.
    - `hidden_size`: width of the language model's word embeddings; `embedding_rms` their median RMS.
    - `tokens`: vectors per image; `soft_prompt`: vectors of the soft prompt.
    - `soft_prompt_mlp`, `output_norm`, `projector_hidden`, `projector_layers`, `projector_frames`, `soft_prompt_unit`,
      `injection`: see `Adapter`.
    - `lora`: size of the LoRA in lora/, if there is one.
    - `modality`: "image", "audio" or "video".
    - `encoder`: the encoder's description from the feature set's manifest, and `storage` how features were stored, both
      as precompute wrote them.
    - `language_model`, `template`: what it was trained with.
    - `training`: facts for people.
    """

    format: int
    adapter: Name
    features: FeatureShape
    hidden_size: Size
    tokens: SizeOrZero
    soft_prompt: SizeOrZero
    soft_prompt_mlp: bool
    output_norm: bool
    projector_hidden: SizeOrZero
    projector_layers: Count
    projector_frames: Count
    soft_prompt_unit: bool
    injection: Injection | None
    embedding_rms: Positive
    lora: LoraSize | None
    modality: Identifier
    encoder: dict[str, Any]
    storage: dict[str, Any] | None
    language_model: RecordedLanguageModel
    template: Template
    training: dict[str, Any]

    def language_model_in(self, folder: Path) -> str:
        """The language model of the adapter in `folder`: there, if it was trained too, or else by its recorded name."""
        inside = self.language_model.folder
        return str(folder / inside) if inside else self.language_model.name

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, in the order in which they are written."""
        return asdict(self) | {"template": self.template.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AdapterConfig":
        """The config that the values of an adapter.json describe, older ones migrated.

        Raises AdapterError, in one sentence without the file's name, for a value of another type or out of range.
        """
        values = migrate(values)
        config = _convert(values, cls)
        for name, facts in (("encoder", _EncoderFacts), ("storage", _StorageFacts)):
            if values[name] is not None:
                _convert(values[name], facts, name)
        # A field left out or unknown here would silently change the prompt.
        known = {entry.name for entry in fields(Template)}
        if missing := sorted(known - values["template"].keys()):
            raise AdapterError(f"template.{missing[0]} is missing")
        if unknown := sorted(values["template"].keys() - known):
            raise AdapterError(f"template can't have a field {unknown[0]!r}; a newer version may have written it")
        return config

    def write(self, path: Path) -> None:
        """Write the config as JSON, atomically."""
        replace_bytes(path, (json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n").encode())


# What later versions of format 1 added, with the values that mean what earlier ones did.
ADDED_FIELDS = {
    "soft_prompt_mlp": False,
    "projector_hidden": 0,
    "projector_layers": 0,
    "projector_frames": 0,
    "soft_prompt_unit": False,
    "injection": None,
    "lora": None,
    "modality": "image",
    "storage": None,
}
ADDED_TEMPLATE_FIELDS = {
    "soft_prompt": "before",
    "media": "before",
    "row_separator": "",
    "rows": 0,
    "eos": True,
    "loss_on": "answer",
    "box_decimals": 2,
    "date": "",
    "requests": "question",
    "captions": "requested",
    "marks": "all",
    "as_string": False,
    "caption_form": "",
    "preamble": "",
    "between": "\n",
    "own_space": False,
    "end": "",
}


def migrate(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an older adapter.json with the fields that its version didn't have; current ones unchanged."""
    migrated = ADDED_FIELDS | dict(values)
    if "projector_frames" not in values and isinstance(spec := migrated.get("adapter"), str):
        migrated["adapter"] = re.sub(r"\Amapl(?=\d+\Z)", "mapl-post", spec)  # its norms stood behind then
    if isinstance(template := migrated.get("template"), Mapping):
        migrated["template"] = ADDED_TEMPLATE_FIELDS | dict(template)
    return migrated


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read `adapter.json` of an adapter folder.

    Raises AdapterError when the folder holds no adapter of a known format, or a damaged one.
    """
    path = Path(folder) / CONFIG
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise AdapterError(f"{path} has {size:,} bytes, more than any adapter's description")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{folder} holds no {CONFIG}, so it is not an adapter folder") from None
    except AdapterError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} can't be read: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        version = values.get("format") if isinstance(values, dict) else None
        raise AdapterError(f"{path} has format {version!r}, and this version reads format {FORMAT}")
    try:
        return AdapterConfig.from_dict(values)
    except AdapterError as error:
        raise AdapterError(f"{path} is damaged: {error}") from None


@dataclass(frozen=True)
class _EncoderLayers:
    patches: Layer | None = None
    layers: Count | None = None


@dataclass(frozen=True)
class _EncoderFacts:
    """What is read of an encoder's description. It holds more, which belongs to precompute."""

    name: Name = ""
    library: Name = ""
    id: Name = ""
    fingerprint: Name = ""
    layer: _EncoderLayers | None = None
    choices: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _StorageFacts:
    """What is read of how features were stored."""

    codec: Name = ""
    shape: Annotated[list[SizeOrZero], Meta(max_length=MAX_LOOPS)] = field(default_factory=list)
    pool: tuple[Size, Size] = (1, 1)


T = TypeVar("T")


def _convert(values: Mapping[str, Any], kind: type[T], path: str = "") -> T:
    """`msgspec.convert`, with an error that names the field and shows its value."""
    try:
        return msgspec.convert(values, kind)
    except UnicodeEncodeError:
        raise AdapterError("it holds text that isn't Unicode") from None
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$.")
        names = [name for name in [path, *re.sub(r"\[.*", "", where.rstrip("`")).split(".")] if name]
        if missing := re.search(r"missing required field `(\w+)`", message):
            raise AdapterError(f"{'.'.join([*names, missing[1]])} is missing") from None
        value: Any = values
        for name in names[bool(path) :]:
            value = value[name]
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise AdapterError(f"{'.'.join(names)} can't be {shown}") from None


def refuse_no_merge(out: Path, lora: object) -> None:
    """Raise AdapterError where there is no LoRA to merge into a language model, or `out` exists."""
    if not lora:
        raise AdapterError("there is no LoRA to merge: --merge-lora is for stage 2, which --lora trains")
    if out.exists():
        raise AdapterError(f"{out} exists, and nothing is overwritten; choose another folder for the merged model")
