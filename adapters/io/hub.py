"""Adapters on the Hugging Face Hub: prepare and push. Only what `stage` writes is uploaded."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from periscope import hub_repo
from periscope.adapters.io.card import LIBRARY, card
from periscope.adapters.io.checkpoint import load_adapter
from periscope.adapters.io.fetch import COUNTED, FILES, fetch_adapter
from periscope.adapters.names import CARD, CONFIG, LORA, LORA_CONFIG, LORA_WEIGHTS, PROJECT, WEIGHTS, is_hub_id
from periscope.errors import AdapterError, first_line
from periscope.hub_repo import HubRepository, refuse_paths, without_path, without_paths

PICTURE = "samples.png"


def stage(
    folder: Path,
    to: Path,
    repo: str,
    result: Mapping | None = None,
    samples: Sequence[Mapping] = (),
    picture: Path | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    lm: str | None = None,
) -> list[Path]:
    """Write what is to be shared of an adapter folder into `to`, and return the files.

    Weights and LoRA are stored in bf16. adapter.json loses paths of this machine. The card shows the scores of
    `result`, and `samples` and `picture` only if given; the picture is encoded again. `lm` is the language model's hub
    id, if it was trained with under another name.

    Raises AdapterError when a path of this machine would still be shared, and when the disk is full.
    """
    adapter, private = load_adapter(folder)
    trained_with = private.language_model.name
    if private.language_model.folder and not lm:
        raise AdapterError(
            f"{folder} has a language model of its own, which isn't pushed with it: share "
            f"{private.language_model_in(folder)} as a model (hf upload OWNER/MODEL FOLDER), then push with "
            "--lm OWNER/MODEL"
        )
    config = replace(
        private,
        language_model=replace(private.language_model, name=lm or without_path(trained_with), folder=""),
        encoder=without_paths(private.encoder),
        training=without_paths(private.training),
    )
    shipped = (PROJECT / trained_with).is_dir() and (PROJECT / trained_with).resolve().is_relative_to(PROJECT)
    own = [] if lm or is_hub_id(trained_with) or shipped else ["lm"]
    own += ["encoder"] if private.encoder.get("id") != config.encoder.get("id") else []
    lora_parameters = 0
    try:
        to.mkdir(parents=True)
        _save_bf16(folder / WEIGHTS, to / WEIGHTS)
        if (folder / LORA).is_dir():
            (to / LORA).mkdir()
            lora_parameters = _save_bf16(folder / LORA / LORA_WEIGHTS, to / LORA / LORA_WEIGHTS)
            fields = json.loads((folder / LORA / LORA_CONFIG).read_text(encoding="utf-8"))
            fields["base_model_name_or_path"] = config.language_model.name
            text = json.dumps(fields, indent=1, ensure_ascii=False)
            (to / LORA / LORA_CONFIG).write_text(text + "\n", encoding="utf-8")
        config.write(to / CONFIG)
        counted = {"library_name": LIBRARY, "adapter": config.adapter, "format": config.format}
        (to / COUNTED).write_text(json.dumps(counted, indent=1) + "\n", encoding="utf-8")
        parameters = sum(parameter.numel() for parameter in adapter.parameters())
        shown = PICTURE if picture else ""
        text = card(config, parameters, lora_parameters, repo, result, samples, license, datasets, own, shown)
        (to / CARD).write_text(text, encoding="utf-8")
        if picture:
            (to / PICTURE).write_bytes(_encode_again(picture))
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"what is to be shared can't be written to {to.parent}: {first_line(error)}") from None
    files = sorted(path for path in to.rglob("*") if path.is_file())
    for path in files:
        refuse_paths(path, AdapterError)
    return files


def standing(repo: str, private: bool = False) -> HubRepository | None:
    """The Hub's repository `repo`, or None. Raises AdapterError as `hub_repo.standing`."""
    return hub_repo.standing(repo, private, AdapterError)


def push(staged: Path, repo: str, private: bool = False) -> str:
    """Upload a folder made by `stage`, creating the repository if needed; return the commit id.

    Adapter files of an earlier push that this one doesn't have are deleted. Raises AdapterError when the Hub refuses.
    """
    return hub_repo.upload(staged, repo, private, [*FILES, PICTURE], "Adapter by Periscope", AdapterError)


def check_pushed(staged: Path, repo: str, commit: str, into: Path) -> Path:
    """Download what was pushed into the new folder `into`, and return it.

    Raises AdapterError when a file differs from what was staged.
    """
    again = fetch_adapter(repo, commit, into)
    for name in FILES:
        if (staged / name).is_file() and _sha256(staged / name) != (
            _sha256(again / name) if (again / name).is_file() else ""
        ):
            raise AdapterError(f"{repo} was pushed, but {name} comes back as something else: push it again")
    return again


def _save_bf16(source: Path, target: Path) -> int:
    """Copy weights in bf16; return the number of parameters."""
    tensors = load_file(source)
    small = {name: value.bfloat16() if value.is_floating_point() else value for name, value in tensors.items()}
    save_file(small, target, metadata={"format": "pt"})
    return sum(value.numel() for value in tensors.values())


def _encode_again(picture: Path) -> bytes:
    """A picture as PNG, without metadata."""
    stream = io.BytesIO()
    with Image.open(picture) as image:
        image.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
