"""A small adapted model and the scripts in this process, for tests of training."""

import sys

import pytest
import torch

from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import default_template


@pytest.fixture
def model(language_model_folder):
    lm = load_language_model(str(language_model_folder("llama")))
    torch.manual_seed(3)
    adapter = Adapter("mlp2", FeatureShape("pooled", 1, 6), lm.hidden_size, lm.embedding_rms, soft_prompt=2)
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, default_template(lm.tokenizer)))


@pytest.fixture
def call(home, monkeypatch):
    """Run a script in the test file's `home`, in this process, with these flags, on the CPU."""
    monkeypatch.chdir(home)

    def script(which, *flags):
        monkeypatch.setattr(sys, "argv", [which.__file__, *map(str, flags), "--device", "cpu"])
        which.main()

    return script
