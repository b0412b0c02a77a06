"""A small adapted model, for tests of training."""

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
