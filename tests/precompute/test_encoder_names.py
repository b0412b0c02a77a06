"""Every short name: its class at tiny size against the library's own, its shapes at full size, its page."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_parity import TOLERANCE, assert_parity, distance, photo
from PIL import Image

from periscope import model_folders
from periscope.paths import PACKAGE as PROJECT
from periscope.precompute.encoders import load_encoder, load_encoder_like, resolve
from periscope.precompute.encoders.names import ENCODERS
from periscope.precompute.encoders.transformers import audio, convolutional, image, video
from periscope.precompute.tiny_encoders import (
    OPEN_CLIP,
    OPEN_CLIP_PREPROCESSING,
    REAL,
    TINY_TIMM,
    build,
    roughen,
    timm_folder,
    tiny_folder,
)
from periscope.shards.features import round_trip

# Of motion there is one encoder, of no library: test_imu.py
FROM_LIBRARIES = [name for name, row in ENCODERS.items() if not name.startswith("demo") and row.modality != "imu"]


def medium_for(modality: str, samples: int = 0, frames: int = 0) -> object:
    """A decoded picture, sound (a little shorter than the encoder takes) or clip, of noise."""
    generator = np.random.default_rng(1)
    if modality == "audio":
        return (generator.standard_normal(samples * 3 // 4) / 3).astype(np.float32)
    if modality == "video":
        pixels = generator.integers(0, 256, (frames, 41, 53, 3), dtype=np.uint8)
        return [Image.fromarray(one) for one in pixels]
    return photo()


# kind of encoder -> transformers' class that is the tower, tokens before the patches, path of the final norm, and what
# of the library's output the pooled vector is
WITH_CLS = lambda out: out.last_hidden_state[:, 0]  # noqa: E731
MEAN = lambda out: out.last_hidden_state.mean(1)  # noqa: E731
POOLER = lambda out: out.pooler_output  # noqa: E731
TOWERS = {
    "siglip": ("SiglipVisionModel", 0, "post_layernorm", POOLER),
    "dinov2": ("Dinov2Model", 1, "layernorm", WITH_CLS),
    "registers": ("Dinov2WithRegistersModel", 5, "layernorm", WITH_CLS),
    "dinov3": ("DINOv3ViTModel", 5, "norm", WITH_CLS),
    "vit": ("ViTModel", 1, "layernorm", WITH_CLS),
    "ast": ("ASTModel", 2, "layernorm", POOLER),
    "whisper": ("WhisperModel", 0, "layer_norm", MEAN),
    "timesformer": ("TimesformerModel", 1, "layernorm", WITH_CLS),
    "videomae": ("VideoMAEModel", 0, "layernorm", MEAN),
    "vivit": ("VivitModel", 1, "layernorm", WITH_CLS),
    "vjepa2": ("VJEPA2Model", 0, "encoder.layernorm", MEAN),
}


def hooked(model: torch.nn.Module) -> list[torch.Tensor]:
    """A list that fills with the outputs of a model's blocks (its longest list of modules) as it runs."""
    blocks, states = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len), []
    for block in blocks:
        block.register_forward_hook(
            lambda _module, _inputs, output: states.append(output[0] if isinstance(output, tuple) else output)
        )
    return states


def assert_blocks(stored: dict, states: list, norm: torch.nn.Module, prefix: int, order=lambda x: x) -> None:
    """`patches` and `layers` against the outputs of a tower's blocks."""
    patches = lambda state: order(state[:, prefix:])  # noqa: E731
    wrong = {"registers or CLS kept": states[-2][:, prefix - 1 : -1]} if prefix else {}
    assert_parity(
        stored["patches"],
        patches(states[-2]),
        last=patches(states[-1]),
        earlier=patches(states[-3]),
        normed=patches(norm(states[-2])),
        **wrong,
    )
    if "layers" in stored:
        cls = torch.stack([state[:, 0] for state in states], 1)
        assert_parity(
            stored["layers"],
            norm(cls[:, -6:]),
            no_norm=cls[:, -6:],
            one_block_earlier=norm(cls[:, -7:-1]),
            reversed=norm(cls[:, -6:].flip(1)),
            another_token=norm(torch.stack([state[:, 1] for state in states[-6:]], 1)),
        )


@torch.inference_mode()
def check_transformers(name: str, stored: dict, folder: Path, medium: object) -> None:
    """Stored features of a tiny model against transformers' own classes, run by hand."""
    import transformers

    kind = REAL[name][0]
    if kind == "clap":
        return check_clap(stored, folder, medium)
    loader, prefix, norm, pooled = TOWERS[kind]
    extra = {"add_pooling_layer": False} if kind in ("vit", "vivit") else {}
    model = getattr(transformers, loader).from_pretrained(folder, **extra).eval()
    model = model.get_encoder() if kind == "whisper" else model
    if ENCODERS[name].modality == "audio":
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        inputs = extractor(medium, sampling_rate=16000, return_tensors="pt")
        inputs = {key: value for key, value in inputs.items() if key == model.main_input_name}
    elif kind == "vjepa2":
        processor = transformers.AutoVideoProcessor.from_pretrained(folder)
        inputs = dict(processor([np.stack(medium)], return_tensors="pt"), skip_predictor=True)
    else:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        inputs = processor(medium, return_tensors="pt")
    states = hooked(model)
    out = model(**inputs)
    right = pooled(out)
    final, wrong = model.get_submodule(norm), {"first_token": out.last_hidden_state[:, 0]}
    if pooled is WITH_CLS:
        wrong = {"mean": MEAN(out), "no_norm": states[-1][:, 0]}
    elif kind == "whisper":  # one position for every 320 samples, of which those after the sound's end are padding
        assert isinstance(medium, np.ndarray)
        heard = -(-len(medium) // 320)
        right = out.last_hidden_state[:, :heard].mean(1)
        wrong |= {"no_norm": states[-1][:, :heard].mean(1), "padding_too": MEAN(out)}
    assert_parity(stored["pooled"], right, **wrong)
    order = lambda x: x  # noqa: E731
    if kind == "timesformer":  # (rows * columns, frames) -> (frames, rows * columns)
        order = lambda x: x.unflatten(1, (16, 4)).transpose(1, 2).flatten(1, 2)  # noqa: E731
        assert distance(stored["patches"], states[-2][:, 1:]) > 10 * TOLERANCE
    assert_blocks(stored, states, final, prefix, order)


def check_clap(stored: dict, folder: Path, medium: np.ndarray) -> None:
    import transformers

    model = transformers.ClapModel.from_pretrained(folder).eval()
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder)
    features = extractor(medium, sampling_rate=16000, return_tensors="pt")["input_features"]
    out = model.audio_model(features)
    projected = model.audio_projection(out.pooler_output)
    assert_parity(stored["pooled"], projected, normalised=torch.nn.functional.normalize(projected, dim=-1))
    by_time = out.last_hidden_state.permute(0, 3, 2, 1).flatten(1, 2)
    right = out.last_hidden_state.flatten(2).transpose(1, 2)
    assert_parity(stored["patches"], right, reversed=right.flip(1))
    assert out.last_hidden_state.shape[2] == 1 or distance(stored["patches"], by_time) > 10 * TOLERANCE


def tiny_open_clip(folder: Path, architecture: str, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A folder with the architecture of that name in tiny sizes, and the model."""
    import open_clip
    import timm
    from safetensors.torch import save_file

    config = open_clip.get_model_config(architecture)
    plain = {"image_size": 32, "layers": 8, "width": 32, "head_width": 16, "patch_size": 8}
    timm_name = config["vision_cfg"].get("timm_model_name")
    vision = {**config["vision_cfg"], "image_size": 56} if timm_name else plain
    config |= {"embed_dim": 24, "vision_cfg": vision, "text_cfg": OPEN_CLIP["text_cfg"]}
    if timm_name:  # open_clip hands no sizes on
        create = timm.create_model
        sizes = {**TINY_TIMM, "img_size": 56}
        monkeypatch.setattr(timm, "create_model", lambda name, **more: create(name, **(more | sizes)))
    save = {name: value for name, value in config.items() if name != "custom_text"}
    made = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model = roughen(made(**json.loads(json.dumps(save))))
    folder.mkdir(parents=True)
    save_file({k: v.clone() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": OPEN_CLIP_PREPROCESSING})
    )
    return model


@torch.inference_mode()
def check_open_clip(stored: dict, model: torch.nn.Module, pixels: torch.Tensor) -> None:
    tower = model.visual
    trunk = getattr(tower, "trunk", None)
    states, pooled = [], None
    for block in tower.transformer.resblocks if trunk is None else trunk.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: states.append(output))
    pooled = model.encode_image(pixels)
    assert_parity(stored["pooled"], pooled, normalised=torch.nn.functional.normalize(pooled, dim=-1))
    assert_blocks(stored, states, tower.ln_post if trunk is None else trunk.norm, 1)


@torch.inference_mode()
def check_timm(stored: dict, folder: Path, pixels: torch.Tensor, **size: int) -> None:
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0, **size).eval()
    states = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: states.append(output))
    pooled = model(pixels)
    assert_parity(stored["pooled"], pooled, mean=states[-1].mean(1), no_norm=states[-1][:, 0])
    assert_blocks(stored, states, model.norm, model.num_prefix_tokens)


@pytest.mark.parametrize("name", FROM_LIBRARIES)
def test_every_short_name_at_tiny_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short name finds a tiny model of its own class where it would find the true one; what is stored is what the
    library gives.
    """
    monkeypatch.chdir(tmp_path)
    family, identifier = resolve(name)
    if family == "fused":
        pytest.skip("in test_fused.py")
    if family == "transformers":
        tiny_folder(tmp_path / identifier, REAL[name][0])
    elif family == "timm":
        timm_folder(tmp_path / identifier, identifier, img_size=64)
    else:
        model = tiny_open_clip(tmp_path / identifier, identifier.partition("/")[0], monkeypatch)
    encoder = load_encoder(name)
    assert encoder.modality == ENCODERS[name].modality
    assert encoder.kinds == set(ENCODERS[name].features())
    samples = encoder.samples() if encoder.modality == "audio" else 0
    medium = medium_for(encoder.modality, samples, getattr(encoder, "frames", 0))
    inputs = encoder.preprocess(medium)[None]
    stored = {kind: round_trip(given) for kind, given in encoder.encode(inputs, sorted(encoder.kinds)).items()}
    if family == "transformers":
        check_transformers(name, stored, tmp_path / identifier, medium)
    elif family == "timm":
        check_timm(stored, tmp_path / identifier, inputs)
    else:
        check_open_clip(stored, model, inputs)
    again = load_encoder_like(json.loads(json.dumps(encoder.describe())))
    assert again.describe() == encoder.describe()


@pytest.fixture
def weightless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loader gives the true architecture in full size on the meta device: no weights, so no network."""
    import open_clip
    import timm
    import transformers

    from periscope.precompute.encoders import Encoder
    from periscope.precompute.encoders import open_clip as open_clip_family
    from periscope.precompute.encoders import timm as timm_family
    from periscope.precompute.encoders import transformers as transformers_family
    from periscope.precompute.encoders.transformers import audio, image, loading, video

    def find(identifier: str) -> loading.Place:
        kind, sizes = next(REAL[n] for n, row in ENCODERS.items() if row.encoder == f"transformers:{identifier}")
        return loading.Place(kind, sizes, {}, None, build(kind, sizes)[1])

    def load(place: loading.Place, loader: str, config: object = None, **extra: object) -> torch.nn.Module:
        config = config or (place.config.vision_config if loader == "SiglipVisionModel" else place.config)
        with torch.device("meta"):
            return getattr(transformers, loader)(config, **extra).eval()

    def create_timm(name: str, side: int | None) -> tuple[torch.nn.Module, None]:
        with torch.device("meta"):
            return timm.create_model(name, num_classes=0, **({"img_size": side} if side else {})), None

    def create_open_clip(_library: object, identifier: str) -> tuple[torch.nn.Module, dict, None]:
        config = open_clip.get_model_config(identifier.partition("/")[0])
        made = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
        with torch.device("meta"):
            model = made(**config)
        model.visual.preprocess_cfg = {"size": model.visual.image_size}
        return model, config, None

    monkeypatch.setattr(transformers_family, "find", find)
    for module in (image, audio, video):
        monkeypatch.setattr(module, "load", load)
        monkeypatch.setattr(module, "load_processor", lambda place, *_, **__: build(place.identifier, place.path)[2])
    monkeypatch.setattr(timm_family, "_create", create_timm)
    monkeypatch.setattr(open_clip_family, "create", create_open_clip)
    monkeypatch.setattr(Encoder, "note_weights", lambda *_: None)
    for family in (open_clip_family.OpenClip, timm_family.Timm, audio.Sound):
        preprocess = family.preprocess
        monkeypatch.setattr(family, "preprocess", lambda self, medium, as_is=preprocess: as_is(self, medium).to("meta"))


@torch.inference_mode()
@pytest.mark.parametrize("name", FROM_LIBRARIES)
def test_the_tables_shapes_are_the_libraries(name: str, weightless: None) -> None:
    encoder = load_encoder(name, "meta")
    kinds = sorted(encoder.kinds)
    given = encoder.forward(encoder.preprocess(encoder.example())[None].to("meta"), kinds)
    found = {kind: {"shape": list(given[kind].shape[1:]), "dtype": "float16"} for kind in kinds}
    found["patches"]["grid"] = list(encoder.grid)
    assert found == ENCODERS[name].features()
    assert encoder.width == ENCODERS[name].width


@pytest.mark.parametrize("name", [name for name in ENCODERS if name.startswith("demo")])
def test_the_demos_rows_are_its_encoders(name: str) -> None:
    if not (PROJECT / ENCODERS[name].encoder.partition(":")[2] / "config.json").is_file() and name != "demo":
        pytest.skip("not pretrained yet")
    encoder = load_encoder(name)
    assert encoder.features(sorted(encoder.kinds)) == ENCODERS[name].features()


def test_every_kind_that_transformers_reads_here_is_known_as_an_encoder() -> None:
    families = {**image.TOWERS, **convolutional.NETWORKS, **audio.SOUNDS, **video.CLIPS}
    assert set(families) <= model_folders.ENCODERS


def test_the_page_of_encoders_is_made_by_its_script() -> None:
    from periscope.precompute.encoders.__main__ import table

    assert (PROJECT / "docs/encoders.md").read_text() == table(), (
        "run python -m periscope.precompute.encoders > docs/encoders.md"
    )
