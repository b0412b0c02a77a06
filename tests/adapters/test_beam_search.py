"""Beam search over whole passes against transformers' own."""

import pytest
import torch

from periscope.adapters.generation.beam_search import search_beams
from periscope.adapters.lm.load import load_language_model


@pytest.fixture(scope="module")
def lm(language_model_folder):
    return load_language_model(str(language_model_folder("gpt_neox")))


@pytest.mark.parametrize("beams", [2, 3, 5])
@pytest.mark.parametrize("stop", [[5], [5, 77, 140, 201, 260, 300], list(range(0, 360, 3))])
def test_it_finds_what_transformers_finds(lm, beams, stop):
    """With few and with many tokens that end an answer, so that searches end early, late, and cut short."""
    prompt = [11, 42, 7]

    def scores(answers):
        return lm.model(torch.tensor([[*prompt, *ids] for ids in answers])).logits[:, -1].log_softmax(-1)

    with torch.no_grad():
        found = search_beams(scores, beams, 8, set(stop))
    settings = {"num_beams": beams, "do_sample": False, "max_new_tokens": 8, "eos_token_id": stop, "pad_token_id": 1}
    want = lm.model.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()
    assert found == want[: len(found)] and all(token == 1 for token in want[len(found) :])
