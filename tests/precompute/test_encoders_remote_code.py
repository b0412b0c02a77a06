"""No encoder's folder runs code of its own, whatever its config names and whatever is answered on standard input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from periscope.precompute.tiny_encoders import open_clip_folder, tiny_folder

LOAD = """
import sys
from periscope.precompute.encoders import load_encoder
try: print("loaded", load_encoder(sys.argv[1]).name)
except ValueError as error: print("refused:", error)
"""
CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import {config}, {model}, {processor}
class EvilConfig({config}): model_type = {kind!r}
class EvilModel({model}): pass
class EvilProcessor({processor}): pass
"""
AUTOS = (
    "AutoModel",
    "AutoImageProcessor",
    "AutoFeatureExtractor",
    "AutoProcessor",
    "AutoTokenizer",
    "AutoVideoProcessor",
)
CLASSES = {
    "dinov2": ("Dinov2Config", "Dinov2Model", "BitImageProcessorPil"),
    "ast": ("ASTConfig", "ASTModel", "ASTFeatureExtractor"),
    "videomae": ("VideoMAEConfig", "VideoMAEModel", "VideoMAEImageProcessorPil"),
}


def answer(folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder)], input="y\n" * 9, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def poisoned(folder: Path, kind: str, model_type: str | None) -> Path:
    config, model, processor = CLASSES[kind]
    code = CODE.format(
        marker=str(folder / "marker"), config=config, model=model, processor=processor, kind=model_type or "evil"
    )
    (folder / "evil.py").write_text(code)
    for file in ("config.json", "preprocessor_config.json"):
        facts = json.loads((folder / file).read_text())
        facts["auto_map"] = {"AutoConfig": "evil.EvilConfig", **dict.fromkeys(AUTOS, "evil.EvilProcessor")}
        facts["auto_map"]["AutoModel"] = "evil.EvilModel"
        if model_type and file == "config.json":
            facts["model_type"] = model_type
        if model_type:
            for name in ("image_processor_type", "feature_extractor_type"):
                facts.pop(name, None)
        (folder / file).write_text(json.dumps(facts))
    return folder


@pytest.mark.parametrize("model_type", [None, "evil"])
@pytest.mark.parametrize("kind", list(CLASSES))
def test_code_in_a_folder_is_not_run(tmp_path: Path, kind: str, model_type: str | None) -> None:
    folder = poisoned(tiny_folder(tmp_path / "encoder", kind), kind, model_type)
    said = answer(folder)
    assert not (folder / "marker").exists()
    assert said.startswith("refused:" if model_type else "loaded")


def test_code_beside_an_open_clip_tower_is_not_run(tmp_path: Path) -> None:
    """Its text tower may be one of transformers, whose folder open_clip reads with AutoConfig."""
    text = poisoned(tiny_folder(tmp_path / "text", "dinov2"), "dinov2", "evil")
    folder = open_clip_folder(tmp_path / "clip")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] = {"hf_model_name": str(text), "hf_tokenizer_name": str(text)}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    shutil.copy(text / "evil.py", folder / "evil.py")
    assert answer(folder).startswith("refused:")
    assert not (text / "marker").exists()
