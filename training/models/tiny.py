"""Tiny random language models as stand-ins for real ones, so that a recipe can be tried in seconds."""

import os
import shutil
import tempfile
from pathlib import Path

from periscope.adapters.lm.load import load_config
from periscope.adapters.lm.tiny import FAMILIES, save_language_model
from periscope.adapters.names import PROJECT
from periscope.errors import RunError
from periscope.paths import expanded
from periscope.training.memory.model_sizes import LANGUAGE_MODELS, check_tiny

DEEP = {"num_hidden_layers": 14}  # enough for six encoder blocks of two layers each


def tiny_language_model(name: str, folder: Path, deep: bool = False) -> Path:
    """The folder of a tiny random model of the same class as `name`, with the same kind of tokenizer; made once.

    name: in `model_sizes.LANGUAGE_MODELS`, or a folder with a config.json · folder: where tiny models are kept · deep:
    with enough layers for injection. Raises RunError for any other name, and for a class that has no tiny model.
    """
    check_tiny(name)
    if name in LANGUAGE_MODELS:
        family = LANGUAGE_MODELS[name].family or LANGUAGE_MODELS[name].model_type
    else:
        folders = (expanded(name), PROJECT / name)
        family = load_config(next(str(path) for path in folders if (path / "config.json").is_file()), name).model_type
    if family not in FAMILIES:
        raise RunError(f"--tiny has no small model of the class {family}; it has {', '.join(FAMILIES)}")
    path = folder / f"{family}{'-deep' * deep}"
    if not path.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder))
        save_language_model(family, temporary, **(DEEP if deep else {}))
        try:
            os.rename(temporary, path)
        except OSError:  # another process was faster
            shutil.rmtree(temporary)
    return path
