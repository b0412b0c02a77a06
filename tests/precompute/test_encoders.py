"""What an encoder gives equals the library model's own output, and the nearest wrong variants are far off."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from encoder_parity import KINDS, assert_parity, distance, given, photo

from periscope.errors import PrecomputeError
from periscope.paths import PACKAGE as PROJECT
from periscope.precompute.encoders import load_encoder, load_encoder_like, resolve
from periscope.precompute.encoders.names import BY_IDENTIFIER, ENCODERS
from periscope.precompute.tiny_encoders import (
    OPEN_CLIP,
    OPEN_CLIP_PREPROCESSING,
    open_clip_folder,
    roughen,
    transformers_folder,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("encoders")
    kinds = ("clip", "clip_vision", "clip_projected", "siglip", "dinov2", "registers", "vit")
    made = {kind: transformers_folder(base / kind, kind) for kind in kinds}
    return made | {"open_clip": open_clip_folder(base / "open_clip")}


@torch.inference_mode()
def test_open_clip_parity(folders: dict[str, Path]) -> None:
    import open_clip

    name = f"local-dir:{folders['open_clip']}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    gelu, *_ = open_clip.create_model_and_transforms(name)
    for block in gelu.visual.transformer.resblocks:
        block.mlp.gelu = torch.nn.GELU()
    stored, tower = given(folders["open_clip"], KINDS), model.eval().visual
    pixels = transform(photo())[None]
    squash = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(size=32, **OPEN_CLIP_PREPROCESSING | {"resize_mode": "squash"}), False
    )(photo())[None]

    states = [tower._embeds(pixels)]
    for block in tower.transformer.resblocks:
        states.append(block(states[-1]))
    own = model.encode_image(pixels)
    assert_parity(
        stored["pooled"],
        own,
        gelu=gelu.encode_image(pixels),
        normalised=model.encode_image(pixels, normalize=True),
        squash=model.encode_image(squash),
    )
    tower.proj, proj = None, tower.proj
    unprojected = model.encode_image(pixels)
    tower.proj = proj
    assert unprojected.shape != own.shape
    assert_parity(
        stored["patches"],
        states[-2][:, 1:],
        last=states[-1][:, 1:],
        earlier=states[-3][:, 1:],
        normed=tower.ln_post(states[-2])[:, 1:],
        with_cls=states[-2],
        cls_for_last_patch=states[-2][:, :-1],
        columns_first=states[-2][:, 1:].unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2),
        gelu=gelu.visual.forward_intermediates(pixels, [6], output_fmt="NLC")["image_intermediates"][0],
    )
    cls = torch.stack([state[:, 0] for state in states], 1)
    assert_parity(
        stored["layers"],
        tower.ln_post(cls[:, -6:]),
        no_norm=cls[:, -6:],
        one_block_earlier=tower.ln_post(cls[:, -7:-1]),
        reversed=tower.ln_post(cls[:, -6:].flip(1)),
        a_patch=tower.ln_post(torch.stack([state[:, 1] for state in states[-6:]], 1)),
    )


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["clip", "clip_vision", "clip_projected"])
def test_clip_parity(folders: dict[str, Path], kind: str) -> None:
    import transformers

    stored = given(folders[kind], KINDS)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folders[kind])
    pixels = processor(photo(), return_tensors="pt")["pixel_values"]
    squashed = processor(photo().resize((32, 32)), do_resize=False, return_tensors="pt")["pixel_values"]
    if kind == "clip":
        model = transformers.CLIPModel.from_pretrained(folders[kind])
        tower, pooled = model.vision_model, lambda x: model.get_image_features(x).pooler_output
        gelu_tower = transformers.CLIPModel.from_pretrained(folders[kind]).vision_model
    elif kind == "clip_projected":
        model = transformers.CLIPVisionModelWithProjection.from_pretrained(folders[kind])
        tower, pooled = model.vision_model, lambda x: model(x).image_embeds
        gelu_tower = transformers.CLIPVisionModelWithProjection.from_pretrained(folders[kind]).vision_model
    else:
        tower = transformers.CLIPVisionModel.from_pretrained(folders[kind])
        pooled = lambda x: tower(x).pooler_output  # noqa: E731
        gelu_tower = transformers.CLIPVisionModel.from_pretrained(folders[kind])
    for layer in gelu_tower.encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU()
    out = tower(pixels, output_hidden_states=True)
    wrong = {"squash": pooled(squashed), "cls_of_last_state": out.last_hidden_state[:, 0]}
    if kind != "clip_vision":
        wrong["unprojected"] = out.pooler_output
    assert_parity(stored["pooled"], pooled(pixels), **wrong)
    states = out.hidden_states
    assert_parity(
        stored["patches"],
        states[-2][:, 1:],
        last=states[-1][:, 1:],
        normed=tower.post_layernorm(states[-2])[:, 1:],
        with_cls=states[-2],
        gelu=gelu_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:],
    )
    cls = torch.stack([state[:, 0] for state in states], 1)
    assert_parity(
        stored["layers"],
        tower.post_layernorm(cls[:, -6:]),
        no_norm=cls[:, -6:],
        earlier=tower.post_layernorm(cls[:, -7:-1]),
    )


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["clip_vision", "open_clip", "registers"])
def test_the_cls_token_stands_in_front_of_the_patches(folders: dict[str, Path], kind: str) -> None:
    """MAPL's mapper reads CLIP's whole last_hidden_state (https://github.com/mair-lab/mapl, mapl.py)."""
    import transformers

    encoder = load_encoder(str(folders[kind]), patch_layer=-1, cls_token=True, kinds=("patches",))
    pixels = encoder.preprocess(photo())[None]
    found = encoder.encode(pixels, ("patches",))["patches"]
    plain = load_encoder(str(folders[kind]), patch_layer=-1, kinds=("patches",))
    assert_parity(found[:, 1:], plain.encode(pixels, ("patches",))["patches"], shifted=found[:, :-1])
    if kind == "clip_vision":
        model = transformers.CLIPVisionModel.from_pretrained(folders[kind])
        assert_parity(found, model(pixels).last_hidden_state)
    elif kind == "open_clip":
        assert_parity(encoder.model.ln_post(found[:, 0]) @ encoder.model.proj, encoder.model(pixels))
    else:
        states = transformers.AutoModel.from_pretrained(folders[kind])(pixels, output_hidden_states=True).hidden_states
        assert_parity(found[:, 0], states[-1][:, 0], a_register=states[-1][:, 1])
    assert encoder.features(("patches",)) == {"patches": {"shape": [17, 32], "dtype": "float16"}}
    assert encoder.fingerprint() != plain.fingerprint()


def test_without_a_cls_token_there_is_none_to_keep(folders: dict[str, Path]) -> None:
    with pytest.raises(PrecomputeError, match=r"--cls-token: .* has no CLS token"):
        load_encoder(str(folders["siglip"]), cls_token=True)
    with pytest.raises(PrecomputeError, match=r"--cls-token: .* joins patches"):
        load_encoder(f"{folders['clip']}+{folders['clip']}", cls_token=True)


@torch.inference_mode()
def test_siglip_parity(folders: dict[str, Path]) -> None:
    import transformers

    stored = given(folders["siglip"], ("pooled", "patches"))
    model = transformers.SiglipModel.from_pretrained(folders["siglip"])
    processor = transformers.SiglipImageProcessorPil.from_pretrained(folders["siglip"])
    pixels = processor(photo(), return_tensors="pt")["pixel_values"]
    cropped = processor(photo().crop((6, 0, 47, 41)), return_tensors="pt")["pixel_values"]
    out = model.vision_model(pixels, output_hidden_states=True)
    assert_parity(
        stored["pooled"],
        model.get_image_features(pixels).pooler_output,
        crop=model.get_image_features(cropped).pooler_output,
        mean=out.last_hidden_state.mean(1),
        normalised=torch.nn.functional.normalize(out.pooler_output, dim=-1),
    )
    states = out.hidden_states
    assert_parity(
        stored["patches"],
        states[-2],
        last=states[-1],
        normed=out.last_hidden_state,
        first_patch_cut=states[-2][:, 1:],
    )
    with pytest.raises(PrecomputeError, match="no CLS token"):
        load_encoder(str(folders["siglip"]), kinds=("layers",))


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["dinov2", "registers", "vit"])
def test_vit_parity(folders: dict[str, Path], kind: str) -> None:
    import transformers

    stored = given(folders[kind], KINDS)
    extra = {"add_pooling_layer": False} if kind == "vit" else {}
    model = transformers.AutoModel.from_pretrained(folders[kind], **extra)
    processor = transformers.AutoImageProcessor.from_pretrained(folders[kind], backend="pil")
    pixels = processor(photo(), return_tensors="pt")["pixel_values"]
    other = photo().crop((6, 0, 47, 41)) if kind == "vit" else photo().resize((41, 41))
    reframed = model(processor(other, return_tensors="pt")["pixel_values"]).last_hidden_state[:, 0]
    out = model(pixels, output_hidden_states=True)
    states, first = out.hidden_states, 5 if kind == "registers" else 1
    pooled = out.last_hidden_state[:, 0]
    assert_parity(
        stored["pooled"],
        pooled,
        other_frame=reframed,
        no_norm=states[-1][:, 0],
        mean=out.last_hidden_state[:, first:].mean(1),
        tanh=torch.tanh(pooled),
    )
    assert_parity(
        stored["patches"],
        states[-2][:, first:],
        last=states[-1][:, first:],
        normed=model.layernorm(states[-2])[:, first:],
        cls_kept=states[-2][:, first - 1 :],
        registers_for_patches=states[-2][:, 1:17] if kind == "registers" else states[-2],
    )
    cls = torch.stack([state[:, 0] for state in states], 1)
    assert_parity(stored["layers"], model.layernorm(cls[:, -6:]), no_norm=cls[:, -6:])


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip", "registers"])
def test_any_subset_gives_the_same(folders: dict[str, Path], kind: str) -> None:
    encoder = load_encoder(str(folders[kind]))
    pixels = torch.stack([encoder.preprocess(photo((40 + n, 60))) for n in range(3)])
    kinds = [k for k in KINDS if k in encoder.kinds]
    everything = encoder.encode(pixels, kinds)
    for one in kinds:
        torch.testing.assert_close(encoder.encode(pixels, [one])[one], everything[one], rtol=1e-5, atol=1e-5)
    shapes = encoder.features(kinds)
    assert all(shapes[k]["shape"] == list(everything[k].shape[1:]) for k in kinds)
    assert shapes["patches"]["grid"] == [4, 4]


def test_another_layer_can_be_chosen_and_is_another_encoder(folders: dict[str, Path]) -> None:
    plain, deeper = (load_encoder(str(folders["clip"]), patch_layer=layer) for layer in (-2, -1))
    pixels = plain.preprocess(photo())[None]
    assert distance(plain.encode(pixels, ["patches"])["patches"], deeper.encode(pixels, ["patches"])["patches"]) > 0.1
    assert plain.fingerprint() != deeper.fingerprint()
    assert load_encoder_like(deeper.describe()).fingerprint() == deeper.fingerprint()
    with pytest.raises(PrecomputeError, match="8 blocks"):
        load_encoder(str(folders["clip"]), patch_layer=-20)


def test_small_and_thin_pictures(folders: dict[str, Path]) -> None:
    for kind in ("open_clip", "clip", "siglip", "dinov2", "vit"):
        encoder = load_encoder(str(folders[kind]))
        for size in ((1, 1), (3, 3), (3, 50), (50, 3), (50, 1)):
            assert encoder.preprocess(photo(size)).shape == (3, 32, 32)


@pytest.mark.parametrize("kind", ["open_clip", "dinov2"])
def test_described_encoder_is_checked(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    shutil.copytree(folders[kind], tmp_path / "enc")
    described = json.loads(json.dumps(load_encoder(str(tmp_path / "enc")).describe()))
    assert load_encoder_like(described).describe() == described
    half = load_encoder(str(tmp_path / "enc"), dtype=torch.bfloat16)
    assert half.fingerprint() == described["fingerprint"]
    weights = next((tmp_path / "enc").glob("*.safetensors"))
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    name = next(n for n in tensors if n.startswith(("visual.", "encoder.")) and tensors[n].ndim == 2)
    tensors[name][0, 0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(PrecomputeError, match="isn't the one these features come from"):
        load_encoder_like(described)


def test_preprocessing_change_is_another_encoder(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["open_clip"], tmp_path / "enc")
    described = load_encoder(str(tmp_path / "enc")).describe()
    config = json.loads((tmp_path / "enc/open_clip_config.json").read_text())
    config["preprocess_cfg"]["resize_mode"] = "squash"
    (tmp_path / "enc/open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(PrecomputeError, match=r"what differs: preprocessing \(resize_mode\)"):
        load_encoder_like(described)


def test_missing_weights_are_never_random(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders["open_clip"], tmp_path / "oc")
    (tmp_path / "oc/open_clip_model.safetensors").unlink()
    with pytest.raises(PrecomputeError, match="holds no open_clip_model"):
        load_encoder(str(tmp_path / "oc"))
    shutil.copytree(folders["clip_projected"], tmp_path / "hf")
    tensors = load_file(tmp_path / "hf/model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if "visual_projection" not in n},
        tmp_path / "hf/model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(PrecomputeError, match="would be random"):
        load_encoder(str(tmp_path / "hf"))
    (tmp_path / "hf/preprocessor_config.json").unlink()
    shutil.copy(folders["clip_projected"] / "model.safetensors", tmp_path / "hf/model.safetensors")
    with pytest.raises(PrecomputeError, match="transformers can't load it"):
        load_encoder(str(tmp_path / "hf"))


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("clip-l-335", "clip-l-336"),
        ("dinov2b", "dinov2-b"),
        ("sigLIP2-b", "siglip2-b"),
        ("open_clip:ViT-B-33/openai", "ViT-B-32"),
        ("open_clip:ViT-B-32-quickgelu/openia", "ViT-B-32-quickgelu/openai"),
        ("open_clip:ViT-B-32/openai", "ViT-B-32-quickgelu/openai"),
    ],
)
def test_unknown_names_get_the_nearest(typed: str, nearest: str) -> None:
    with pytest.raises(PrecomputeError) as caught:
        load_encoder(typed)
    assert nearest in str(caught.value) and "\n" not in str(caught.value)


def test_names_resolve(tmp_path: Path) -> None:
    assert resolve("dinov2-b") == ("transformers", "facebook/dinov2-base")
    assert resolve("google/siglip2-base-patch16-224") == ("transformers", "google/siglip2-base-patch16-224")
    assert resolve("clip-l-336") == ("open_clip", "ViT-L-14-336-quickgelu/openai")
    assert all(resolve(name)[0] in BY_IDENTIFIER for name in ENCODERS if not name.startswith("demo"))
    with pytest.raises(PrecomputeError, match="neither open_clip_config"):
        resolve(str(tmp_path))


def test_short_names_are_what_open_clip_knows() -> None:
    import open_clip

    for name, row in ENCODERS.items():
        if row.encoder.startswith("open_clip:") and name != "demo":
            arch, tag = row.encoder.removeprefix("open_clip:").split("/")
            assert bool(open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu")) is arch.endswith("-quickgelu")


@pytest.mark.parametrize("name", ["facebook/dinov2-base", "clip-b-32"])
def test_no_network_fails_fast(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("[Errno -2] Name or service not known")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    began = time.monotonic()
    with pytest.raises(PrecomputeError, match="Hub can't be reached"):
        load_encoder(name)
    assert time.monotonic() - began < 5


def test_new_encoder_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code block of docs/new_encoder.md, as one new file, becomes an encoder that precompute.py can use."""
    from periscope.precompute import encoders
    from periscope.precompute.cli import main
    from periscope.precompute.encoders import registry
    from periscope.shards.read import FeatureSet

    text = (PROJECT / "docs/new_encoder.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    assert len(code.strip().splitlines()) <= 20
    (tmp_path / "files").mkdir()
    (tmp_path / "files/grid_colour.py").write_text(code)
    monkeypatch.setattr(encoders, "__path__", [*encoders.__path__, str(tmp_path / "files")])
    (tmp_path / "photos").mkdir()
    for number in range(5):
        photo((30 + number, 20)).save(tmp_path / f"photos/{number}.png")
    data, out = str(tmp_path / "photos"), tmp_path / "set"
    main(args=["--data", data, "--encoder", "grid-colour", "--out", str(out), "--device", "cpu"])
    features = FeatureSet(out)
    assert features.read(features.keys[0], "patches").shape == (16, 3)
    assert features.manifest["features"]["patches"]["grid"] == [4, 4]
    again = load_encoder_like(features.manifest["encoder"])
    assert again.describe() == features.manifest["encoder"]
    registry.FAMILIES.pop("grid-colour")


@torch.no_grad()
@pytest.mark.parametrize("tower", ["attention pooling", "timm"])
def test_other_open_clip_towers(tmp_path: Path, tower: str) -> None:
    import open_clip
    from safetensors.torch import save_file

    if tower == "timm":
        vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224}
        config = {**OPEN_CLIP, "vision_cfg": vision, "custom_text": True}
    else:
        vision = {**OPEN_CLIP["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 4}
        config = {**OPEN_CLIP, "vision_cfg": vision}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    config = {name: value for name, value in json.loads(json.dumps(config)).items() if name != "custom_text"}
    model = roughen((open_clip.CustomTextCLIP if tower == "timm" else open_clip.CLIP)(**config))
    save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")

    encoder = load_encoder(str(tmp_path))
    pixels, states = encoder.preprocess(photo())[None], []
    blocks = model.visual.trunk.blocks if tower == "timm" else model.visual.transformer.resblocks
    for block in blocks:
        block.register_forward_hook(lambda _module, _inputs, output: states.append(output))
    own = model.encode_image(pixels)
    stored = encoder.encode(pixels, sorted(encoder.kinds))
    assert_parity(stored["pooled"], own, normalised=torch.nn.functional.normalize(own, dim=-1))
    assert_parity(stored["patches"], states[-2][:, 1:], last=states[-1][:, 1:])
    if tower == "timm":
        cls = torch.stack([state[:, 0] for state in states], 1)
        assert_parity(stored["layers"], model.visual.trunk.norm(cls[:, -6:]), no_norm=cls[:, -6:])
    else:
        with pytest.raises(PrecomputeError, match="no CLS token with a final norm"):
            load_encoder(str(tmp_path), kinds=("layers",))


def test_towers_without_a_grid_of_tokens_are_refused(tmp_path: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    config = {**OPEN_CLIP, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    model = open_clip.CLIP(**json.loads(json.dumps(config)))
    save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(PrecomputeError, match="only vision transformers"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip", "dinov2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precision_is_near(folders: dict[str, Path], kind: str, dtype: torch.dtype) -> None:
    exact, rough = load_encoder(str(folders[kind])), load_encoder(str(folders[kind]), dtype=dtype)
    pixels = exact.preprocess(photo())[None]
    for name, wanted in exact.encode(pixels, sorted(exact.kinds)).items():
        given = rough.encode(pixels, [name])[name]
        assert given.dtype == torch.float32 and 0 < distance(given, wanted) < (0.02 if dtype == torch.float16 else 0.15)
    assert rough.describe()["precision"] == str(dtype).removeprefix("torch.")
