"""A language model is recognised by every tensor and by what its tokenizer does, in whatever precision."""

import json
from dataclasses import replace

import pytest
import tiny
import torch
from tokenizers import Tokenizer, normalizers, processors

from periscope.adapters.lm.identity import LanguageModelIdentity, same_language_model
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import Template


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_language_model("smollm", tmp_path_factory.mktemp("lm"), num_hidden_layers=3)


@pytest.fixture(scope="module")
def recorded(folder) -> LanguageModelIdentity:
    return load_language_model(str(folder)).identity()


def older(identity: LanguageModelIdentity) -> LanguageModelIdentity:
    """What earlier versions recorded."""
    return replace(identity, digest=None)


def test_a_change_of_any_single_weight_matrix_or_vector_is_seen(folder, recorded):
    lm = load_language_model(str(folder))
    unseen = 0
    for parameter in lm.model.parameters():
        before = parameter.clone()
        parameter.mul_(3)
        assert same_language_model(recorded, lm.identity()) is not None
        unseen += same_language_model(older(recorded), lm.identity()) is None
        parameter.copy_(before)
        assert same_language_model(recorded, lm.identity()) is None
        if parameter.dim() > 1:  # a fine-tune's small change in every direction
            parameter.add_(0.05 * before.std() * torch.randn(before.shape, generator=torch.Generator().manual_seed(0)))
            assert same_language_model(recorded, lm.identity()) is not None
            parameter.copy_(before)
    assert unseen > 10, "most of these changes passed the older rule, which older adapters keep"


@pytest.mark.parametrize("change", ["normalizer", "no begin-of-text", "begin-of-text", "end of text"])
def test_a_tokenizer_of_the_same_vocabulary_that_does_something_else_is_seen(tmp_path, change):
    place = tiny.save_language_model("llama" if change == "no begin-of-text" else "smollm", tmp_path / "lm")
    before = load_language_model(str(place)).identity()
    file = place / "tokenizer.json"
    core = Tokenizer.from_file(str(file))
    if change == "normalizer":
        core.normalizer = normalizers.Lowercase()
    elif change == "begin-of-text":
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    core.save(str(file))
    facts = json.loads((place / "tokenizer_config.json").read_text())
    if change == "no begin-of-text":
        values = json.loads(file.read_text())
        values["post_processor"] = None
        file.write_text(json.dumps(values))
        facts["tokenizer_class"] = "PreTrainedTokenizerFast"
    if change == "end of text":
        facts["eos_token"] = "</s>"
    (place / "tokenizer_config.json").write_text(json.dumps(facts))
    after = load_language_model(str(place)).identity()
    assert same_language_model(before, after) == "its tokenizer makes other tokens of the same texts"
    assert same_language_model(older(before), after) is None


def test_precision_lora_and_use_change_nothing(folder, recorded):
    from periscope.adapters.lm.lora import add_lora

    for precision in ("fp16", "bf16", "8bit", "4bit"):
        lm = load_language_model(str(folder), precision=precision)
        assert same_language_model(recorded, lm.identity()) is None
        assert same_language_model(lm.identity(), recorded) is None
    lm = load_language_model(str(folder))
    prompt = Prompt(lm.tokenizer, Template())
    prompt.segments([{"role": "assistant", "content": "a <|im_end|> cat"}])
    add_lora(lm, 2, 4.0)
    assert lm.identity() == recorded
