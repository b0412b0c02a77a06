"""Tiny random language models in the place of real ones, so that a recipe can be tried in seconds."""

import os
import shutil
import tempfile
from pathlib import Path

from periscope.adapters.lm.load import PROJECT, load_config
from periscope.adapters.lm.tiny import FAMILIES, save_language_model
from periscope.errors import RunError
from periscope.training.memory.model_sizes import LANGUAGE_MODELS

DEEP = {"num_hidden_layers": 14}  # each of six encoder blocks is given to two of them


def tiny_language_model(name: str, folder: Path, deep: bool = False) -> Path:
    """The folder of a tiny random model of the class of `name` with a tokenizer of the same kind, made once in
    `folder`. `deep`: with layers enough for a medium to go into.

    `name` is in `training.full_size`, or a folder with a config.json. Raises RunError for any other, and for a class of
    which none can be made.
    """
    folders = [place for place in (Path(name).expanduser(), PROJECT / name) if (place / "config.json").is_file()]
    if name in LANGUAGE_MODELS:
        family = LANGUAGE_MODELS[name].family or LANGUAGE_MODELS[name].model_type
    elif folders:
        family = load_config(str(folders[0]), name).model_type
    else:
        raise RunError(f"--tiny doesn't know what {name} is; it knows {', '.join(LANGUAGE_MODELS)}, and folders")
    if family not in FAMILIES:
        raise RunError(f"--tiny has no small model of the class {family}; it has {', '.join(FAMILIES)}")
    place = folder / f"{family}{'-deep' * deep}"
    if not place.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder))
        save_language_model(family, made, **(DEEP if deep else {}))
        try:
            os.rename(made, place)
        except OSError:  # another process was first
            shutil.rmtree(made)
    return place
