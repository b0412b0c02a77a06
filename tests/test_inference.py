"""`periscope.load` from another program, outside the clone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from PIL import Image

import periscope
from periscope.errors import AdapterError, DeviceError

PROGRAM = """
import periscope
model = periscope.load("whole", device="cpu")
print([model.caption("cat.png", 4), model.ask("cat.png", "What is it?", 4)])
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("inference")
    tiny.save_tiny_adapter(home / "whole", home, {"features": "photos"}, soft_prompt=2)
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


def test_a_loaded_model_says_what_it_is(home):
    shown = repr(periscope.load(home / "whole", device="cpu"))
    assert shown.startswith("LoadedModel(image: mlp2 on ") and " pooled, 2 tokens; " in shown
    assert shown.endswith("lm, fp32 on cpu)")


def test_a_device_that_is_not_here_gets_a_sentence(home):
    with pytest.raises(DeviceError, match="--device"):
        periscope.load(home / "whole", device="cuda:99")
