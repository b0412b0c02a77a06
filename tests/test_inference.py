"""`periscope.load` from another program, outside the clone."""

import io
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import hostile
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import periscope
from periscope.errors import AdapterError, DeviceError, PrecomputeError
from periscope.precompute.media import decode_image
from periscope.precompute.media import limits as media_limits

PROGRAM = """
import periscope
model = periscope.load("whole", device="cpu")
print([model.caption("cat.png", 4), model.ask("cat.png", "What is it?", 4)])
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("inference")
    tiny.save_tiny_adapter(home / "whole", home, {"features": "photos"}, soft_prompt=2, family="qwen2")
    Image.new("RGB", (40, 30), "blue").save(home / "cat.png")
    return home


def test_three_lines_in_another_program(home):
    package = Path(periscope.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=home, env=environment, capture_output=True, text=True, check=True
    )
    model = periscope.load(home / "whole", device="cpu")
    here = [model.caption(home / "cat.png", 4), model.ask(home / "cat.png", "What is it?", 4)]
    assert done.stdout.splitlines()[-1] == str(here) and all(here)


def test_files_bytes_and_images_are_the_same_media(home):
    model = periscope.load(home / "whole")
    path = home / "cat.png"
    answers = {model.caption(medium, 6) for medium in (path, str(path), path.read_bytes(), Image.open(path), [path])}
    answers.add(model.caption({"image": path}, 6))
    assert len(answers) == 1
    two = model.ask([path, Image.new("RGB", (40, 30), "red")], "Is <image> like <image>?", 6)
    assert isinstance(two, str)
    with pytest.raises(AdapterError, match="2 <image> marks for 1 media"):
        model.ask(path, "Is <image> like <image>?")
    features = model.features(path)
    assert features.shape == (model.model.models["image"].adapter.features.width,) and features.dtype.itemsize == 2


def stored_forms():
    """Pictures whose pixels aren't simply RGB, as PIL images and as the files that hold them."""
    corner = Image.new("RGB", (40, 30), "red")
    corner.paste("blue", (0, 0, 40, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    clear.paste((0, 90, 0, 255), (0, 0, 12, 12))
    ramp = np.linspace(0, 65535, 40).astype(np.uint16)[None].repeat(30, 0)
    glyph = corner.quantize(4)
    glyph.info["transparency"] = 0
    return {
        "orientation": (corner, {"exif": exif}),
        "alpha": (clear, {}),
        "grey and alpha": (clear.convert("LA"), {}),
        "16 bits": (Image.fromarray(ramp), {}),
        "palette": (glyph, {"transparency": 0}),
        "bilevel": (corner.convert("1"), {}),
        "cmyk": (corner.convert("CMYK"), {"form": "TIFF"}),
    }


@pytest.mark.parametrize("form", list(stored_forms()))
def test_an_image_gives_what_its_file_gives(home, form):
    model = periscope.load(home / "whole", device="cpu")
    image, options = stored_forms()[form]
    stream = io.BytesIO()
    image.save(stream, options.pop("form", "PNG"), **options)
    path = home / "stored.png"
    path.write_bytes(stream.getvalue())
    wanted = model.features(path)
    stream.seek(0)
    with path.open("rb") as file:
        for medium in (Image.open(path), bytearray(stream.getvalue()), stream, file):
            assert torch.equal(model.features(medium), wanted)
    upright = np.asarray(decode_image(path))
    assert upright.dtype == np.uint8 and torch.equal(model.features(upright), wanted)


def test_a_picture_passed_in_stays_as_it_is(home):
    model, picture = periscope.load(home / "whole", device="cpu"), Image.new("LA", (40, 30), (10, 99))
    picture.getexif()[0x0112] = 6
    model.features(picture)
    assert (picture.mode, picture.size, picture.getexif()[0x0112]) == ("LA", (40, 30), 6)


def test_home_is_expanded_and_other_addresses_are_refused(home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    model = periscope.load(home / "whole", device="cpu")
    assert torch.equal(model.features("~/cat.png"), model.features(home / "cat.png"))
    for address in ("s3://bucket/cat.png", "ftp://example.org/cat.png"):
        with pytest.raises(PrecomputeError, match=f"download {address} and pass the file"):
            model.features(address)
    with pytest.raises(PrecomputeError, match=r"an address, not a file: pass the path alone, /there/cat\.png"):
        model.caption("file:///there/cat.png")
    with pytest.raises(PrecomputeError, match=r"\(height, width, 3\) uint8, not \(3 x 40 x 30\) float32"):
        model.features(np.zeros((3, 40, 30), np.float32))
    with pytest.raises(PrecomputeError, match="int is no path"):
        model.features(7)


def test_a_web_address_is_fetched_within_limits(home, monkeypatch):
    model = periscope.load(home / "whole", device="cpu")
    with HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=home)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            site = f"http://127.0.0.1:{server.server_port}"
            assert torch.equal(model.features(f"{site}/cat.png"), model.features(home / "cat.png"))
            with pytest.raises(PrecomputeError, match=rf"{site}/none\.png: can't be fetched: .*404"):
                model.features(f"{site}/none.png")
            monkeypatch.setattr(media_limits, "_current", media_limits.Limits(bytes=10))
            with pytest.raises(PrecomputeError, match=r"too many bytes: .*--max-bytes is 10"):
                model.features(f"{site}/cat.png")
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(PrecomputeError, match=r"can't be fetched: Connection refused$"):
        model.features(f"{site}/cat.png")


def test_a_hostile_file_is_one_sentence(home, monkeypatch):
    """The process that decodes it may die; this one goes on."""
    model = periscope.load(home / "whole", device="cpu")
    monkeypatch.setattr(type(model.readers["image"].encoder), "decoder", lambda self: hostile.decode)
    path = home / "hostile.png"
    path.write_bytes(hostile.CRASH)
    for medium in (path, hostile.CRASH):
        with pytest.raises(PrecomputeError, match="crashes its decoder: SIGSEGV"):
            model.ask(medium, "What is it?", 4)
    os.mkfifo(home / "pipe.png")
    with pytest.raises(PrecomputeError, match=r"pipe.png: can't be opened: not a regular file"):
        model.caption(home / "pipe.png", 4)
    assert model.caption(home / "cat.png", 4)


def test_a_loaded_model_says_what_it_is(home):
    shown = repr(periscope.load(home / "whole", device="cpu"))
    assert shown.startswith("LoadedModel(image: mlp2 on ") and " pooled, 2 tokens; " in shown
    assert shown.endswith("lm, fp32 on cpu)")


def test_a_device_that_is_not_here_gets_a_sentence(home):
    with pytest.raises(DeviceError, match=r'^device="cuda:99".*(pass device="cpu"|numbered from 0)'):
        periscope.load(home / "whole", device="cuda:99")


def test_many_captions_are_each_mediums_own(home):
    model = periscope.load(home / "whole", device="cpu")
    colours = ("blue", "red", "green", "white", "black")
    pictures = [Image.new("RGB", (40, 30), colour) for colour in colours]
    said = model.captions(pictures, 6, batch=2)
    assert said == [model.caption(picture, 6) for picture in pictures] and len(said) == 5
    assert model.captions(iter([home / "cat.png"]), 6, batch=64) == [model.caption(home / "cat.png", 6)]
    assert model.captions(np.stack([np.asarray(picture) for picture in pictures[:2]]), 6) == said[:2]
    assert model.captions([]) == []
    for media in (str(home / "cat.png"), home / "cat.png", pictures[0], {"image": pictures}, 7):
        with pytest.raises(AdapterError, match="captions takes a list of media, and this is of type"):
            model.captions(media)
    with pytest.raises(AdapterError, match="each caption is of one medium, and 2 were given"):
        model.captions([pictures[:2]])
    with pytest.raises(AdapterError, match="batch is 0"):
        model.captions(pictures, batch=0)


def test_one_caption_is_of_one_medium(home):
    model = periscope.load(home / "whole", device="cpu")
    with pytest.raises(AdapterError, match="nothing to caption"):
        model.caption([])
    with pytest.raises(AdapterError, match=r"2 media of one modality \(image\).*captions\(\[...\]\)"):
        model.caption([home / "cat.png", home / "cat.png"])
    with pytest.raises(AdapterError, match="'audio' is no modality of this model, which reads image"):
        model.caption({"audio": "purr.wav"})


def test_swapped_arguments_are_named(home, monkeypatch):
    monkeypatch.chdir(home)
    model = periscope.load("whole", device="cpu")
    for question in ("cat.png", Path("cat.png"), Image.new("L", (4, 4))):
        with pytest.raises(AdapterError, match=r"the media come first: ask\(media, question\)"):
            model.ask("What is it?", question)
    with pytest.raises(AdapterError, match="max_new_tokens is 'What is it\\?'; it must be 1 or more"):
        model.caption("cat.png", "What is it?")
    with pytest.raises(DeviceError, match="'whole' is none of auto, cpu, mps, cuda and cuda:N"):
        periscope.load("whole", "whole")


def test_a_model_moves(home):
    model = periscope.load(home / "whole", device="cpu")
    said = model.caption(home / "cat.png", 6)
    assert model.to("cpu") is model and model.caption(home / "cat.png", 6) == said
    moved = []
    model.readers["image"].encoder.to = lambda device: moved.append(str(device))
    model.to("cpu")
    assert moved == ["cpu"]
    with pytest.raises(DeviceError, match=r"^device 'tpu' is none of"):
        model.to("tpu")
    if sys.platform != "darwin":
        with pytest.raises(DeviceError, match=r'^device="mps" was asked for, .* is no Mac; pass device="cpu"$'):
            model.to("mps")
    model.model.lm.precision = "4bit"
    with pytest.raises(AdapterError, match="is loaded in 4bit and can't be moved; load it on cpu"):
        model.to("cpu")
