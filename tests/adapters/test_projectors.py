"""Projectors: names, shapes, parameter counts, formulas, and the scale rule."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from periscope.adapters.io.checkpoint import load_adapter, save_adapter
from periscope.adapters.io.schema import read_adapter_config
from periscope.adapters.model import Adapter
from periscope.adapters.projectors import FeatureShape, build_projector, find_projector, known_specs
from periscope.adapters.prompting.template import Template
from periscope.errors import AdapterError

ROOT = Path(__file__).parents[2]
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
    "shuffle2": (PATCHES, 9, 4 * 12 * H),
    "clipcap4": (POOLED, 4, 12 * 2 * H + 2 * H + 2 * H * 4 * H + 4 * H),
    "fusedmlp": (PATCHES, 36, 12 * 48 + 48 + 48 * H + H + H * H + H),
    "perceiver5": (PATCHES, 5, 5 * 12 + 6 * (6 * 12 + 4 * 512 * 12 + 8 * 144) + 2 * 12 + 12 * H + H),
    "mapl7": (PATCHES, 7, 12 * 256 + 256 + 7 * 256 + 4 * (8 * 256**2 + 11 * 256) + 256 * H + H),
    "mapl-post7": (PATCHES, 7, 12 * 256 + 256 + 7 * 256 + 4 * (8 * 256**2 + 11 * 256) + 256 * H + H),
    "ldp": (PATCHES, 9, 12 * H + H + H * H + H + 2 * (13 * H + H * 8 + 8 + 8 * H + H + H * H)),
    "ldpv2": (PATCHES, 144, 12 * H + H + H * H + H + 10 * H),
    "fusedldp": (PATCHES, 196, 12 * 48 + 48 + 48 * H + H + 10 * H),
}


@pytest.mark.parametrize("spec", EXPECTED)
def test_shape_and_parameter_count(spec):
    features, tokens, parameters = EXPECTED[spec]
    module = build_projector(spec, features, H)
    shape = (3, 12) if features.kind == "pooled" else (3, 36, 12)
    assert module(torch.randn(shape)).shape == (3, tokens, H) and module.tokens == tokens
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert sum(tensor.numel() for tensor in module.state_dict().values()) == parameters, "nothing is saved twice"


def test_mlp16_at_7b_width_has_272_million_parameters():
    with torch.device("meta"):
        module = build_projector("mlp16", FeatureShape("pooled", 1, 768), 4096)
    assert sum(p.numel() for p in module.parameters()) == 768 * 4096 + 4096 + 4096 * 65536 + 65536 == 271_650_816


def test_projector_hidden_narrows_the_wide_ones_and_is_refused_where_there_is_nothing_between():
    with torch.device("meta"):
        module = build_projector("mlp16", FeatureShape("pooled", 1, 768), 4096, inner=512)
    assert sum(p.numel() for p in module.parameters()) == 768 * 512 + 512 + 512 * 65536 + 65536 < 34_100_000
    assert build_projector("mlp", PATCHES, H, inner=7)(torch.randn(2, 36, 12)).shape == (2, 36, H)
    with pytest.raises(AdapterError, match="no hidden layer"):
        build_projector("linear16", POOLED, H, inner=7)


PUBLISHED = [  # spec, features, hidden size, parameters: as the papers or their released weights have them
    ("perceiver64", FeatureShape("patches", 256, 1024), 1, 63_019_008 + 1024 + 1),
    ("perceiver64", FeatureShape("patches", 256, 1024), 4096, 67_217_408),
    ("mapl32", FeatureShape("patches", 257, 1024), 4096, 3_431_680),
    ("clipcap10", FeatureShape("pooled", 1, 512), 768, 31_468_800),
    ("clipcap-transformer40", FeatureShape("pooled", 1, 512), 768, 53_587_968),
    ("linear", FeatureShape("patches", 144, 3072), 4096, 12_587_008),  # LiMBeR
    ("fusedmlp", FeatureShape("patches", 729, 2176, (27, 27)), 2560, 47_789_568),  # Cobra
    ("fusedldp", FeatureShape("patches", 729, 2176, (27, 27)), 2560, 41_259_008),
    ("ldpv2", FeatureShape("patches", 576, 1024, (24, 24)), 2048, 6_316_032),  # MobileVLM V2 1.7B
    ("mlp", FeatureShape("patches", 576, 1024, (24, 24)), 4096, 20_979_712),  # LLaVA-1.5 7B
]


@pytest.mark.parametrize("spec, features, hidden_size, parameters", PUBLISHED)
def test_published_parameter_counts(spec, features, hidden_size, parameters):
    with torch.device("meta"):
        module = build_projector(spec, features, hidden_size)
    assert sum(p.numel() for p in module.parameters()) == parameters


def rows_of_the_table() -> list[list[str]]:
    lines = (ROOT / "docs" / "projectors.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]


def test_the_table_in_the_docs_is_right():
    rows = rows_of_the_table()
    named = {find_projector(row[0].strip("`"))[0].pattern for row in rows}
    assert {re.sub(r"\{.*\}", "K", pattern) for pattern in named} == set(known_specs())
    for spec, reads, layers, tokens, formula, count in rows:
        spec = spec.strip("`")
        shapes = {"pooled": (1, 768), "patches": (576, 1024, (24, 24)), "layers": (6, 1024)}
        shape = FeatureShape(reads, *shapes[reads])
        with torch.device("meta"):
            module = build_projector(spec, shape, 4096)
        numbers = {"v": shape.width, "d": 4096, "n": 576, "k": int(re.sub(r"\D+", "", spec.removesuffix("v2")) or 0)}
        for name in ("u", "b"):
            if found := re.search(rf"\b{name} = ([\dvkd /]+)", layers):
                value = re.sub(r"(?<=[\dvkd]) (?=[vkd])", "*", found[1].strip())
                numbers[name] = int(eval(value, {}, numbers))
        counted = sum(p.numel() for p in module.parameters())
        assert counted == int(count.replace(",", "")) == eval(formula.strip("`"), {}, numbers), spec
        assert module.tokens == eval(tokens.strip("`"), {}, numbers), spec


def test_pixel_shuffle_is_idefics3s():
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

    vision, text = SimpleNamespace(hidden_size=12), SimpleNamespace(hidden_size=H)
    theirs = Idefics3Connector(SimpleNamespace(scale_factor=2, vision_config=vision, text_config=text))
    ours = build_projector("shuffle2", PATCHES, H)
    ours.last.weight.data = theirs.modality_projection.proj.weight.data
    patches = torch.randn(3, 36, 12)
    assert torch.equal(ours(patches), theirs(patches))
    assert not torch.allclose(build_projector("window2", PATCHES, H).last.weight[:, :48], ours.last.weight)
    with pytest.raises(AdapterError, match="grid that 4 divides"):
        build_projector("shuffle4", PATCHES, H)


def test_resampler_formula():
    """One layer against the formula written out: latents attend to patches and themselves, eight heads of 64."""
    torch.manual_seed(0)
    module = build_projector("perceiver3", PATCHES, H, layers=1)
    patches, layer = torch.randn(2, 36, 12), module.layers[0]
    latents = module.latents.expand(2, -1, -1)
    normed = layer.norm_latents(latents)
    read = torch.cat([layer.norm_patches(patches), normed], 1)
    key, value = layer.key_value.weight.chunk(2)
    mixed = []
    for head in range(8):
        part = slice(64 * head, 64 * head + 64)
        scores = (normed @ layer.query.weight[part].T) @ (read @ key[part].T).transpose(1, 2) / 8
        mixed.append(scores.softmax(-1) @ (read @ value[part].T))
    latents = latents + torch.cat(mixed, -1) @ layer.out.weight.T
    latents = latents + layer.feed_forward(latents)
    assert torch.allclose(module(patches), module.last(module.norm(latents)), atol=1e-5)
    shuffled = patches[:, torch.randperm(36)]
    assert torch.allclose(module(shuffled), module(patches), atol=1e-5), "queries see a set of patches"


def test_mapl_lets_patches_see_one_another():
    torch.manual_seed(0)
    module = build_projector("mapl4", PATCHES, H, inner=16, layers=2).eval()
    x = torch.randn(2, 36, 12)
    assert module(x).shape == (2, 4, H)
    mixed = module.mixer(torch.cat([module.first(x), module.queries.expand(2, -1, -1)], 1))
    assert torch.equal(module(x), module.last(mixed[:, 36:])) and len(module.mixer.layers) == 2


def waves(module, names):
    """Fill a module's tensors, in the order of `names`, with half the sine of a running index."""
    state, start = module.state_dict(), 0
    for name in names:
        values = torch.arange(start, start := start + state[name].numel(), dtype=torch.float64).sin() / 2
        state[name].copy_(values.float().view_as(state[name]))


def test_mapl_is_the_official_mapper():
    """The values are `MappingNetwork`'s of mair-lab/mapl 4027edd with torch 2.14.1, its tensors filled in the order of
    their names there. With the norms behind each part, as earlier versions had them, they differ by whole numbers.
    """
    shape = FeatureShape("patches", 5, 6)
    names = {"const": "queries", "down": "first", "transformer": "mixer", "up": "last"}
    patches = torch.arange(60, dtype=torch.float64).cos().float().view(2, 5, 6)
    want = [-8.96553, 7.73429, -6.26721, 2.83283, -0.29183, -2.0619, 5.60337, -7.41017]
    found = {}
    for spec in ("mapl3", "mapl-post3"):
        module = build_projector(spec, shape, 8, inner=16, layers=2).eval()
        theirs = {re.sub(rf"^{ours}\b", name, key): key for name, ours in names.items() for key in module.state_dict()
                  if key.startswith(ours)}  # fmt: skip
        waves(module, [theirs[name] for name in sorted(theirs)])
        found[spec] = module(patches)[1, 2].detach()
    torch.testing.assert_close(found["mapl3"], torch.tensor(want), atol=2e-5, rtol=1e-5)
    assert (found["mapl-post3"] - torch.tensor(want)).abs().max().item() > 1


def test_a_perceiver_knows_the_order_of_frames_only_with_their_vectors():
    torch.manual_seed(0)
    patches = torch.randn(2, 36, 12)
    reversed_frames = patches.unflatten(1, (4, 9)).flip(1).flatten(1, 2)
    plain = build_projector("perceiver5", PATCHES, H)
    torch.testing.assert_close(plain(patches), plain(reversed_frames), atol=1e-5, rtol=0)
    framed = build_projector("perceiver5", PATCHES, H, frames=4)
    moved = (framed(patches) - framed(reversed_frames)).abs().mean().item()
    assert moved > 0.005
    assert sum(p.numel() for p in framed.parameters()) == EXPECTED["perceiver5"][2] + 4 * 12
    with pytest.raises(AdapterError, match="--projector-frames 5 doesn't divide the 36 patches"):
        build_projector("perceiver5", PATCHES, H, frames=5)
    with pytest.raises(AdapterError, match="--projector-frames 4 is for a perceiver; mlp doesn't"):
        build_projector("mlp", PATCHES, H, frames=4)


def test_pooling_projectors_keep_the_place():
    """What is put into one corner of the grid moves the tokens of that corner."""
    for spec, side in (("ldpv2", 12), ("fusedldp", 14), ("ldp", 12)):
        torch.manual_seed(0)
        shape = FeatureShape("patches", 576, 12, (24, 24))
        module = build_projector(spec, shape, H)
        x = torch.zeros(1, 576, 12)
        corner = x.clone().unflatten(1, (24, 24))
        corner[:, :4, :4] = 1.0
        moved = (module(corner.flatten(1, 2)) - module(x)).norm(dim=-1).view(side, side)
        assert moved[:2, :2].min() > 20 * moved[6:, 6:].max(), spec


def test_projector_layers_are_refused_where_they_are_fixed():
    with pytest.raises(AdapterError, match="layers are fixed"):
        build_projector("mlp16", POOLED, H, layers=3)


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
    with pytest.raises(AdapterError, match=f"did you mean .*{hint}" if hint else "known: .*mlpK"):
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


def test_clipcaps_transformer_begins_as_published():
    """Its output is a sum of all layers, so there is no last layer to scale; the output norm has its usual effect."""
    x = torch.randn(8, 12)
    plain, normed = (Adapter("clipcap-transformer4", POOLED, 24, 0.007, output_norm=norm) for norm in (False, True))
    assert plain.match_scale(x) == 1 and plain(x).shape == (8, 4, 24) and plain(x).std().item() > 0.3
    assert normed(x).pow(2).mean(-1).sqrt().median().item() == pytest.approx(0.007, rel=0.02)


def test_output_norm_keeps_the_scale_where_the_plain_form_leaves_it():
    """Small embeddings, AdamW at 1e-3: the case the norm is for. The plain form is expected to leave."""
    ratios = {}
    for norm in (True, False):
        torch.manual_seed(0)
        adapter = Adapter("mlp4", FeatureShape("pooled", 1, 64), 256, embedding_rms=0.003, output_norm=norm)
        x, pull = torch.randn(16, 64), torch.randn(256)
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
        "modality": "image", "encoder": {"name": "e"}, "template": Template(),
        "training": {"steps": 1}, "language_model": {"name": "a/b", "identity": {}},
    }  # fmt: skip
    save_adapter(tmp_path / "a", adapter, about)
    again, config = load_adapter(tmp_path / "a")
    assert config.tokens == 36 and config.projector_hidden == 7 and config.soft_prompt == 3
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
    package = tmp_path / "periscope"
    shutil.copytree(ROOT / "adapters", package / "adapters")
    for name in ("__init__.py", "errors.py", "paths.py"):
        shutil.copy(ROOT / name, package / name)
    (package / "adapters" / "projectors" / "rows.py").write_text(code)
    spec = re.search(r"--adapter (\w+)", text)[1]
    check = (
        "import torch; from periscope.adapters.projectors import FeatureShape, build_projector as build;"
        f"m = build('{spec}', FeatureShape('patches', 36, 12, (6, 6)), 20);"
        "assert m(torch.randn(2, 36, 12)).shape == (2, m.tokens, 20) == (2, 6, 20)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True, env=environment)
