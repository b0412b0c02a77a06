"""Where a language model is: a folder, a GGUF file or a hub id. Imports no torch: a wrong name is refused at once."""

import importlib.util
import json
import re
from pathlib import Path

from periscope.adapters.names import GGUF as SUFFIX
from periscope.adapters.names import PROJECT, check_language_model
from periscope.errors import AdapterError
from periscope.model_folders import encoder_in
from periscope.paths import expanded, meant

PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
AN_ADAPTER = "that is an adapter, not a language model; name the one it belongs to, or ask it: periscope ask"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def find_model(name: str, flag: str = "--lm") -> str:
    """A folder or GGUF file, as given or inside the project (so the demo's is found from anywhere), or else the hub id
    itself. A folder that holds one GGUF model and no other weights is that file.

    flag: the option that named it. Raises AdapterError at once, not after a minute, for a folder that isn't there or a
    hub id that is out of reach.
    """
    for folder in (expanded(name), PROJECT / name):
        if gguf := find_gguf(folder):
            check_gguf_package(f"reading {gguf.name}")
            return str(gguf)
        if folder.is_file():
            raise AdapterError(
                f"{flag} {name} is a file, and not GGUF; name the folder with its config.json, or a {SUFFIX} file"
            )
        if folder.is_dir():
            _refuse_encoder(name, flag, folder)
            if not (folder / "config.json").is_file():
                if is_adapter(str(folder)):
                    raise AdapterError(f"{flag} {name}: {AN_ADAPTER}")
                raise AdapterError(
                    f"{flag} {name} is a folder without a config.json, so it is not a transformers model"
                )
            return str(folder)
    check_language_model(name, flag)
    from huggingface_hub import try_to_load_from_cache  # takes a while to import

    from periscope.hub_repo import hub_address, hub_reachable

    if isinstance(cached := try_to_load_from_cache(name, "config.json"), str):
        _refuse_encoder(name, flag, Path(cached).parent)
        return name
    if hub_reachable():
        return name
    if Path(name).parent.is_dir():
        raise AdapterError(f"{flag} {name}: there is no such folder{meant(Path(name).parent, name)}")
    host, _ = hub_address()
    raise AdapterError(
        f"{flag} {name} is not on this machine and {host} can't be reached; connect, or pass a folder with the model"
    )


def check_gguf_package(work: str) -> None:
    """Raise AdapterError where the package that reads and writes GGUF files is missing; `work` is what needs it."""
    if importlib.util.find_spec("gguf") is None:
        raise AdapterError(f"{work} needs the package gguf: pip install 'periscope-adapters[gguf]'")


def _refuse_encoder(name: str, flag: str, folder: Path) -> None:
    if kind := encoder_in(folder):
        raise AdapterError(
            f"{flag} {name} is an encoder ({kind}), not a language model; pass it to precompute.py --encoder"
        )


def is_adapter(place: str) -> bool:
    """Whether a folder, or the Hub's repository of that name in the cache, is one of an adapter or a run of this
    project.
    """
    from huggingface_hub import try_to_load_from_cache  # takes a while to import

    cached = None if Path(place).is_dir() else try_to_load_from_cache(place, "config.json")
    folder = Path(cached).parent if isinstance(cached, str) else Path(place)
    if any((folder / name).is_file() for name in ("adapter.json", "config.toml")):
        return True
    try:
        return "adapter" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that `path` names: itself, or the only model in a folder without other weights; of a model in
    several parts the first. None for anything else.

    Raises AdapterError for a folder of several models, and for a part that isn't the first.
    """
    if path.suffix.lower() == SUFFIX and path.is_file():
        part = PART.fullmatch(path.name)
        if part and int(part[2]) != 1:
            raise AdapterError(
                f"--lm {path} is part {int(part[2])} of a model; name its first file, {part_name(part, 1)}"
            )
        return path
    if not path.is_dir() or any(next(path.glob(pattern), None) for pattern in WEIGHTS):
        return None
    # mmproj files hold an image encoder for llama.cpp's own use.
    files = sorted(file for file in path.glob(f"*{SUFFIX}") if "mmproj" not in file.name.lower())
    models: dict[str, Path] = {}
    for file in files:
        part = PART.fullmatch(file.name)
        models.setdefault(part[1] if part else file.name, file)
    if len(models) > 1:
        names = ", ".join(file.name for file in models.values())
        raise AdapterError(f"--lm {path} holds {len(models)} GGUF models; name one file: {names}")
    return next(iter(models.values()), None)


def part_name(match: re.Match[str], number: int) -> str:
    return f"{match[1]}-{number:05}-of-{match[3]}{SUFFIX}"
