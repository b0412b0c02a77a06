"""LoRA on the frozen model: what PEFT computes with the same folder, the model's own weights left alone, and no more
taken from a folder than plain LoRA.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from periscope.adapters.lm.identity import same_language_model, weights_sha256
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.lm.lora import (
    CONFIG,
    WEIGHTS,
    add_lora,
    load_lora,
    lora_layers,
    lora_parameters,
    remove_lora,
    save_lora,
)
from periscope.adapters.names import parse_lora
from periscope.errors import AdapterError


def learnt(lm, rank=4, alpha=8):
    """A LoRA as training would leave it: B is no longer zero."""
    torch.manual_seed(5)
    add_lora(lm, rank, alpha)
    with torch.no_grad():
        for parameter in lora_parameters(lm.model).values():
            parameter.normal_(std=0.1)
    return lm


def logits(model, vocabulary: int) -> torch.Tensor:
    ids = torch.arange(24).view(2, 12) * 7 % vocabulary
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()


FAMILIES = ("llama", "opt-350m", "gpt2", "gemma2", "gpt_neox", "mistral", "mamba", "mamba2", "falcon_mamba")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_folder_answers_in_plain_peft_as_here(family, language_model_folder, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = language_model_folder(family)
    lm = load_language_model(str(folder))
    before, words = weights_sha256(lm.model), len(lm.tokenizer)
    plain = logits(lm.model, words)
    save_lora(tmp_path / "lora", learnt(lm))
    found = logits(lm.model, words)
    assert (found - plain).abs().max() > 1e-2
    assert weights_sha256(lm.model) == before
    trained = [name for name, parameter in lm.model.named_parameters() if parameter.requires_grad]
    assert len(trained) == len(lora_parameters(lm.model)) and all(".lora_" in name for name in trained)
    assert not any("lm_head" in name or "embed_out" in name or "wte" in name for name in trained)
    assert not lm.model.training and not any(part.training for part in lm.model.modules())

    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder).eval(), tmp_path / "lora").eval()
    torch.testing.assert_close(logits(theirs, words), found, rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "lora" / CONFIG).read_text())["base_model_name_or_path"] == str(folder)
    again = load_language_model(str(folder))
    load_lora(again, tmp_path / "lora")
    assert torch.equal(logits(again.model, words), found)
    assert same_language_model(lm.identity(), again.identity()) is None
    remove_lora(lm)
    assert torch.equal(logits(lm.model, words), plain) and not lora_parameters(lm.model)
    add_lora(lm, 2, 2)  # and it takes another


def test_lora_goes_on_all_linear_layers_but_the_head(language_model_folder):
    def names(family):
        return {
            name.rpartition(".")[2]
            for name in lora_layers(load_language_model(str(language_model_folder(family))).model)
        }

    assert names("llama") == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert names("gpt2") == {"c_attn", "c_proj", "c_fc"}
    assert names("mamba") == names("falcon_mamba") == {"in_proj", "x_proj"} and names("mamba2") == {"in_proj"}


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "mamba2"])
def test_every_lora_of_a_state_space_model_learns(family, language_model_folder):
    """What isn't on the list wouldn't: dt_proj's weight is used without its layer."""
    lm = learnt(load_language_model(str(language_model_folder(family))))
    vectors = lm.embed(torch.arange(10)[None] + 9)
    lm.model(inputs_embeds=vectors, attention_mask=torch.ones(1, 10)).logits.float().square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in lora_parameters(lm.model).values())


@pytest.mark.parametrize("precision", ["fp16", "bf16", "8bit", "4bit"])
@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_lora_is_fp32_over_weights_in_fewer_bits(family, precision, language_model_folder):
    lm = load_language_model(str(language_model_folder(family)), precision=precision)
    before = weights_sha256(lm.model)
    torch.manual_seed(0)
    add_lora(lm, 8, 16)
    trained = list(lora_parameters(lm.model).values())
    assert all(parameter.dtype == torch.float32 for parameter in trained)
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    ids, losses = torch.arange(20)[None] * 3 + 9, []
    for _ in range(12):
        given = lm.model(inputs_embeds=lm.embed(ids), attention_mask=torch.ones_like(ids))
        loss = torch.nn.functional.cross_entropy(given.logits[0, :-1].float(), ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    assert weights_sha256(lm.model) == before


def test_the_size_is_read_from_words():
    assert parse_lora("r=64,alpha=16") == (64, 16) and parse_lora(" r=8 , alpha=32 ") == (8, 32)
    assert parse_lora("r=8") == (8, 8)
    for wrong in ("64", "r=0", "r=8,alpha=0", "alpha=16", "r=8,alpha=1.5", "r=8,beta=2", ""):
        with pytest.raises(AdapterError, match="r=64,alpha=16"):
            parse_lora(wrong)


@pytest.fixture
def saved(language_model_folder, tmp_path):
    lm = learnt(load_language_model(str(language_model_folder("llama"))))
    save_lora(tmp_path / "lora", lm)
    remove_lora(lm)
    return lm, tmp_path / "lora"


@pytest.mark.parametrize(
    "change, says",
    [
        ({"modules_to_save": ["lm_head"]}, "asks for modules_to_save, and only plain LoRA"),
        ({"auto_mapping": {"base_model_class": "X", "parent_library": "y"}}, "asks for auto_mapping"),
        ({"use_dora": True}, "asks for use_dora"),
        ({"target_parameters": ["x"]}, "asks for target_parameters"),
        ({"rank_pattern": {"q_proj": 2}}, "asks for rank_pattern"),
        ({"init_lora_weights": "pissa"}, "asks for init_lora_weights"),
        ({"something_new": 1}, "asks for something_new"),
        ({"peft_type": "IA3"}, "asks for peft_type"),
        ({"target_modules": ".*"}, "damaged: r 4"),
        ({"target_modules": ["q_proj", "lm_head"]}, "puts LoRA on lm_head"),
        ({"target_modules": ["q_proj"]}, "should be left out"),
        ({"r": 10**9}, r"is \[4, .*should be \[1000000000"),
        ({"r": 4.0}, "damaged: r 4.0"),
        ({"lora_alpha": 0}, "damaged"),
        ({"r": None}, "damaged"),
    ],
)
def test_what_is_no_plain_lora_is_refused(change, says, saved):
    lm, folder = saved
    fields = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(fields | change))
    with pytest.raises(AdapterError, match=says):
        load_lora(lm, folder)
    assert not lora_parameters(lm.model) and lm.lora is None


def test_a_damaged_lora_is_refused_and_one_in_part_of_the_layers_taken(saved, language_model_folder):
    lm, folder = saved
    state = {name: value.clone() for name, value in load_file(folder / WEIGHTS).items()}
    fields = json.loads((folder / CONFIG).read_text())
    other = load_language_model(str(language_model_folder("opt")))
    with pytest.raises(AdapterError, match=r"puts LoRA on down_proj, and .* takes none there"):
        load_lora(other, folder)
    for name in (WEIGHTS, CONFIG):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(AdapterError, match=name):
            load_lora(lm, folder)
        (folder / name).unlink()
        with pytest.raises(AdapterError, match=name):
            load_lora(lm, folder)
        (folder / name).write_bytes(whole)
    first = next(iter(state))
    save_file({name: value for name, value in state.items() if name != first}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match="is missing and should be"):
        load_lora(lm, folder)
    some = {name: value.half() for name, value in state.items() if ".q_proj." in name or ".up_proj." in name}
    save_file(some, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(fields | {"target_modules": ["up_proj", "q_proj"]}))
    load_lora(lm, folder)
    assert len(lora_parameters(lm.model)) == len(some)
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    with pytest.raises(AdapterError, match="one at a time"):
        load_lora(lm, folder)
