"""What is wrong with the files of a language model's folder: missing, cut, or a Git LFS pointer in a file's place."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from periscope.weights import LFS_START

# A tokenizer needs one of these; the other files only describe it.
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab*.json", "vocab.txt", "vocab.bpe", "tekken.json", "*.tiktoken")
_TEXTS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "*.index.json",
)


def missing_tokenizer(folder: Path) -> str | None:
    """A sentence when a folder holds no tokenizer, for which transformers may make an empty one; else None."""
    if any(next(folder.glob(pattern), None) for pattern in _VOCABULARIES):
        return None
    return (
        f"{folder} holds no tokenizer (no tokenizer.json or tokenizer.model); copy these files from the original model"
    )


def only_pytorch_weights(folder: Path) -> bool:
    """Whether a folder's weights are in `pytorch_model*.bin` and not in safetensors."""
    return not any(folder.glob("*.safetensors*")) and any(folder.glob("pytorch_model*.bin*"))


def find_damage(folder: Path) -> str | None:
    """What is wrong with a folder's files, in a sentence that names one and the remedy; None when nothing is found.

    Meant for a model that could not be loaded: safetensors' headers and all JSON files are read.
    """
    weights = [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("pytorch_model*.bin"))]
    texts = [file for pattern in _TEXTS for file in sorted(folder.glob(pattern))]
    for file in (*weights, *texts, *sorted(folder.glob("*.model"))):
        if damage := damage_of(file):
            return damage
    for index in sorted(folder.glob("*.index.json")):
        listed = json.loads(index.read_text(encoding="utf-8"))
        names = listed.get("weight_map") if isinstance(listed, dict) else None
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            return f"{index} doesn't list which file holds which weight; download it again"
        if lacking := [name for name in sorted(set(names.values())) if not (folder / name).is_file()]:
            return f"{folder} lacks {lacking[0]}, which {index.name} lists; download it"
    if not weights:
        return f"{folder} holds no weights (no model.safetensors, pytorch_model.bin or .gguf file); download them"
    return missing_tokenizer(folder)


def damage_of(file: Path) -> str | None:
    """What is wrong with one file, in a sentence with the remedy; None when nothing is found."""
    try:
        with file.open("rb") as opened:
            start = opened.read(len(LFS_START))
        if start == LFS_START:
            return f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` there, or download the file"
        if not start:
            return f"{file} is empty; download it again"
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):
                pass
        elif file.suffix == ".bin" and start[:2] == b"PK" and not zipfile.is_zipfile(file):  # as torch writes it
            raise ValueError("its table of contents, at the end, is missing")
        elif file.suffix == ".json" and not isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
            return f"{file} is damaged: it holds no JSON object; download it again"
        elif file.suffix == ".jinja":
            file.read_text(encoding="utf-8")
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        return f"{file} is cut or damaged ({str(error).splitlines()[0]}); download it again"
    return None
