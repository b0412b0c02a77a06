import gc
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")  # without bf16: models are in fp32 on every CPU

import pytest
import tiny
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in a shell's background; scripts inherit it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # threads that wait for one another cost more than they give tiny models


def pytest_collection_finish():
    """Leave what is imported by now out of every later collection of garbage: millions of objects that stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def language_model_folder(tmp_path_factory):
    """Return a function from a family's name to a folder with a tiny random model of it, made once."""
    made = {}

    def folder(family: str):
        if family not in made:
            made[family] = tiny.save_language_model(family, tmp_path_factory.mktemp("lm") / family)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def photo_home(tmp_path_factory):
    """A folder with the features of 80 captioned pictures (features/photos) and a tiny language model (lm)."""
    import sys

    from photos import WORDS, tiny_clip
    from PIL import Image

    from periscope.precompute.cli import main as encode

    folder = tmp_path_factory.mktemp("photos")
    (folder / "photos").mkdir()
    for i in range(80):
        Image.effect_noise((48, 32), 20 + i).convert("RGB").save(folder / "photos" / f"{i:03d}.png")
        (folder / "photos" / f"{i:03d}.txt").write_text(" and ".join(WORDS[i % 5 : i % 5 + 1 + i % 3]))
    tiny_clip(folder / "clip", 0)
    tiny.save_language_model("llama", folder / "lm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["precompute.py", "--data", "photos", "--encoder", "clip", "--device", "cpu"])
        encode()
    return folder


@pytest.fixture(scope="module")
def home(photo_home):
    """`photo_home`, which is also the current folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(photo_home)
        yield photo_home
