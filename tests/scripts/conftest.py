"""A folder with everything that the scripts need, made once."""

import json
import shutil

import pytest
import tiny
import tiny_media
import torch
from photos import WORDS, tiny_clip
from PIL import Image
from script_runs import TRAIN, made


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    """A folder with captioned pictures, two encoders and two language models, none of them the demo's."""
    home = tmp_path_factory.mktemp("workshop")
    (home / "photos").mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(80):
        pixels = torch.randint(0, 255, (4, 6, 3), generator=generator, dtype=torch.uint8)
        picture = Image.fromarray(pixels.numpy()).resize((48, 32), Image.Resampling.NEAREST)
        picture.save(home / "photos" / f"{i:03d}.{'png' if i % 2 else 'jpg'}")
        (home / "photos" / f"{i:03d}.txt").write_text(WORDS[i % 5])
    tiny_clip(home / "clip", 0)
    tiny_clip(home / "other-clip", 1)
    tiny.save_language_model("llama", home / "lm")
    tiny.save_language_model("opt", home / "chatless")
    tiny.save_language_model("llama", home / "wide", hidden_size=48, seed=2)
    made(home, "precompute.py", "--data", "photos", "--encoder", "clip")
    return home


@pytest.fixture(scope="session")
def mistakes(workshop):
    made(workshop, "precompute.py", "--data", "photos", "--encoder", "clip", "--kinds", "patches",
         "--out", "features/patches-only")  # fmt: skip
    made(workshop, "precompute.py", "--data", "photos", "--encoder", "other-clip", "--out", "features/other")
    (workshop / "wordless").mkdir()
    Image.new("RGB", (40, 40), "red").save(workshop / "wordless" / "a.png")
    made(workshop, "precompute.py", "--data", "wordless", "--encoder", "clip")
    (workshop / "sounds").mkdir()
    (workshop / "sounds" / "a.wav").write_bytes(tiny_media.sound(tiny_media.sine(440, 1, 16000)[None], 16000))
    made(workshop, *TRAIN, "--adapter", "mlp3", "--steps", "3", "--name", "taken")
    shutil.copytree(workshop / "runs/taken/steps/000003/adapter", workshop / "alone")
    asked = {"media": ["001.png"], "split": "test", "turns": [{"role": "user", "content": "What is it?"}]}
    (workshop / "words").mkdir()
    (workshop / "words/unanswered.jsonl").write_text(json.dumps(asked) + "\n")
    asked["turns"].append({"role": "assistant", "content": "a dog"})
    (workshop / "words/asked.jsonl").write_text(json.dumps(asked) + "\n")
    (workshop / "words/train.jsonl").write_text(json.dumps(asked | {"split": "train"}) + "\n")
    return workshop
