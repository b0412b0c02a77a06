import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import tiny
import torch

torch.set_num_threads(1)  # threads that wait for one another cost more than they give tiny models


@pytest.fixture(scope="session")
def language_model_folder(tmp_path_factory):
    """Return a function from a family's name to a folder with a tiny random model of it, made once."""
    made = {}

    def folder(family: str):
        if family not in made:
            made[family] = tiny.save_language_model(family, tmp_path_factory.mktemp("lm") / family)
        return made[family]

    return folder
