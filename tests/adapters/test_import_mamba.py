"""A language model in mamba_ssm's format, converted: the logits are those of the format's own recurrence."""

import json

import pytest
import tiny
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from periscope.adapters.io.import_mamba import import_mamba_ssm
from periscope.adapters.lm.load import load_language_model, load_tokenizer
from periscope.adapters.prompting.template import default_template
from periscope.errors import AdapterError

WIDTH, INNER, STATES, RANK, LAYERS, KERNEL = 32, 64, 4, 2, 2, 4
DESCRIPTION = {
    **{"d_model": WIDTH, "n_layer": LAYERS, "vocab_size": 357, "pad_vocab_size_multiple": 8},
    **{"ssm_cfg": {"d_state": STATES}, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True},
}


def released(vocabulary: int) -> dict[str, torch.Tensor]:
    """Random weights under the names of `mamba_ssm.models.mixer_seq_simple.MambaLMHeadModel`."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    state = {"backbone.embedding.weight": normal(vocabulary, WIDTH), "backbone.norm_f.weight": 1 + normal(WIDTH)}
    for layer in range(LAYERS):
        mixer = {
            **{"A_log": normal(INNER, STATES), "D": normal(INNER), "in_proj.weight": normal(2 * INNER, WIDTH)},
            **{"conv1d.weight": normal(INNER, 1, KERNEL), "conv1d.bias": normal(INNER)},
            **{"x_proj.weight": normal(RANK + 2 * STATES, INNER), "dt_proj.weight": normal(INNER, RANK)},
            **{"dt_proj.bias": normal(INNER), "out_proj.weight": normal(WIDTH, INNER)},
        }
        state |= {f"backbone.layers.{layer}.mixer.{name}": value for name, value in mixer.items()}
        state[f"backbone.layers.{layer}.norm.weight"] = 1 + normal(WIDTH)
    return state | {"lm_head.weight": state["backbone.embedding.weight"]}


def logits_of(state: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    """Of one text, written out from arXiv 2312.00752 (equations 2 to 4, figure 3)."""

    def norm(x, weight):
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight

    x = state["backbone.embedding.weight"][ids]
    for layer in range(LAYERS):
        part = {name.split("mixer.")[1]: value for name, value in state.items() if f"layers.{layer}.mixer" in name}
        u, gate = (norm(x, state[f"backbone.layers.{layer}.norm.weight"]) @ part["in_proj.weight"].T).chunk(2, -1)
        before = torch.cat([torch.zeros(KERNEL - 1, INNER), u])
        u = torch.stack([(before[t : t + KERNEL] * part["conv1d.weight"][:, 0].T).sum(0) for t in range(len(ids))])
        u = functional.silu(u + part["conv1d.bias"])
        low, B, C = (u @ part["x_proj.weight"].T).split([RANK, STATES, STATES], -1)
        step = functional.softplus(low @ part["dt_proj.weight"].T + part["dt_proj.bias"])
        state_, outs, A = torch.zeros(INNER, STATES), [], -part["A_log"].exp()
        for t in range(len(ids)):
            state_ = torch.exp(step[t, :, None] * A) * state_ + (step[t] * u[t])[:, None] * B[t]
            outs.append(state_ @ C[t] + part["D"] * u[t])
        x = x + (torch.stack(outs) * functional.silu(gate)) @ part["out_proj.weight"].T
    return norm(x, state["backbone.norm_f.weight"]) @ state["lm_head.weight"].T


@pytest.fixture
def model(tmp_path):
    """A model's folder in mamba_ssm's format, without a tokenizer, a tokenizer, and its weights."""
    words = tiny.byte_level()
    words.save_pretrained(tmp_path / "words")
    state = released(len(words))
    (folder := tmp_path / "model").mkdir()
    (folder / "config.json").write_text(json.dumps(DESCRIPTION))
    torch.save(state, folder / "pytorch_model.bin")
    return folder, str(tmp_path / "words"), state


@pytest.mark.parametrize("tied", [True, False])
def test_the_converted_model_has_the_formats_own_logits(tied, model, tmp_path, capsys):
    folder, words, state = model
    if not tied:
        state["lm_head.weight"] = state["lm_head.weight"].flip(0).clone()
        torch.save({name: value.half() for name, value in state.items()}, folder / "pytorch_model.bin")
        state = {name: value.half().float() for name, value in state.items()}
    import_mamba_ssm(folder, out=tmp_path / "out", tokenizer=words)
    assert "--lm" in capsys.readouterr().out
    lm = load_language_model(str(tmp_path / "out"))
    assert type(lm.model).__name__ == "MambaForCausalLM" and lm.tokenizer.eos_token_id == lm.model.config.eos_token_id
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype
    assert stored == (torch.float32 if tied else torch.float16) and lm.model.config.tie_word_embeddings == tied
    ids = lm.tokenizer("a red circle and a small blue star").input_ids
    with torch.no_grad():
        ours = lm.model(torch.tensor([ids])).logits[0]
    expected = logits_of(state, ids)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
    swapped = {**state, "backbone.layers.0.mixer.D": state["backbone.layers.1.mixer.D"]}
    assert (logits_of(swapped, ids) - expected).abs().max() > 0.01, "a layer's weights in another's place would show"


@pytest.mark.parametrize(
    "change, says",
    [
        ({"ssm_cfg": {"layer": "Mamba2"}}, "has Mamba2, and only models of Mamba-1 layers"),
        ({"attn_layer_idx": [1]}, "has attention layers"),
        ({"rms_norm": False}, "has LayerNorm"),
        ({"n_layer": 3}, r"layers\.2\.mixer\.A_log is missing and should be \[64, 4\]"),
        ({"d_model": "wide"}, "isn't a config of mamba_ssm"),
        ({"d_model": None}, "isn't a config of mamba_ssm"),
    ],
)
def test_what_is_not_such_a_model_is_one_sentence(change, says, model, tmp_path):
    folder, words, _ = model
    (folder / "config.json").write_text(json.dumps(DESCRIPTION | change))
    with pytest.raises(AdapterError, match=says):
        import_mamba_ssm(folder, out=tmp_path / "out", tokenizer=words)
    assert not (tmp_path / "out").exists()


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_no_code_in_its_files_is_run(model, tmp_path, capsys):
    folder, words, state = model
    torch.save(state | {"evil": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(AdapterError, match="isn't read: it asks for"):
        import_mamba_ssm(folder, out=tmp_path / "out", tokenizer=words)
    assert "run" not in capsys.readouterr().out
    (folder / "config.json").write_text('{"model_type": "mamba", "hidden_size": 32}')
    with pytest.raises(AdapterError, match=r"in transformers' format already \(mamba\)"):
        import_mamba_ssm(folder, out=tmp_path / "out", tokenizer=words)


def test_zephyrs_chat_template_is_given_to_the_tokenizer(model, tmp_path):
    """As https://github.com/h-zhao1997/cobra (zephyr_prompter.py) writes turns."""
    folder, words, _ = model
    import_mamba_ssm(folder, out=tmp_path / "out", tokenizer=words, chat="zephyr")
    tokenizer = load_tokenizer(str(tmp_path / "out"))
    turns = [{"role": role, "content": said} for role, said in
             (("user", "Is it red?"), ("assistant", "no"), ("user", "Why?"))]  # fmt: skip
    end = tokenizer.eos_token
    asked = f"<|user|>\nIs it red?{end}\n<|assistant|>\nno{end}\n<|user|>\nWhy?{end}\n<|assistant|>\n"
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == asked
    assert default_template(tokenizer).style == "chat"
