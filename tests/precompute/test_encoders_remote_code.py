"""No encoder's folder runs code of its own, whatever its config names and whatever is answered on standard input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from periscope.precompute.encoders import load_encoder
from periscope.precompute.tiny_encoders import open_clip_folder, timm_folder, tiny_folder

LOAD = """
import sys
from periscope.precompute.encoders import load_encoder
for folder in sys.argv[1:]:
    try: print(f"{folder}: loaded", load_encoder(folder).name)
    except ValueError as error: print(f"{folder}: refused:", *str(error).split())
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


def answers(*folders: Path) -> dict[Path, str]:
    """What came of loading each, in one process that is answered "y" whatever it asks."""
    command = [sys.executable, "-c", LOAD, *map(str, folders)]
    done = subprocess.run(command, input="y\n" * 99, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = {folder: line.removeprefix(f"{folder}: ") for folder in folders for line in done.stdout.splitlines()
            if line.startswith(f"{folder}: ")}  # fmt: skip
    assert len(said) == len(folders), done.stdout
    return said


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


def with_text_tower(folder: Path, text: Path) -> Path:
    """An open_clip tower whose text tower is one of transformers, whose folder open_clip reads with AutoConfig."""
    open_clip_folder(folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] = {"hf_model_name": str(text), "hf_tokenizer_name": str(text)}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    shutil.copy(text / "evil.py", folder / "evil.py")
    return folder


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    cases = [(kind, model_type) for kind in CLASSES for model_type in (None, "evil")]
    folders = [
        poisoned(tiny_folder(tmp_path / f"{kind}-{model_type}", kind), kind, model_type) for kind, model_type in cases
    ]
    tower = with_text_tower(tmp_path / "clip", folders[cases.index(("dinov2", "evil"))])
    said = answers(*folders, tower)
    for folder, (kind, model_type) in zip(folders, cases, strict=True):
        assert not (folder / "marker").exists(), kind
        assert said[folder].startswith("refused:" if model_type else "loaded"), (kind, said[folder])
    assert said[tower].startswith("refused:")


class Pickled:
    """Leaves a marker where it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def test_pickled_weights_beside_timms_are_not_read(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "vit", "vit_base_patch16_224")
    for name in ("pytorch_model.bin", "weights.pth", "weights.pt"):
        torch.save(Pickled(tmp_path / "marker"), folder / name)
    torch.load(folder / "weights.pt", weights_only=False)
    assert (tmp_path / "marker").exists()
    (tmp_path / "marker").unlink()
    assert load_encoder(f"timm:{folder}").kinds
    assert not (tmp_path / "marker").exists()
