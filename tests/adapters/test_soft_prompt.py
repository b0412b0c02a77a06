"""A soft prompt alone: trained without a projector, before everything, and said alike by PEFT."""

import json
import sys

import peft
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from periscope.adapters.io.checkpoint import load_adapter, save_adapter
from periscope.adapters.io.export_peft import save_peft_prompt
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.segments import SOFT_PROMPT
from periscope.adapters.prompting.template import Template, default_template
from periscope.adapters.soft_prompt import SoftPrompt
from periscope.console import run
from periscope.errors import AdapterError

POOLED = FeatureShape("pooled", 1, 6)
TURNS = [{"role": "user", "content": "What colour is the star?"}, {"role": "assistant", "content": "blue"}]
ABOUT = {"modality": "image", "encoder": {"name": "e"}, "template": Template(), "training": {}}


def prompted(lm, mlp: bool = False, **template) -> AdaptedModel:
    torch.manual_seed(1)
    adapter = Adapter("none", POOLED, lm.hidden_size, lm.embedding_rms, soft_prompt=5, soft_prompt_mlp=mlp)
    form = default_template(lm.tokenizer, **{"soft_prompt": "first", **template})
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, form))


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("family", ["llama", "opt", "opt-350m", "gemma2", "qwen3", "gpt_neox"])
def test_peft_says_the_same(family, mlp, language_model_folder, tmp_path):
    folder = language_model_folder(family)
    model = prompted(load_language_model(str(folder)), mlp)
    segments = model.prompt.segments(TURNS, soft_prompt=True)
    assert segments[0].slot == SOFT_PROMPT
    ids = [token for part in segments for token in part.ids]
    batch, _ = model._splice([segments], model.slots([segments], {}))
    with torch.no_grad():
        want = model.lm.model(**model._inputs(batch)).logits
    save_peft_prompt(tmp_path / "peft", model.adapter, model.prompt.template, str(folder))
    assert sorted(path.name for path in (tmp_path / "peft").iterdir()) == [
        *("adapter_config.json", "adapter_model.safetensors")
    ]
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(tmp_path / "peft"))
    with torch.no_grad():
        found = theirs.eval()(input_ids=torch.tensor([ids])).logits
        alone = theirs.get_base_model()(input_ids=torch.tensor([ids])).logits
    assert found.shape == want.shape and (found - want).abs().max() <= 1e-5
    assert (alone - want[:, 5:]).abs().max() > 1e-3, "the prompt must matter"
    if model.prompt.text.bos_ids:  # the nearest wrong place
        after = prompted(model.lm, mlp, soft_prompt="before")
        segments = after.prompt.segments(TURNS, soft_prompt=True)
        batch, _ = after._splice([segments], after.slots([segments], {}))
        with torch.no_grad():
            assert (model.lm.model(**model._inputs(batch)).logits - want).abs().max() > 1e-3


def test_what_peft_cannot_say_is_not_exported(language_model_folder, tmp_path):
    lm = load_language_model(str(language_model_folder("llama")))
    first = Template(soft_prompt="first")
    with_media = Adapter("mlp2", POOLED, lm.hidden_size, lm.embedding_rms, soft_prompt=5)
    for adapter, template, message in (
        (with_media, first, r"reads media \(mlp2\), which PEFT can't"),
        (prompted(lm).adapter, Template(soft_prompt="before"), "stands before the words"),
    ):
        with pytest.raises(AdapterError, match=message):
            save_peft_prompt(tmp_path / "peft", adapter, template, "lm")
    assert not (tmp_path / "peft").exists()
    with pytest.raises(AdapterError, match="leaves nothing to train"):
        Adapter("none", POOLED, lm.hidden_size, lm.embedding_rms)


def test_the_command_exports_an_adapter_or_a_runs_last(language_model_folder, tmp_path, monkeypatch, capsys):
    from periscope.adapters.__main__ import main

    model = prompted(load_language_model(str(language_model_folder("llama"))), mlp=True)
    about = ABOUT | {"language_model": {"name": "some/model", "identity": {}}, "template": model.prompt.template}
    folder = tmp_path / "run" / "steps" / "000040" / "adapter"
    save_adapter(folder, model.adapter, about)
    (tmp_path / "run" / "last").write_text("000040\n")
    (tmp_path / "run" / "config.toml").touch()
    for source, out in ((folder, "a"), (tmp_path / "run", "b")):
        monkeypatch.setattr(sys, "argv", ["adapters", "export-prompt", str(source), "--out", str(tmp_path / out)])
        main()
        assert "5 vectors" in capsys.readouterr().out
    weights = [(tmp_path / out / "adapter_model.safetensors").read_bytes() for out in "ab"]
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert weights[0] == weights[1] and config["peft_type"] == "PROMPT_TUNING"
    assert config["base_model_name_or_path"] == "some/model"
    with pytest.raises(SystemExit, match="nothing is overwritten"):
        run(main)
    monkeypatch.setattr(sys, "argv", ["adapters", "export-prompt", str(tmp_path / "a"), "--out", str(tmp_path / "c")])
    with pytest.raises(SystemExit, match="is not a run"):
        run(main)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "run"]


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_a_prompt_alone_learns_and_media_are_passed_over(template, tmp_path):
    """A few steps lower the loss; a text's medium takes no token and changes nothing."""
    family = "qwen3" if template == "chat" else "llama"
    lm = load_language_model(str(tiny.save_language_model(family, tmp_path / "lm")))
    model = prompted(lm, style=template, delimiters=("", ""))
    assert model.adapter.log_gain is None and model.adapter.tokens == 0
    texts = [model.prompt.segments(TURNS, ["m"], soft_prompt=True), model.prompt.segments(TURNS, soft_prompt=True)]
    features = {"m": torch.randn(6)}
    with_medium, without = (loss for loss, _ in model.text_losses(texts, features))
    assert with_medium == pytest.approx(without, abs=1e-5)
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=0.3)
    model.adapter.match_scale(features["m"][None])
    for _ in range(5):
        optimizer.zero_grad()
        loss, count = model.loss(texts, features)
        (loss / count).backward()
        optimizer.step()
    assert model.text_losses(texts, features)[0][0] < with_medium - 0.1
    save_adapter(tmp_path / "a", model.adapter, ABOUT | {"language_model": {"name": "l", "identity": {}}})
    again, _ = load_adapter(tmp_path / "a")
    assert torch.equal(again.soft_prompt(), model.adapter.soft_prompt())
    assert "soft prompt of 5" in (tmp_path / "a" / "README.md").read_text()


def test_at_unit_scale_the_prompt_starts_and_moves_as_epalms():
    """Whose vectors are an `nn.Embedding`, standard normal, moved by the learning rate itself (mshukor/eP-ALM 9ecfeb9,
    `InputPrompts`). At the embeddings' scale of 0.02 both would be 50 times smaller.
    """
    torch.manual_seed(0)
    found = {}
    for scale in (1.0, 0.02):
        prompt = SoftPrompt(64, 32, scale)
        prompt.start_from(torch.randn(64, 32) * 0.02)
        before = prompt().detach()
        optimizer = torch.optim.AdamW(prompt.parameters(), lr=1e-3, weight_decay=0)
        (prompt() * torch.randn(64, 32)).sum().backward()
        optimizer.step()
        found[scale] = before.std().item(), (prompt() - before).abs().mean().item()
    assert found[1.0] == pytest.approx((1, 1e-3), rel=0.05)
    assert found[0.02] == pytest.approx((0.02, 2e-5), rel=0.05)
    shape = FeatureShape("pooled", 1, 12)
    made = [Adapter("mlp2", shape, 32, 0.02, soft_prompt=4, soft_prompt_unit=unit) for unit in (True, False)]
    assert [adapter.soft_prompt.scale for adapter in made] == [1, 0.02]
