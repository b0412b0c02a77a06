"""Answers drawn with a temperature, and by beam search."""

from types import SimpleNamespace

import pytest
import tiny
import torch

from periscope.adapters.composed import ComposedModel
from periscope.errors import AdapterError
from periscope.inference import LoadedModel


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    model = tiny.adapted(tiny.save_language_model("llama", tmp_path_factory.mktemp("lm")))
    features = torch.randn(12, generator=torch.Generator().manual_seed(0))
    return LoadedModel(ComposedModel({"image": model}), {"image": SimpleNamespace(features=lambda medium: features)})


def test_a_temperature_draws_and_a_seed_repeats_it(loaded):
    greedy = loaded.ask("a.png", "what?", 8)
    assert greedy == loaded.ask("a.png", "what?", 8)

    def drawn(seed, **how):
        torch.manual_seed(seed)
        return loaded.ask("a.png", "what?", 8, **how)

    assert len({drawn(seed, temperature=1.5) for seed in range(5)}) > 1
    assert drawn(1, temperature=1.5) == drawn(1, temperature=1.5)
    assert {drawn(seed, temperature=1.5, top_p=1e-6) for seed in range(3)} == {greedy}, "only the likeliest is left"
    torch.manual_seed(0)
    assert loaded.caption("a.png", 8, temperature=3.0) != loaded.caption("a.png", 8)


def test_beams_search(loaded, monkeypatch):
    seen = []
    generate = loaded.model.generate
    monkeypatch.setattr(loaded.model, "generate", lambda *a, **how: (seen.append(how), generate(*a, **how))[1])
    assert isinstance(loaded.ask("a.png", "what?", 8, beams=3), str)
    loaded.caption("a.png", 8)
    assert seen == [{"num_beams": 3}, {}]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; it must be 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0; it must be above 0"),
        ({"top_p": 0.5}, "without a temperature nothing is drawn"),
        ({"top_p": 2.0}, "top_p is 2.0"),
        ({"beams": 0}, "beams is 0; it must be 1 or more"),
        ({"beams": True}, "beams is True; it must be 1 or more"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; it must be 1 or more"),
    ],
)
def test_values_out_of_range_get_a_sentence(loaded, how, words):
    with pytest.raises(AdapterError, match=words):
        loaded.ask("a.png", "what?", **how)
