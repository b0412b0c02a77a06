"""Encoders joined channel by channel, and pictures brought into shape in other ways than the encoder's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from periscope.errors import PrecomputeError
from periscope.precompute.encoders import load_encoder, load_encoder_like, resolve
from periscope.precompute.encoders.framing import NORMALS, Framing
from periscope.precompute.encoders.names import DINO_AT_384, ENCODERS, SIGLIP_AT_384
from periscope.precompute.tiny_encoders import (
    OPEN_CLIP_PREPROCESSING,
    open_clip_folder,
    timm_folder,
    tiny_folder,
    transformers_folder,
)
from periscope.shards.features import round_trip

TOLERANCE = 5e-4
DINO, SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_384.webli"


def photo(size: tuple[int, int] = (53, 41)) -> Image.Image:
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def distance(stored: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference relative to the largest wanted value."""
    return ((stored.float() - wanted).abs().max() / wanted.abs().max()).item()


@pytest.fixture(scope="module")
def cobra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder from where Cobra's two towers are found in tiny size, at their own resolutions (518 and 384)."""
    base = tmp_path_factory.mktemp("cobra")
    timm_folder(base / DINO, DINO)
    timm_folder(base / SIGLIP, SIGLIP)
    return base


@torch.inference_mode()
def test_cobra_parity(cobra: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block len - 2 of each through timm's own `get_intermediate_layers`, as
    https://github.com/h-zhao1997/cobra/blob/main/cobra/models/backbones/vision/dinosiglip_vit.py has it.
    """
    import timm

    monkeypatch.chdir(cobra)
    encoder = load_encoder("dinosiglip-384")
    dino = timm.create_model(f"local-dir:{cobra / DINO}", pretrained=True, num_classes=0, img_size=384).eval()
    siglip = timm.create_model(f"local-dir:{cobra / SIGLIP}", pretrained=True, num_classes=0).eval()
    image = photo((640, 427))

    def pixels(normal: str, squash: bool = True) -> torch.Tensor:
        if squash:
            small = image.resize((384, 384), Image.Resampling.BICUBIC)
        else:
            small = image.resize((575, 384), Image.Resampling.BICUBIC).crop((95, 0, 479, 384))
        mean, std = NORMALS[normal]
        return ((torch.tensor(np.array(small)) / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)[None]

    def joined(layer: int = -2, norm: bool = False, normals: tuple = ("imagenet", "half"), **how: bool) -> torch.Tensor:
        places = [len(tower.blocks) + layer for tower in (dino, siglip)]
        parts = [
            tower.get_intermediate_layers(pixels(normal, **how), n={place}, norm=norm)[0]
            for tower, place, normal in zip((dino, siglip), places, normals, strict=True)
        ]
        return torch.cat(parts, 2)

    stored = round_trip(encoder.encode(encoder.preprocess(image)[None], ["patches"])["patches"])
    right = joined()
    assert stored.shape == right.shape == (1, 729, 64) and encoder.grid == (27, 27)
    assert distance(stored, right) <= TOLERANCE
    wrong = {
        "last block": joined(-1),
        "earlier block": joined(-3),
        "final norm": joined(norm=True),
        "crop": joined(squash=False),
        "one normalisation for both": joined(normals=("half", "half")),
        "the other one's normalisation": joined(normals=("half", "imagenet")),
        "other order": right.roll(32, 2),
        "columns first": right.unflatten(1, (27, 27)).transpose(1, 2).flatten(1, 2),
    }
    for name, variant in wrong.items():
        assert distance(stored, variant) >= 10 * TOLERANCE, name
    pooled = torch.cat([dino(pixels("imagenet")), siglip(pixels("half"))], 1)
    given = encoder.encode(encoder.preprocess(image)[None], ["pooled"])["pooled"]
    assert distance(round_trip(given), pooled) <= TOLERANCE


def test_cobras_encoder_is_found_again(cobra: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cobra)
    encoder = load_encoder("dinosiglip-384")
    described = json.loads(json.dumps(encoder.describe()))
    assert described["choices"] == {"resize": "stretch"} and described["library"] == "fused"
    again = load_encoder_like(described)
    assert again.describe() == encoder.describe() and again.name == "dinosiglip-384"
    cropped = load_encoder("dinosiglip-384", resize="crop")
    assert cropped.fingerprint() != encoder.fingerprint()
    assert not torch.equal(cropped.preprocess(photo()), encoder.preprocess(photo()))
    with pytest.raises(PrecomputeError, match="can't give 'layers'"):
        encoder.require(["layers"])


def test_names_with_plus_resolve() -> None:
    assert resolve("dinosiglip-384") == ("fused", f"{DINO_AT_384}+{SIGLIP_AT_384}")
    assert resolve("dinov2-l+clip-l") == ("fused", "dinov2-l+clip-l")
    assert resolve("frames:8/dinov2-l+clip-l") == ("frames", "8/dinov2-l+clip-l")
    assert ENCODERS["dinosiglip-384"].features()["patches"]["shape"] == [729, 2176]


@torch.inference_mode()
def test_any_two_with_the_same_grid(tmp_path: Path) -> None:
    first = transformers_folder(tmp_path / "dinov2", "dinov2")
    second = open_clip_folder(tmp_path / "open_clip")
    name = f"{first}+{second}"
    encoder = load_encoder(name)
    parts = [load_encoder(str(folder)) for folder in (first, second)]
    image = photo()
    given = encoder.encode(torch.stack([encoder.preprocess(image)] * 2), ["pooled", "patches"])
    for kind in ("pooled", "patches"):
        alone = [part.encode(part.preprocess(image)[None], [kind])[kind] for part in parts]
        torch.testing.assert_close(given[kind][1:], torch.cat(alone, -1), rtol=1e-4, atol=1e-5)
    assert encoder.features(["patches"])["patches"] == {"shape": [16, 64], "dtype": "float16", "grid": [4, 4]}
    assert load_encoder_like(json.loads(json.dumps(encoder.describe()))).describe() == encoder.describe()
    deeper = load_encoder(name, patch_layer=-1)
    assert deeper.fingerprint() != encoder.fingerprint()
    assert load_encoder_like(json.loads(json.dumps(deeper.describe()))).describe() == deeper.describe()
    over = load_encoder(name, frames=2)
    assert over.encode(over.preprocess([image] * 2)[None], ["patches"])["patches"].shape == (1, 32, 64)
    assert load_encoder_like(json.loads(json.dumps(over.describe()))).describe() == over.describe()


def test_what_cannot_be_joined_is_said(tmp_path: Path) -> None:
    small = transformers_folder(tmp_path / "dinov2", "dinov2")
    other = timm_folder(tmp_path / "vit", "vit_base_patch16_224.augreg_in21k_ft_in1k", img_size=48)
    sound = tiny_folder(tmp_path / "ast", "ast")
    with pytest.raises(PrecomputeError, match=r"grids differ \(.*4x4.*3x3\).*NAME@384"):
        load_encoder(f"{small}+{other}", kinds=("patches",))
    assert load_encoder(f"{small}+{other}", kinds=("pooled",)).features(["pooled"])["pooled"]["shape"] == [64]
    same = load_encoder(f"{small}+timm:{other}@64", kinds=("patches",))
    assert same.features(["patches"])["patches"]["shape"] == [16, 64]
    assert load_encoder_like(json.loads(json.dumps(same.describe()))).describe() == same.describe()
    with pytest.raises(PrecomputeError, match="only pictures fuse"):
        load_encoder(f"{small}+{sound}")
    with pytest.raises(PrecomputeError, match="write NAME\\+NAME"):
        load_encoder("fused:dinov2-l")
    with pytest.raises(PrecomputeError, match="nearest: dinov2-l"):
        load_encoder(f"{small}+dinov2l")


def test_timm_names_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(PrecomputeError, match="augreg_in21k_ft_in1k"):
        load_encoder("timm:vit_base_patch16_224.augreg_in21k_ft_in2k")
    with pytest.raises(PrecomputeError, match="side in pixels"):
        load_encoder("timm:vit_base_patch16_224.augreg_in21k_ft_in1k@big")
    folder = timm_folder(tmp_path / "vit", "vit_base_patch16_224.augreg_in21k_ft_in1k", img_size=64)
    with pytest.raises(PrecomputeError, match="8 blocks"):
        load_encoder(str(folder), patch_layer=-9)
    assert load_encoder(f"timm:{folder}@72").grid == (4, 4)  # the rest is cut, as Cobra's 384 by 14 is
    (folder / "model.safetensors").unlink()
    with pytest.raises(PrecomputeError, match=r"holds no model\.safetensors"):
        load_encoder(str(folder))


def test_missing_weights_are_never_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = timm_folder(tmp_path / "vit", "vit_base_patch16_224.augreg_in21k_ft_in1k", img_size=64)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("blocks.3.attn.qkv.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(PrecomputeError, match="timm can't load it"):
        load_encoder(str(folder))


def test_transformers_in_stages_are_refused(tmp_path: Path) -> None:
    from timm.models import create_model, save_for_hf

    small = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    model = create_model("swin_tiny_patch4_window7_224.ms_in1k", **small)
    save_for_hf(model, str(tmp_path / "swin"), model_args=small, safe_serialization=True)
    with pytest.raises(PrecomputeError, match="only plain vision transformers"):
        load_encoder(str(tmp_path / "swin"))


@pytest.mark.parametrize("size", [(53, 41), (41, 53), (40, 40), (300, 31)])
@pytest.mark.parametrize(("resize", "theirs"), [("stretch", "squash"), ("crop", "shortest")])
def test_framing_is_open_clips(resize: str, theirs: str, size: tuple[int, int]) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    facts = {**OPEN_CLIP_PREPROCESSING, "resize_mode": theirs}
    wanted = image_transform_v2(PreprocessCfg(size=32, **facts), is_train=False)(photo(size))
    framing = Framing(resize, (32, 32), "bicubic", tuple(facts["mean"]), tuple(facts["std"]))
    torch.testing.assert_close(framing(photo(size)), wanted, rtol=1e-5, atol=1e-5)
    other = Framing("crop" if resize == "stretch" else "stretch", (32, 32), "bicubic", framing.mean, framing.std)
    assert size == (40, 40) or (other(photo(size)) - wanted).abs().max() > 0.05


@pytest.mark.parametrize(("size", "square", "even"), [((80, 61), (80, 80), (80, 79)), ((30, 64), (64, 64), (64, 64))])
def test_padding_is_llavas_or_prismatics(size, square, even) -> None:
    """The sizes are those of `expand2square` (haotian-liu/LLaVA c121f04) and `LetterboxPad` (TRI-ML/prismatic-vlms
    874c5bb), both with what is over at the bottom and right, if anywhere.
    """
    image = Image.new("RGB", size, "white")
    for resize, wanted in (("letterbox", square), ("pad", even)):
        padded = Framing(resize, (32, 32), "bicubic", (0.5,) * 3, (0.5,) * 3)._padded(image)
        assert padded.size == wanted
        left, top = (max(size) - size[0]) // 2, (max(size) - size[1]) // 2
        assert padded.crop((left, top, left + size[0], top + size[1])).getcolors() == [(size[0] * size[1], (255,) * 3)]
        assert padded.getpixel((wanted[0] - 1, wanted[1] - 1)) == (127, 127, 127)


@pytest.mark.parametrize("size", [(60, 30), (30, 60)])
def test_letterbox_keeps_all_on_the_mean_colour(size: tuple[int, int]) -> None:
    mean, std = NORMALS["clip"]
    white = Framing("letterbox", (32, 32), "bicubic", mean, std)(Image.new("RGB", size, "white"))
    bars, middle = (white[:, :6], white[:, 12:20]) if size[0] > size[1] else (white[:, :, :6], white[:, :, 12:20])
    assert bars.abs().max() < 0.02  # int(255 * mean), as Prismatic rounds
    torch.testing.assert_close(middle, ((1 - torch.tensor(mean)) / torch.tensor(std))[:, None, None].expand_as(middle))


@pytest.mark.parametrize("kind", ["open_clip", "dinov2", "timm"])
def test_resize_and_normalise_are_choices(tmp_path: Path, kind: str) -> None:
    if kind == "open_clip":
        folder = open_clip_folder(tmp_path / kind)
    elif kind == "timm":
        folder = timm_folder(tmp_path / kind, "vit_base_patch16_224.augreg_in21k_ft_in1k", img_size=32)
    else:
        folder = transformers_folder(tmp_path / kind, kind)
    name, image = str(folder), photo()
    own = load_encoder(name).preprocess(image)
    found = {"own": own}
    for resize in ("stretch", "crop", "letterbox"):
        found[resize] = load_encoder(name, resize=resize).preprocess(image)
    for normal in NORMALS:
        found[normal] = load_encoder(name, normalise=normal).preprocess(image)
    assert len({tensor.numpy().tobytes() for tensor in found.values()}) >= len(found) - 2
    assert all(tensor.shape == (3, 32, 32) and tensor.dtype == torch.float32 for tensor in found.values())
    undo = {normal: [torch.tensor(v)[:, None, None] for v in NORMALS[normal]] for normal in NORMALS}
    plain = [found[normal] * std + mean for normal, (mean, std) in undo.items()]
    torch.testing.assert_close(plain[0], plain[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain[0], plain[2], rtol=1e-4, atol=1e-4)
    for choices in ({"resize": "letterbox"}, {"normalise": "clip"}, {"resize": "stretch", "normalise": "half"}):
        encoder = load_encoder(name, **choices)
        described = json.loads(json.dumps(encoder.describe()))
        assert described["choices"] == choices and load_encoder_like(described).describe() == described
        assert encoder.fingerprint() != load_encoder(name).fingerprint()


@torch.inference_mode()
@pytest.mark.parametrize("arch", ["vit_base_patch16_224.augreg_in21k_ft_in1k"])
def test_ePALMs_layers(tmp_path: Path, arch: str) -> None:
    """LayerNorm_final(block k's CLS) of the last six blocks, squashed, with CLIP's mean and deviation."""
    import timm

    folder = timm_folder(tmp_path / "vit", arch, img_size=64)
    encoder = load_encoder(str(folder), kinds=("layers",), resize="stretch", normalise="clip")
    stored = round_trip(encoder.encode(encoder.preprocess(photo())[None], ["layers"])["layers"])
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mean, std = (torch.tensor(values) for values in NORMALS["clip"])
    squashed = torch.tensor(np.array(photo().resize((64, 64), Image.Resampling.BICUBIC))) / 255
    state = model.patch_embed(((squashed - mean) / std).permute(2, 0, 1)[None])
    state, cls = model.norm_pre(model._pos_embed(state)), []
    for block in model.blocks:
        state = block(state)
        cls.append(model.norm(state)[:, 0])
    assert stored.shape == (1, 6, 32)
    assert distance(stored, torch.stack(cls[-6:], 1)) <= TOLERANCE
    assert distance(stored, torch.stack(cls[-7:-1], 1)) >= 10 * TOLERANCE
