"""Every command says something, and refuses what isn't there, before torch is imported, which takes seconds."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

# All in one process, in which torch can't be imported: (command line) -> what it ended with, and what it printed.
WITHOUT_TORCH = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
class Without:
    def find_spec(self, name, *_):
        if name in ("torch", "transformers"):
            raise SystemExit("torch is imported")
sys.meta_path.insert(0, Without())
from periscope import cli, eval, train
from periscope.console import run
from periscope.precompute.cli import main as precompute
mains = {"precompute.py": precompute, "train.py": train.main, "eval.py": eval.main, "periscope": cli.main}
lines, ends = json.loads(sys.argv[1]), []
for line in lines:
    sys.argv, said = list(line), io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            run(mains[line[0]])
            ends.append(["", said.getvalue()])
        except SystemExit as end:
            ends.append([str(end.code), said.getvalue()])
print(json.dumps(ends))
"""
BEGINNINGS = {
    ("precompute.py", "--data", "photos"): "precompute: photos, encoder demo",
    ("train.py", "--adapter", "mlp16", "--features", "features/photos", "--lm", "owner/name"): "train: preparing",
    ("eval.py", "--run", "runs/a"): "eval: runs/a",
    ("periscope", "ask", "runs/a", "photos/a.png", "What?"): "periscope ask: loading runs/a",
    ("periscope", "chat", "owner/name", "photos/a.png"): "periscope chat: loading owner/name",
    ("periscope", "caption", "runs/a", "photos", "--out", "new.jsonl"): "periscope caption: loading runs/a",
    ("periscope", "push", "runs/a", "owner/name"): "periscope push: loading runs/a",
    ("periscope", "export", "check", "runs/a"): "periscope export: loading the tools",
    ("periscope", "import", "epalm", "a.pth"): "periscope import: loading the tools",
    ("periscope", "features", "verify", "features/photos"): "features: reading features/photos",
    ("periscope", "init", "photos"): "init: looking at photos",
    ("periscope", "plan"): "plan: counting",
}
MISTAKES = {
    ("precompute.py", "--data", "nope"): "nope",
    ("precompute.py", "--data", "photos", "--encoder", "clp-l-336"): "nearest: clip-l-336",
    ("train.py", "--features", "features/nope"): "--features features/nope: there is no such folder",
    ("train.py", "--text", "nope.jsonl"): "--text nope.jsonl: there is no such file",
    ("train.py", "--resume", "runs/nope"): "--resume runs/nope: there is no such run",
    ("train.py", "--adapter", "mpl16"): "or mlp16?",
    ("train.py", "--lm", "gpt2"): "such as openai-community/gpt2",
    ("eval.py", "--run", "runs/nope"): "runs/nope is not a run: there is no such folder here",
    ("eval.py", "--run", "runs/a", "--image", "nope.png"): "--image nope.png: there is no such file",
    ("periscope", "ask", "runs/a", "nope.png", "What?"): "nope.png: there is no such file",
    ("periscope", "ask", "nope", "photos/a.png", "What?"): "nope is not a run",
    ("periscope", "caption", "runs/a", "nope", "--out", "new.jsonl"): "nope: there is no such file",
    ("precompute.py", "--data", "photos", "--for", "llama.cpp", "--encoder", "clip-l"): "class token: llama.cpp",
    ("precompute.py", "--data", "photos", "--for", "transformers", "--encoder", "dinov2-b"): "dinov2-b: only CLIP",
    ("precompute.py", "--data", "photos", "--for", "llama.cpp", "--kinds", "pooled"): "features without patches",
    ("precompute.py", "--for", "transformers", "--encoder", "clap"): "audio: only images are exported",
    ("precompute.py", "--for", "llama.cpp", "--encoder", "timm:vit_base_patch16_224"): "only CLIP and SigLIP towers",
    ("train.py", "--for", "llama.cpp", "--adapter", "mlp16", "--lm", "owner/name"): "adapter mlp16: only",
    ("train.py", "--for", "transformers", "--output-norm", "True"): "output norm: train with --output-norm False",
    ("train.py", "--for", "llama.cpp", "--recipe", "clipcap"): "can't work: adapter clipcap",
    ("train.py", "--for", "llama.cpp", "--lm", "models/opt"): "opt: llama.cpp doesn't know OPT",
    ("train.py", "--for", "llama.cpp", "--features", "features/clip=1"): "class token: llama.cpp puts it last",
    ("train.py", "--for", "vllm", "--adapter", "epalm"): "--for vllm can't work: injection into inner layers",
    ("train.py", "--features", "hf://owner"): "hf://owner is no name of a feature set on the Hub",
    ("eval.py", "--run", "runs/a", "--push", "a/b", "--runtime", "llama.cpp"): "--runtime does nothing with --push",
    ("periscope", "ask", "hf://owner/name", "photos/a.png", "What?"): "named owner/name, here owner/name",
    ("periscope", "init", "nope"): "nope: there is no such folder or file",
}  # fmt: skip


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> dict[tuple[str, ...], tuple[str, str]]:
    """Command line -> (how it ended, what it printed), without torch."""
    home = tmp_path_factory.mktemp("lines")
    for folder in ("photos", "features/photos", "runs/a"):
        (home / folder).mkdir(parents=True)
    (home / "models" / "opt").mkdir(parents=True)
    (home / "models" / "opt" / "config.json").write_text(json.dumps({"model_type": "opt", "hidden_size": 8}))
    (home / "features" / "clip").mkdir()
    clip = {"name": "x", "library": "open_clip", "class": "VisionTransformer"}
    manifest = {"encoder": clip, "modality": "image", "features": {"patches": {}}}
    (home / "features" / "clip" / "manifest.json").write_text(json.dumps(manifest))
    Image.new("RGB", (8, 8), "red").save(home / "photos" / "a.png")
    lines = [*BEGINNINGS, *MISTAKES]
    call = [sys.executable, "-c", WITHOUT_TORCH, json.dumps(lines)]
    done = subprocess.run(call, cwd=home, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, map(tuple, json.loads(done.stdout)), strict=True))


@pytest.mark.parametrize("line", BEGINNINGS, ids=" ".join)
def test_a_command_says_what_it_does_before_it_imports_torch(line, ends):
    end, said = ends[line]
    assert end == "torch is imported" and said.startswith(BEGINNINGS[line]), (end, said)


@pytest.mark.parametrize("line", MISTAKES, ids=" ".join)
def test_what_is_not_there_is_refused_before_torch_is_imported(line, ends):
    end, said = ends[line]
    assert end.startswith("error: ") and MISTAKES[line] in end, (end, said)
