"""Released projectors: what they say here is what their own models say, and their files run no code."""

import json
import pickle
import re
import sys

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from periscope.adapters.io.checkpoint import load_adapter
from periscope.adapters.io.import_projector import MAPL, TEMPLATES, VICUNA, named_as_here, read_projector
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel
from periscope.adapters.projectors import FeatureShape, build_projector
from periscope.adapters.prompting.prompt import Prompt
from periscope.cli import import_
from periscope.errors import AdapterError

WIDTH, SIDE = 24, 3
CLIPCAP = [3.80449, 0.6365, -2.73098, -4.20066, -4.20839, -2.51976, -1.08202, 0.59213, 1.77584, 3.21346, 4.05018,
           3.58288, 1.51834, -1.93569, -4.53378, -5.56636]  # fmt: skip


def linear(name: str, inputs: int, outputs: int) -> dict[str, torch.Tensor]:
    layer = nn.Linear(inputs, outputs)
    return {f"{name}.weight": layer.weight.detach(), f"{name}.bias": layer.bias.detach()}


@pytest.fixture(scope="module")
def lm(language_model_folder):
    return load_language_model(str(language_model_folder("llama")))


@pytest.fixture
def features(tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    held = {
        "patches": {"shape": [SIDE * SIDE, WIDTH], "dtype": "float16", "codec": "fp16", "grid": [SIDE, SIDE]},
        "pooled": {"shape": [WIDTH], "dtype": "float16", "codec": "fp16"},
    }
    manifest = {"modality": "image", "encoder": {"name": "clip-l-336"}, "features": held}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def imported(lm, features, tmp_path, monkeypatch):
    """A function from a system and what its file holds to the adapter, made by the command."""

    def make(system: str, content: object, name: str = "released.bin"):
        torch.save(content, tmp_path / name)
        arguments = ["periscope import", system, str(tmp_path / name), "--lm", lm.name, "--features", str(features)]
        monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path / f"{system}-{name}")])
        import_()
        adapter, config = load_adapter(tmp_path / f"{system}-{name}")
        return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, config.template)), config

    return make


def llava(lm, projector: dict[str, torch.Tensor]) -> LlavaForConditionalGeneration:
    """transformers' LLaVA on the same language model, with a random CLIP of 3 x 3 patches."""
    torch.manual_seed(5)
    size = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = CLIPVisionConfig(**size, image_size=12, patch_size=4)
    config = LlavaConfig(vision_config=vision, text_config=lm.model.config, image_token_index=3,
                         vision_feature_layer=-2, image_seq_length=SIDE * SIDE)  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    model.model.language_model.load_state_dict(lm.model.model.state_dict())
    model.lm_head.load_state_dict(lm.model.lm_head.state_dict())
    names = {"linear_1": "model.mm_projector.0", "linear_2": "model.mm_projector.2"}
    state = {f"{ours}.{part}": projector[f"{name}.{part}"] for ours, name in names.items()
             for part in ("weight", "bias")}  # fmt: skip
    model.model.multi_modal_projector.load_state_dict(state)
    return model


@torch.no_grad()
def test_llavas_projector_answers_as_transformers_llava_does(lm, imported):
    """Token for token, with the ids of LLaVA's `tokenizer_image_token`: each stretch around the picture is a string."""
    torch.manual_seed(2)
    state = linear("model.mm_projector.0", WIDTH, lm.hidden_size)
    state |= linear("model.mm_projector.2", lm.hidden_size, lm.hidden_size)
    state = {name: tensor * 4 for name, tensor in state.items()}
    model, config = imported("llava", state, "mm_projector.bin")
    assert config.adapter == "mlp" and not config.output_norm and config.encoder == {"name": "clip-l-336"}
    original = llava(lm, state)
    said = set()
    for seed, question in enumerate(("What colour is the star?", "the lazy dog", "What is it?")):
        pixels = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
        patches = original.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
        before, after = (lm.tokenizer(part).input_ids for part in (f"{VICUNA}USER: ", f"\n{question} ASSISTANT:"))
        ids = torch.tensor([[*before, *[3] * SIDE * SIDE, *after[1:]]])
        settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": lm.tokenizer.eos_token_id}
        made = original.generate(input_ids=ids, pixel_values=pixels, pad_token_id=0, **settings)[0, ids.shape[1] :]
        prompt = model.prompt.segments([{"role": "user", "content": question}], ["a"], answer=False)
        answer = model.generate([prompt], {"a": patches}, 8)[0]
        assert answer == lm.tokenizer.decode(made, skip_special_tokens=True).strip()
        others = [model.generate([prompt], {"a": wrong}, 8)[0] for wrong in (patches.flip(0), patches * 0)]
        said |= {answer, *others}
    assert len(said) > 2, "what is seen decides what is said"


def test_each_system_s_file_becomes_its_projector(lm, imported, capsys):
    h = lm.hidden_size
    fused = linear("projector.0", WIDTH, 4 * WIDTH) | linear("projector.2", 4 * WIDTH, h) | linear("projector.4", h, h)
    model, _ = imported("cobra", {"model": {"projector": fused, "llm_backbone": linear("llm.lm_head", h, 7)}})
    assert model.adapter.spec == "fusedmlp" and "if it was tuned, --lm must be the tuned one" in capsys.readouterr().out
    x = torch.randn(1, SIDE * SIDE, WIDTH)
    step = nn.functional.gelu(nn.functional.linear(x, fused["projector.0.weight"], fused["projector.0.bias"]))
    step = nn.functional.gelu(nn.functional.linear(step, fused["projector.2.weight"], fused["projector.2.bias"]))
    want = nn.functional.linear(step, fused["projector.4.weight"], fused["projector.4.bias"])
    torch.testing.assert_close(model.adapter(x), want)
    model, config = imported("limber", linear("proj", WIDTH, h))
    assert model.adapter.spec == "linear" and config.template == TEMPLATES["limber"]
    model, _ = imported("llava-pretrain", linear("model.mm_projector", WIDTH, h))
    assert model.adapter.spec == "linear" and model.prompt.template.end == "\n"
    mlp = linear("clip_project.model.0", WIDTH, 5 * h // 2) | linear("clip_project.model.2", 5 * h // 2, 5 * h)
    model, _ = imported("clipcap", mlp | linear("gpt.transformer.wte", 3, 4))
    assert model.adapter.spec == "clipcap5" and model.adapter.tokens == 5
    mapper = build_projector("mapl3", FeatureShape("patches", SIDE * SIDE, WIDTH, (SIDE, SIDE)), h, inner=16, layers=2)
    theirs = {ours: name for name, ours in MAPL.items()}
    state = {re.sub(r"^\w+", lambda part: theirs[part[0]], name): each for name, each in mapper.state_dict().items()}
    model, _ = imported("mapl", state)
    assert model.adapter.spec == "mapl3" and not model.prompt.template.eos
    torch.testing.assert_close(model.adapter(x), mapper.eval()(x), atol=1e-5, rtol=1e-4)


def test_clipcaps_transformer_is_the_official_one():
    """The values are `TransformerMapper`'s of rmokady/CLIP_prefix_caption 1ad805a with torch 2.14.1, its tensors filled
    with half the sine of a running index in the order of their names.
    """
    names = ["linear.bias", "linear.weight", "prefix_const"]
    parts = ["attn.project.bias", "attn.project.weight", "attn.to_keys_values.weight", "attn.to_queries.weight",
             "mlp.fc1.bias", "mlp.fc1.weight", "mlp.fc2.bias", "mlp.fc2.weight",
             "norm1.bias", "norm1.weight", "norm2.bias", "norm2.weight"]  # fmt: skip
    names += [f"transformer.layers.{i}.{part}" for i in range(2) for part in parts]
    shapes = {"linear.bias": 48, "linear.weight": (48, 6), "prefix_const": (3, 16)}
    sizes = {"attn.project.bias": 16, "attn.project.weight": (16, 16), "attn.to_keys_values.weight": (32, 16),
             "attn.to_queries.weight": (16, 16), "mlp.fc1.bias": 32, "mlp.fc1.weight": (32, 16), "mlp.fc2.bias": 16,
             "mlp.fc2.weight": (16, 32)}  # fmt: skip
    state, start = {}, 0
    for name in names:
        shape = shapes.get(name) or sizes.get(name.partition("layers.")[2][2:], 16)
        empty = torch.empty(shape)
        values = torch.arange(start, start := start + empty.numel(), dtype=torch.float64).sin() / 2
        state[name] = values.float().view_as(empty)
    released = named_as_here(state, "coco.pt")
    assert released.spec == "clipcap-transformer3" and released.layers == 2
    module = build_projector(released.spec, FeatureShape("pooled", 1, 6), 16, layers=2)
    module.load_state_dict(released.state)
    found = module(torch.arange(12, dtype=torch.float64).cos().float().view(2, 6))[1, 2]
    torch.testing.assert_close(found.detach(), torch.tensor(CLIPCAP), atol=2e-4, rtol=1e-4)
    with pytest.raises(AdapterError, match="8 heads, which 20 can't be split into"):
        build_projector("clipcap-transformer3", FeatureShape("pooled", 1, 6), 20)


class Runs:
    def __reduce__(self):
        return print, ("run",)


def test_what_is_no_projector_is_one_sentence_and_runs_nothing(lm, imported, tmp_path, capsys):
    (tmp_path / "code.bin").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(AdapterError, match=r"isn't read"):
        read_projector(tmp_path / "code.bin")
    torch.save({"w": Runs()}, tmp_path / "code.bin")
    with pytest.raises(AdapterError, match=r"asks for .*print, which is no tensor and isn't run"):
        read_projector(tmp_path / "code.bin")
    assert "run" not in capsys.readouterr().out.split()
    with pytest.raises(AdapterError, match=r"gone\.bin doesn't exist"):
        read_projector(tmp_path / "gone.bin")
    with pytest.raises(AdapterError, match="of another form than LLaVA's"):
        imported("llava", linear("model.mm_projector.1", WIDTH, lm.hidden_size), "a.bin")
    with pytest.raises(AdapterError, match=r"has last.weight of shape \(5, 24\).* it would be \(32, 24\)"):
        imported("limber", linear("proj", WIDTH, 5), "b.bin")
    broken = {name: tensor * float("nan") for name, tensor in linear("proj", WIDTH, lm.hidden_size).items()}
    with pytest.raises(AdapterError, match="aren't finite, in last"):
        imported("limber", broken, "c.bin")
    with pytest.raises(AdapterError, match="holds no projector"):
        imported("llava", {"epoch": 3}, "d.bin")
