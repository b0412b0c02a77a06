"""The scale rule: projected tokens stay at the word embeddings' size, and leave it without the output norm."""

import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from periscope.adapters.lm.language_model import freeze
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import Template
from periscope.training.config import TrainConfig
from periscope.training.data.dataset import Batch
from periscope.training.step import take_step

WIDTH, RMS = 4096, 0.003  # a 7B model's, and the smallest embeddings of real models
FORMS = {  # spec: (features, --projector-hidden, --projector-layers)
    "mlp16": (FeatureShape("pooled", 1, 64), 128, 0),
    "linear": (FeatureShape("patches", 4, 64, (2, 2)), 0, 0),
    "perceiver4": (FeatureShape("patches", 4, 64, (2, 2)), 0, 1),
}
WORDS = ["a red circle and a small blue star", "the quick brown fox", "the lazy dog", "in the top left"]


@pytest.fixture(scope="module")
def wide():
    """A Llama of one layer, 4096 wide, with few words, four narrow heads and a narrow feed-forward."""
    tokenizer = tiny.byte_level()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, head_dim=32, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=RMS)
    lm = freeze("wide", model, tokenizer)
    assert lm.embedding_rms == pytest.approx(RMS, rel=0.05)
    return lm


def ratios(lm, spec: str, steps: int, output_norm: bool = True) -> list[float]:
    """The median RMS of the tokens over the embeddings', before the first step and after each, at the default rate."""
    features, inner, layers = FORMS[spec]
    torch.manual_seed(1)
    form = {"output_norm": output_norm, "projector_hidden": inner, "projector_layers": layers}
    adapter = Adapter(spec, features, lm.hidden_size, lm.embedding_rms, **form)
    model = AdaptedModel(lm, adapter, Prompt(lm.tokenizer, Template(delimiters=("", ""))))
    turns = [[{"role": "assistant", "content": words}] for words in WORDS]
    texts = [model.prompt.segments(turn, [str(i)]) for i, turn in enumerate(turns)]
    targets = sum(len(part.ids) for text in texts for part in text if part.target)
    rows = torch.randn(len(texts), *((features.tokens,) if features.kind == "patches" else ()), features.width)
    batch = Batch(texts, [str(i) for i in range(len(texts))], rows, targets)
    adapter.match_scale(rows)
    optimizer = torch.optim.AdamW(
        adapter.parameters(), lr=TrainConfig().lr, weight_decay=TrainConfig().optim.weight_decay
    )
    scaler, found = torch.amp.GradScaler("cpu", enabled=False), []
    for step in range(steps + 1):
        if step:
            take_step(model, optimizer, scaler, batch, len(texts), TrainConfig().optim.grad_clip)
        with torch.no_grad():
            found.append((adapter(rows).pow(2).mean(-1).sqrt().median() / lm.embedding_rms).item())
    return found


@pytest.mark.parametrize("spec", FORMS)
def test_tokens_stay_at_the_embeddings_size(wide, spec):
    found = ratios(wide, spec, 10)
    assert found[0] == pytest.approx(1, abs=0.05)
    assert all(0.3 <= ratio <= 3 for ratio in found), found


@pytest.mark.slow
@pytest.mark.parametrize("spec", FORMS)
def test_and_still_do_after_a_hundred_steps(wide, spec):
    found = ratios(wide, spec, 100)
    assert all(0.3 <= ratio <= 3 for ratio in found), found


@pytest.mark.parametrize("spec", FORMS)
def test_without_the_norm_they_leave_it(wide, spec):
    """The nearest wrong form: only the start is scaled."""
    found = ratios(wide, spec, 10, output_norm=False)
    assert found[0] == pytest.approx(1, abs=0.05) and found[10] > 3, found
