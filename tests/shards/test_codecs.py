"""int8 and int4: near what the encoder gives, also beside outlier channels."""

import pytest
import torch

from periscope.errors import FeatureSetError
from periscope.shards import codecs
from periscope.shards.features import decode, encode, round_trip
from periscope.shards.layout import CODECS, layout, stored_bytes


def entry(*shape: int, codec: str = "fp16", **more: object) -> dict:
    return {"shape": list(shape), "dtype": "float16", "codec": codec, **more}


OUTLIERS = (100.0, 200.0, 300.0)


def with_outliers(tokens: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(normal features with three channels at 100 to 300 times, which channels are the others)."""
    features = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))
    others = torch.ones(width, dtype=torch.bool)
    for channel, times in zip((5, width // 2, width - 3), OUTLIERS, strict=True):
        features[:, channel] *= times
        others[channel] = False
    return features, others


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.float() - wanted.float()).square().mean() / wanted.float().square().mean()).sqrt().item()


@pytest.mark.parametrize(("tokens", "width"), [(729, 1152), (196, 768), (36, 192), (577, 1000)])
@pytest.mark.parametrize(("codec", "error", "share"), [("int8", 0.01, 0.52), ("int4", 0.08, 0.28)])
def test_outlier_channels_cost_their_neighbours_nothing(
    tokens: int, width: int, codec: str, error: float, share: float
) -> None:
    features, others = with_outliers(tokens, width)
    how = entry(tokens, width, codec=codec)
    found = round_trip(features, how)
    assert found.dtype == torch.float16 and found.shape == features.shape
    assert relative_error(found[:, others], features[:, others]) <= error
    for channel in range(width):
        assert relative_error(found[:, channel], features[:, channel]) < 3 * error
    assert stored_bytes(how) == sum(tensor.nbytes for tensor in encode("patches", features, how).values())
    assert stored_bytes(how) / (2 * tokens * width) <= share


@pytest.mark.parametrize(("levels", "group", "limit"), [(127, None, 0.01), (7, None, 0.08), (7, 32, 0.08)])
def test_the_nearest_simpler_schemes_would_not_do(levels: int, group: int | None, limit: float) -> None:
    """A scale by token alone, and one by token and group without the channels', miss the aim fivefold and more."""
    features, others = with_outliers(196, 768)
    width = group or 768
    blocks = features.view(196, -1, width)
    scale = blocks.abs().amax(-1, keepdim=True) / levels
    found = ((blocks / scale).round() * scale).view_as(features)
    with_outlier = ~others.view(-1, width).all(-1)
    hurt = others & with_outlier.repeat_interleave(width)
    assert relative_error(found[:, hurt], features[:, hurt]) > 5 * limit
    ours = round_trip(features, entry(196, 768, codec="int8" if levels == 127 else "int4"))
    assert relative_error(ours[:, hurt], features[:, hurt]) < 1.1 * limit


def test_heavy_tails_zeros_and_uneven_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(100, 256, generator=generator)
    sparse = normal.relu()
    uneven = normal * torch.logspace(-2, 2, 100)[:, None]
    tails = normal / torch.rand(100, 256, generator=generator).clamp(min=0.05).sqrt()
    for features, error in ((sparse, 0.08), (uneven, 0.085), (tails, 0.11)):
        assert relative_error(round_trip(features, entry(100, 256, codec="int4")), features) < error
        assert relative_error(round_trip(features, entry(100, 256, codec="int8")), features) < 0.012
    for codec in ("int8", "int4"):
        assert torch.equal(round_trip(torch.zeros(40, 64), entry(40, 64, codec=codec)), torch.zeros(40, 64).half())
        assert (round_trip(sparse, entry(100, 256, codec=codec))[sparse == 0] == 0).all()
        dead = normal.clone()
        dead[:, 7], dead[3] = 0, 0
        found = round_trip(dead, entry(100, 256, codec=codec))
        assert not found[:, 7].any() and not found[3].any()


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("shape", [(1,), (33,), (768,), (6, 768), (3, 1), (40, 7), (40, 129), (33, 32)])
def test_any_shape_comes_back(codec: str, shape: tuple[int, ...]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    how = entry(*shape, codec=codec)
    stored = encode("pooled", features, how)
    assert {name: list(tensor.shape) for name, tensor in stored.items()} == {
        name: form for name, (_, form) in layout("pooled", how).items()
    }
    together = {name: torch.stack([tensor, tensor.flip(0).flip(0)]) for name, tensor in stored.items()}
    found = decode("pooled", together, how)
    assert found.shape == (2, *shape) and torch.equal(found[0], round_trip(features, how))
    assert relative_error(found[1], features) < (0.012 if codec == "int8" else 0.11)


def test_a_gpu_unpacks_the_same_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its way, by arithmetic instead of numpy's table, on the CPU."""
    pairs = torch.arange(256, dtype=torch.uint8).view(2, 4, 32)
    looked_up = codecs._unpacked(pairs)
    monkeypatch.setattr(codecs.np, "take", lambda *_: pytest.fail("numpy can't read a GPU's memory"))
    computed = codecs._unpacked_on_gpu(pairs)
    assert torch.equal(computed, looked_up) and computed.shape == (2, 4, 64)


@pytest.mark.parametrize("codec", CODECS)
def test_what_does_not_fit_is_found_when_written(codec: str) -> None:
    for bad, reason in ((7e4, "beyond float16"), (float("inf"), "not finite"), (float("nan"), "not finite")):
        features = torch.ones(40, 64)
        features[3, 3] = bad
        with pytest.raises(FeatureSetError, match=reason):
            encode("patches", features, entry(40, 64, codec=codec))
    largest = torch.full((40, 64), 65504.0)
    largest[:, ::3] *= -0.9
    assert torch.isfinite(round_trip(largest, entry(40, 64, codec=codec))).all()
