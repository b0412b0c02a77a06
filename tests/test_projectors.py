"""Projectors: names, shapes, parameter counts, formulas, and the scale rule."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from adapters import AdapterError
from adapters.checkpoint import load_adapter, read_adapter_config, save_adapter
from adapters.model import Adapter
from adapters.projectors import FeatureShape, build_projector, find_projector

ROOT = Path(__file__).parent.parent
POOLED = FeatureShape("pooled", 1, 12)
PATCHES = FeatureShape("patches", 36, 12, (6, 6))
H = 20
EXPECTED = {  # spec: (features, tokens, parameters)
    "linear4": (POOLED, 4, 12 * 4 * H + 4 * H),
    "mlp16": (POOLED, 16, 12 * H + H + H * 16 * H + 16 * H),
    "linear": (PATCHES, 36, 12 * H + H),
    "mlp": (PATCHES, 36, 12 * H + H + H * H + H),
    "group9": (PATCHES, 4, 9 * 12 * H + H),
    "window3": (PATCHES, 4, 9 * 12 * H + H),
}


@pytest.mark.parametrize("spec", EXPECTED)
def test_shape_and_parameter_count(spec):
    features, tokens, parameters = EXPECTED[spec]
    module = build_projector(spec, features, H)
    shape = (3, 12) if features.kind == "pooled" else (3, 36, 12)
    assert module(torch.randn(shape)).shape == (3, tokens, H) and module.tokens == tokens
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_mlp16_at_7b_width_has_272_million_parameters():
    with torch.device("meta"):
        module = build_projector("mlp16", FeatureShape("pooled", 1, 768), 4096)
    assert sum(p.numel() for p in module.parameters()) == 768 * 4096 + 4096 + 4096 * 65536 + 65536 == 271_650_816


def test_projector_hidden_narrows_the_wide_ones_and_is_refused_where_there_is_nothing_between():
    with torch.device("meta"):
        module = build_projector("mlp16", FeatureShape("pooled", 1, 768), 4096, inner=512)
    assert sum(p.numel() for p in module.parameters()) == 768 * 512 + 512 + 512 * 65536 + 65536 < 34_100_000
    assert build_projector("mlp", PATCHES, H, inner=7)(torch.randn(2, 36, 12)).shape == (2, 36, H)
    with pytest.raises(AdapterError, match="no layer between"):
        build_projector("linear16", POOLED, H, inner=7)


def test_doubutsu_mlp_formula():
    module = build_projector("mlp2", POOLED, H)
    x = torch.randn(5, 12)
    plain = nn.Sequential(nn.Linear(12, H), nn.ReLU(), nn.Linear(H, 2 * H))
    plain[0].load_state_dict(module.first.state_dict())
    plain[2].load_state_dict(module.last.state_dict())
    assert torch.equal(module(x), plain(x).view(5, 2, H))


def test_groups_follow_the_raster_and_windows_the_grid():
    """With patches that hold their own (row, column), a summing layer shows which patches share a token."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    patches = torch.stack([rows, columns], -1).flatten(0, 1)[None]
    shape = FeatureShape("patches", 36, 2, (6, 6))
    members = {}
    for spec in ("group9", "window3"):
        module = build_projector(spec, shape, 18)
        seen = {}
        module.last.register_forward_pre_hook(lambda _, x, seen=seen: seen.update(x=x[0]))
        module(patches)
        flat = seen["x"][0]  # (tokens, 18)
        pairs = flat.view(4, 9, 2) if spec == "group9" else flat.view(4, 2, 9).transpose(1, 2)
        members[spec] = [{(int(r), int(c)) for r, c in token} for token in pairs]
    assert members["group9"][0] == {(i // 6, i % 6) for i in range(9)}
    assert members["window3"][1] == {(r, c) for r in range(3) for c in range(3, 6)}


def test_window_pads_a_grid_it_does_not_divide_and_group_refuses():
    shape = FeatureShape("patches", 24 * 25, 4, (24, 25))
    assert build_projector("window3", shape, H)(torch.randn(2, 600, 4)).shape == (2, 8 * 9, H)
    with pytest.raises(AdapterError, match="9 divides, and there are 600"):
        build_projector("group9", shape, H)
    with pytest.raises(AdapterError, match="records none"):
        build_projector("window3", FeatureShape("patches", 9, 4), H)


@pytest.mark.parametrize("spec, hint", [("mpl16", "mlp16"), ("liner", "linear"), ("windw3", "window3"), ("mlp0", None)])
def test_an_unknown_adapter_names_the_nearest(spec, hint):
    with pytest.raises(AdapterError, match=f"did you mean {hint}" if hint else "known: .*mlpK"):
        find_projector(spec)


def test_features_of_another_kind_are_refused():
    with pytest.raises(AdapterError, match="--kinds pooled"):
        build_projector("mlp16", PATCHES, H)


@pytest.mark.parametrize("output_norm", [True, False])
@pytest.mark.parametrize("spec", EXPECTED)
def test_tokens_start_at_the_embeddings_scale(spec, output_norm):
    torch.manual_seed(0)
    features = EXPECTED[spec][0]
    adapter = Adapter(spec, features, H, embedding_rms=0.007, output_norm=output_norm)
    x = 30 * torch.randn((8, 12) if features.kind == "pooled" else (8, 36, 12))
    adapter.match_scale(x)
    assert adapter(x).pow(2).mean(-1).sqrt().median().item() == pytest.approx(0.007, rel=0.02)


def test_output_norm_keeps_the_scale_where_the_plain_form_leaves_it():
    """Wide model, small embeddings, AdamW at 1e-3: the case the norm is for. The plain form is expected to leave."""
    ratios = {}
    for norm in (True, False):
        torch.manual_seed(0)
        adapter = Adapter("mlp4", FeatureShape("pooled", 1, 64), 1024, embedding_rms=0.003, output_norm=norm)
        x, pull = torch.randn(16, 64), torch.randn(1024)
        adapter.match_scale(x)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-3)
        for step in range(1, 101):
            optimizer.zero_grad()
            (adapter(x) @ pull).mean().backward()
            optimizer.step()
            if step in (1, 10, 100):
                ratios[norm, step] = adapter(x).pow(2).mean(-1).sqrt().median().item() / 0.003
    assert all(0.3 < ratios[True, step] < 3 for step in (1, 10, 100)), ratios
    assert ratios[False, 100] > 3, ratios


@pytest.mark.parametrize("output_norm", [True, False])
def test_tokens_start_from_words(output_norm):
    torch.manual_seed(0)
    adapter = Adapter("mlp5", POOLED, H, 0.01, output_norm=output_norm)
    words, x = torch.randn(3, H) * 0.01, torch.randn(64, 12)
    adapter.match_scale(x)
    adapter.start_from(words, x)
    tokens = adapter(x)
    like = torch.cosine_similarity(tokens[:, :, None], words, dim=-1)  # (batch, tokens, words)
    assert (like.argmax(-1) == torch.tensor([0, 1, 2, 0, 1])).all() and like.max(-1).values.min() > 0.95
    assert 0.8 < tokens.pow(2).mean(-1).sqrt().median().item() / 0.01 < 1.2
    assert (tokens.std(0) > 0).all(), "the features must still move every token"
    with pytest.raises(AdapterError, match="a bias each"):
        Adapter("mlp", PATCHES, H, 0.01).start_from(words, torch.randn(2, 36, 12))
    with pytest.raises(AdapterError, match="nothing that the tokenizer"):
        adapter.start_from(words[:0], x)


def test_an_adapter_folder_holds_everything_and_refuses_rubbish(tmp_path):
    adapter = Adapter("mlp", PATCHES, H, 0.01, soft_prompt=3, projector_hidden=7)
    about = {
        "modality": "image", "encoder": {"name": "e"}, "template": {}, "training": {"steps": 1},
        "language_model": {"name": "a/b", "identity": {}},
    }  # fmt: skip
    save_adapter(tmp_path / "a", adapter, about)
    again, config = load_adapter(tmp_path / "a")
    assert config["tokens"] == 36 and config["projector_hidden"] == 7 and config["soft_prompt"] == 3
    x = torch.randn(2, 36, 12)
    assert torch.equal(adapter(x), again(x)) and torch.equal(adapter.soft_prompt(), again.soft_prompt())
    assert "base_model: a/b" in (tmp_path / "a" / "README.md").read_text()
    weights, text = tmp_path / "a" / "adapter.safetensors", tmp_path / "a" / "adapter.json"
    whole = text.read_text()
    text.write_text(whole.replace('"hidden_size": 20', '"hidden_size": 21'))
    with pytest.raises(AdapterError, match="doesn't hold this adapter's weights"):
        load_adapter(tmp_path / "a")
    text.write_text(whole.replace('"format": 1', '"format": 99'))
    with pytest.raises(AdapterError, match="format 99"):
        load_adapter(tmp_path / "a")
    text.write_text("[]")
    with pytest.raises(AdapterError, match="format"):
        read_adapter_config(tmp_path / "a")
    text.write_text(whole)
    weights.write_bytes(b"rubbish")
    with pytest.raises(AdapterError):
        load_adapter(tmp_path / "a")
    with pytest.raises(AdapterError, match="not an adapter folder"):
        load_adapter(tmp_path)


def test_the_documented_new_projector_is_found_by_train(tmp_path):
    """The documented file, dropped into a copy of the folder, is known to a fresh process."""
    text = (ROOT / "docs" / "new_projector.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    assert len(code.strip().splitlines()) <= 20
    shutil.copytree(ROOT / "adapters", tmp_path / "adapters")
    (tmp_path / "adapters" / "projectors" / "rows.py").write_text(code)
    spec = re.search(r"--adapter (\w+)", text)[1]
    check = (
        "import torch; from adapters.projectors import FeatureShape, build_projector as build;"
        f"m = build('{spec}', FeatureShape('patches', 36, 12, (6, 6)), 20);"
        "assert m(torch.randn(2, 36, 12)).shape == (2, m.tokens, 20) == (2, 6, 20)"
    )
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True)
