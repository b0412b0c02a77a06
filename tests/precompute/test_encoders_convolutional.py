"""Convolutional networks: their pooled vector and last feature map are the library's own."""

import json
from pathlib import Path

import pytest
import torch
from encoder_parity import assert_parity, photo
from PIL import Image

from periscope.errors import PrecomputeError
from periscope.precompute.encoders import load_encoder, load_encoder_like
from periscope.precompute.tiny_encoders import roughen
from periscope.shards.features import round_trip

TIMM = {
    "tf_efficientnet_lite0.in1k": {},
    "resnet18.a1_in1k": {},
    "convnext_atto.d2_in1k": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "mobilenetv3_small_050.lamb_in1k": {},
}


def timm_network(folder: Path, name: str) -> Path:
    import timm
    from timm.models import save_for_hf

    model = roughen(timm.create_model(name, **TIMM[name]))
    save_for_hf(model, str(folder), model_args=TIMM[name], safe_serialization=True)
    return folder


def stored_kinds(name: str) -> tuple[dict[str, torch.Tensor], torch.Tensor, object]:
    encoder = load_encoder(name)
    pixels = encoder.preprocess(photo())[None]
    assert encoder.kinds == {"pooled", "patches"}
    with pytest.raises(PrecomputeError, match=r"can.t give .layers. features \(a convolutional network has no CLS"):
        encoder.require(["layers"])
    for one in encoder.kinds:
        assert set(encoder.encode(pixels, [one])) == {one}
    again = load_encoder_like(json.loads(json.dumps(encoder.describe())))
    assert again.describe() == encoder.describe()
    shapes = encoder.features(["patches", "pooled"])
    assert shapes["patches"]["grid"] == list(encoder.grid)
    return {kind: round_trip(each) for kind, each in encoder.encode(pixels, encoder.kinds).items()}, pixels, encoder


@torch.inference_mode()
@pytest.mark.parametrize("name", list(TIMM))
def test_timm_parity(tmp_path: Path, name: str) -> None:
    import timm

    folder = timm_network(tmp_path / "network", name)
    stored, pixels, _ = stored_kinds(str(folder))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    last = model.forward_features(pixels)
    logits = model.get_classifier()(stored["pooled"].float())
    torch.testing.assert_close(logits, model(pixels), rtol=1e-2, atol=1e-2 * model(pixels).abs().max().item())
    rows = last.flatten(2).transpose(1, 2)
    assert_parity(stored["patches"], rows, columns_first=last.transpose(2, 3).flatten(2).transpose(1, 2))
    with pytest.raises(PrecomputeError, match="last stage only, not --layer -2"):
        load_encoder(str(folder), patch_layer=-2)


def test_another_size(tmp_path: Path) -> None:
    folder = timm_network(tmp_path / "network", "resnet18.a1_in1k")
    assert load_encoder(f"timm:{folder}").grid == (7, 7)
    assert load_encoder(f"timm:{folder}@128").grid == (4, 4)


def network_of_transformers(folder: Path, kind: str) -> Path:
    import transformers as t

    side = {"height": 64, "width": 64}
    if kind == "convnext":
        config = t.ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32])
        model, processor = (
            t.ConvNextForImageClassification(config),
            t.ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=1.0),
        )
    elif kind == "resnet":
        config = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
        model = t.ResNetForImageClassification(config)
        processor = t.ViTImageProcessorPil(size=side)
    else:
        config = t.EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320, image_size=64)
        model, processor = t.EfficientNetForImageClassification(config), t.EfficientNetImageProcessorPil(size=side)
    torch.manual_seed(0)
    roughen(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["convnext", "resnet", "efficientnet"])
def test_transformers_parity(tmp_path: Path, kind: str) -> None:
    import transformers

    folder = network_of_transformers(tmp_path / kind, kind)
    stored, pixels, _ = stored_kinds(str(folder))
    model = transformers.AutoModel.from_pretrained(folder).eval()
    out = model(pixel_values=pixels)
    assert_parity(stored["pooled"], out.pooler_output.flatten(1))
    last = out.last_hidden_state
    assert_parity(
        stored["patches"],
        last.flatten(2).transpose(1, 2),
        columns_first=last.transpose(2, 3).flatten(2).transpose(1, 2),
    )


def test_a_single_tag_needs_no_naming(monkeypatch: pytest.MonkeyPatch) -> None:
    from periscope.precompute.encoders import timm as family

    asked: list[str] = []

    def create(name: str, _side: int | None) -> None:
        asked.append(name)
        raise PrecomputeError("found")

    monkeypatch.setattr(family, "_create", create)
    for name in ("tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k", "resnet50"):
        with pytest.raises(PrecomputeError, match="found"):
            load_encoder(f"timm:{name}")
    assert asked == ["tf_efficientnet_lite0.in1k", "tf_efficientnet_lite0.in1k", "resnet50"]
    monkeypatch.undo()
    with pytest.raises(PrecomputeError, match=r"no pretrained timm model is called 'resnet50'; nearest: resnet50\."):
        load_encoder("timm:resnet50")


def test_without_kinds_an_encoder_gives_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """SigLIP without its attention head has no pooled vector."""
    import transformers as t

    from periscope.precompute.cli import main
    from periscope.precompute.tiny_encoders import VISION
    from periscope.shards.read import FeatureSet

    config = t.SiglipVisionConfig(**VISION, vision_use_head=False)
    roughen(t.SiglipVisionModel(config)).save_pretrained(tmp_path / "headless")
    t.SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "headless")
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / f"photos/{number}.png")
    flags = ["--data", str(tmp_path / "photos"), "--encoder", str(tmp_path / "headless"), "--device", "cpu"]
    main([*flags, "--out", str(tmp_path / "set")])
    assert "gives no pooled features: --kinds patches" in capsys.readouterr().out
    assert set(FeatureSet(tmp_path / "set").manifest["features"]) == {"patches"}
    with pytest.raises(PrecomputeError, match="can't give 'pooled'"):
        main([*flags, "--kinds", "pooled", "--out", str(tmp_path / "other")])
