"""mmproj files for llama.cpp: read again and computed in PyTorch, they give the vectors that the adapter gives."""

import json
import random

import numpy as np
import pytest
import torch
from export_models import load_here, pictures, save_patch_adapter, tokens_here, tower_folder
from PIL import Image

from periscope.adapters.io.checkpoint import load_adapter
from periscope.errors import AdapterError
from periscope.exports import gguf as module
from periscope.exports.gguf import (
    CHAT_TEMPLATE,
    MMPROJ,
    README,
    export_gguf,
    read_mmproj,
    run_mmproj,
    write_mmproj,
)
from periscope.exports.towers import vision_tower
from periscope.precompute.encoders.framing import PAD_COLOUR, llama_cpp_resize
from periscope.precompute.encoders.registry import load_encoder

LEAST = 0.9999  # cosine of each token with ours


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf")


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.cosine_similarity(a, b, dim=-1).min().item()


@pytest.mark.parametrize("precision", ["f32", "f16"])
@pytest.mark.parametrize("spec", ["mlp", "linear"])
@pytest.mark.parametrize("layer", [-1, -2, -5])
@pytest.mark.parametrize("tower", ["siglip", "timm_siglip"])
def test_the_file_gives_the_tokens_of_the_adapter(home, tower, layer, spec, precision):
    name = f"{tower}{layer}{spec}{precision}"
    folder = save_patch_adapter(home / name, home, tower, spec=spec, layer=layer, inner=40 if spec == "mlp" else 0)
    export_gguf(folder, home / f"{name}-out", precision=precision)
    file = home / f"{name}-out" / MMPROJ
    for image in pictures():
        ours, theirs = tokens_here(folder, image), run_mmproj(file, image)
        assert theirs.shape == ours.shape
        assert cosine(ours, theirs) > LEAST


def test_near_misses_are_far(home, monkeypatch):
    folder = save_patch_adapter(home / "near", home)
    export_gguf(folder, home / "near-out", precision="f32")
    file, image = home / "near-out" / MMPROJ, pictures()[0]
    ours = tokens_here(folder, image)
    right = read_mmproj(file)

    def with_settings(**changes):
        settings = right.settings | {f"clip.{name.replace('__', '.')}": value for name, value in changes.items()}
        monkeypatch.setattr(module, "read_mmproj", lambda _: module.Mmproj(settings, right.tensors))
        return (ours - run_mmproj(file, image)).abs().max() / ours.abs().max()

    tolerance = 10 * 1e-4
    assert with_settings() < 1e-4
    assert with_settings(vision__block_count=right.number("block_count") - 1) > tolerance
    assert with_settings(vision__block_count=right.number("block_count") + 1) > tolerance
    assert with_settings(use_gelu=False) > tolerance
    assert with_settings(vision__image_mean=[0.0, 0.0, 0.0]) > tolerance
    monkeypatch.undo()
    model, encoder = load_here(folder)  # the encoder's own framing, which stretches
    stretched = model.adapter(encoder.encode(encoder.preprocess(image)[None], ["patches"])["patches"])[0]
    assert 1 - cosine(stretched.detach(), run_mmproj(file, image)) > 10 * (1 - LEAST)


def test_keys_and_tensors_are_those_that_llama_cpp_reads(home):
    folder = save_patch_adapter(home / "keys", home)
    export_gguf(folder, home / "keys-out")
    mmproj = read_mmproj(home / "keys-out" / MMPROJ)
    assert mmproj.settings["general.architecture"] == "clip"
    assert mmproj.settings["clip.projector_type"] == "mlp"
    assert mmproj.settings["clip.use_gelu"] is True and mmproj.settings["clip.has_vision_encoder"] is True
    blocks = {name.split(".")[2] for name in mmproj.tensors if name.startswith("v.blk.")}
    assert len(blocks) == mmproj.number("block_count") == 8  # 7 run for layer -2
    assert not any("post_ln" in name or "class_embd" in name for name in mmproj.tensors)
    sizes = {"image_size": 32, "patch_size": 8, "embedding_length": 32, "feed_forward_length": 64, "projection_dim": 32}
    assert {name: mmproj.number(name) for name in sizes} == sizes


def test_the_folder_holds_what_a_server_needs(home):
    folder = save_patch_adapter(home / "folder", home, template={"delimiters": ("Scene:", "\n")})
    notes = export_gguf(folder, home / "folder-out")
    out = home / "folder-out"
    assert {path.name for path in out.iterdir()} == {MMPROJ, CHAT_TEMPLATE, README}
    assert json.dumps("Scene:") in (out / CHAT_TEMPLATE).read_text()
    assert any("pads pictures to a square" in note for note in notes)
    assert all(f"- {note}" in (out / README).read_text() for note in notes)


def test_a_full_disk_is_named_and_leaves_nothing(home, monkeypatch):
    import gguf

    def full(writer):
        raise OSError("200000 requested and 12500 written")  # as NumPy's tofile says it

    folder = save_patch_adapter(home / "full", home)
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(AdapterError, match="full-out can't be written: the disk is full"):
        export_gguf(folder, home / "full-out")
    assert not any("full-out" in path.name for path in home.iterdir())


@pytest.mark.parametrize("tower", ["clip", "open_clip"])
def test_a_class_token_is_refused(home, tower):
    folder = save_patch_adapter(home / f"cls-{tower}", home, tower)
    with pytest.raises(AdapterError, match=r"class token: llama\.cpp puts it last"):
        export_gguf(folder, home / "never")
    adapter, config = load_adapter(folder)
    encoder = load_encoder(f"{config.encoder['library']}:{config.encoder['id']}", kinds=("patches",))
    with pytest.raises(AdapterError, match="class token"):
        write_mmproj(home / "never.gguf", adapter, encoder)


@pytest.mark.parametrize("tower", ["siglip", "timm_siglip", "clip", "clip_projected", "open_clip"])
def test_towers_have_the_hidden_states_of_the_encoder(home, tower):
    for layer in (-1, -2, -4):
        encoder = load_encoder(tower_folder(home / "towers", tower), kinds=("patches",), patch_layer=layer)
        pixels = encoder.preprocess(pictures()[0])[None]
        found = vision_tower(encoder)(pixels, output_hidden_states=True).hidden_states
        ours = encoder.encode(pixels, ["patches"])["patches"]
        its = found[layer][:, -ours.shape[1] :]
        assert (its - ours).abs().max() < 1e-4 * ours.abs().max()
        assert (found[layer - 1][:, -ours.shape[1] :] - ours).abs().max() > 1e-2 * ours.abs().max()


def test_resize_keeps_the_aspect_and_pads_with_the_mean_colour():
    framed = np.asarray(llama_cpp_resize(Image.new("RGB", (100, 41), "white"), 32))
    rows = np.flatnonzero((framed == 255).all((1, 2)))
    assert framed.shape == (32, 32, 3)
    assert len(rows) == 14  # the ceiling of 41 * 0.32 = 13.12
    assert rows[0] == (32 - 14) // 2
    assert (framed[0] == PAD_COLOUR).all() and (framed[-1] == PAD_COLOUR).all()
    high = np.asarray(llama_cpp_resize(Image.new("RGB", (41, 100), "white"), 32))
    assert (high == framed.transpose(1, 0, 2)).all()


def test_resize_leaves_a_picture_of_its_size_alone():
    image = pictures()[3]
    assert image.size == (32, 32)
    for legacy in (False, True):
        assert np.array_equal(llama_cpp_resize(image, 32, legacy), image)


def test_resize_takes_rows_before_columns():
    """As llama.cpp does; Pillow itself takes the columns of a high picture first, which rounds otherwise."""
    image = Image.frombytes("RGB", (16, 378), random.Random(0).randbytes(16 * 378 * 3))
    both = image.resize((15, 336), Image.Resampling.BICUBIC)
    ours = llama_cpp_resize(image, 336).crop((160, 0, 175, 336))
    rows = image.resize((15, 378), Image.Resampling.BICUBIC).resize((15, 336), Image.Resampling.BICUBIC)
    assert np.array_equal(ours, rows)
    assert both.size == ours.size


def test_the_legacy_filter_takes_four_neighbours():
    image = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], (64, 1, 3)))
    framed = np.asarray(llama_cpp_resize(image, 32, legacy=True)).astype(int)
    assert (framed[0, :-1, 0] == np.arange(0, 248, 8)).all()  # a ramp is kept exactly, read at even columns
    noise = Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3))
    halved = np.asarray(llama_cpp_resize(noise, 32, legacy=True))
    assert np.array_equal(halved, np.asarray(noise)[::2, ::2])  # no antialiasing: every other pixel
