"""Every command says something, and refuses what can't be, before torch is imported, which takes seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy_sets
from PIL import Image

from periscope.adapters.io.schema import FORMAT, AdapterConfig, RecordedLanguageModel
from periscope.adapters.prompting.template import Template
from periscope.adapters.recorded import FeatureShape, LanguageModelIdentity
from periscope.shards.manifest import save_manifest
from periscope.training.config import config_from
from periscope.training.run import Run

# All in one process, in which torch can't be imported: (command line) -> what it ended with, and what it printed.
WITHOUT_TORCH = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
class Without:
    def find_spec(self, name, *_):
        if name in ("torch", "transformers"):
            raise SystemExit("torch is imported")
sys.meta_path.insert(0, Without())
import periscope
from periscope import cli, eval, train
from periscope.console import run
from periscope.precompute.cli import main as precompute
mains = {"precompute.py": precompute, "train.py": train.main, "eval.py": eval.main, "periscope": cli.main}
mains["python"] = lambda: exec(sys.argv[1])
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
MODELS = {  # folder -> config.json
    "opt": {"model_type": "opt", "hidden_size": 8},
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "vit": {"model_type": "vit", "architectures": ["ViTModel"]},
    "timm": {"architecture": "resnet50"},
}
SOUNDS_ONLY = "only sounds are read here: pass it with"
TRAIN = ("train.py", "--features", "features/photos", "--lm", "lm")
ASK = ("periscope", "ask", "runs/first", "photos/a.png", "What?")
BEGINNINGS = {
    ("precompute.py", "--data", "photos"): "precompute: photos, encoder demo",
    (*TRAIN, "--adapter", "mlp16"): "train: preparing",
    ("train.py", "--features", "features/photos", "--tiny", "--name", "tried"): "train: preparing",
    ("eval.py", "--run", "runs/first"): "eval: runs/first",
    ("eval.py", "--image", "photos/a.png", "--prompt", "What?"): "eval: the newest run",
    ASK: "periscope ask: loading runs/first",
    ("periscope", "chat", "image=runs/first", "photos/a.png"): "periscope chat: loading image=runs/first",
    ("periscope", "caption", "runs/first", "photos", "--out", "new.jsonl"): "periscope caption: loading runs/first",
    ("eval.py", "--run", "others/moved"): "eval: others/moved",
    ("eval.py", "--run", "image=others/moved"): "eval: image=others/moved",
    ("eval.py", "--run", "runs/first", "--loss-drop", "train"): "eval: runs/first",
    ("eval.py", "--run", "alone", "--features", "features/photos"): "eval: alone",
    (*TRAIN, "--sweep", "adapter=mlp8,epalm"): "train: preparing",
    ("periscope", "ask", "others/moved", "photos/a.png", "?", "--encoder", "photos"): "periscope ask: loading others/m",
    ("periscope", "serve", "runs/first"): "periscope serve: loading runs/first",
    ("periscope", "export", "embeds", "runs/first", "photos/a.png", "--out", "x"): "periscope export: loading the t",
    ("periscope", "import", "epalm", "a.pth", "--lm", "lm", "--features", "features/photos", "--out", "x"): (
        "periscope import: loading the tools"
    ),
    ("periscope", "features", "verify", "features/photos"): "features: reading features/photos",
    ("periscope", "plan"): "plan: counting",
    ("python", "periscope.load('runs/first')"): "",
}
LISTS = {("train.py", "--list"): "mamba-vl           ", ("eval.py", "--tasks"): "vqav2 "}
NO_RUN = "is not a run: there is no such folder here"
MISTAKES = {
    ("precompute.py", "--data", "nope"): "nope",
    ("precompute.py", "--data", "phots"): "photos?",
    ("precompute.py", "--data", "photos", "--encoder", "clip"): "nearest: clip-b-32, clip-b-16, clip-l; known",
    ("precompute.py", "--data", "photos", "--encoder", "clp-l-336"): "nearest: clip-l-336",
    ("precompute.py", "--data", "photos", "--encoder", "siglip2-b"): "HF_HUB_OFFLINE forbids to fetch it; download",
    ("precompute.py", "--data", "photos", "--encoder", "clip-b-32"): "isn't on this machine and the Hub can't be",
    ("precompute.py", "--data", "photos", "--encoder", "ast"): "there are only image media here; try --encoder sig",
    ("precompute.py", "--data", "photos", "--tiny"): "the encoder demo is none; name one with --encoder",
    ("precompute.py", "--data", "photos", "--store", "int9"): "--store int9 isn't possible",
    ("precompute.py", "--data", "photos", "--pool", "2"): "--pool 2 isn't ROWSxCOLUMNS",
    ("precompute.py", "--data", "photos", "--device", "tpu"): "'tpu' is none of auto, cpu",
    ("train.py", "--features", "features/nope"): "--features features/nope: there is no such folder",
    ("train.py", "--features", "photos", "--lm", "lm"): "photos isn't a feature set",
    ("train.py", "--features", "features/wordless", "--lm", "lm"): "has no words to train on (0 texts)",
    ("train.py", "--features", "features/photos"): "--lm is missing",
    ("train.py", "--recipe", "llava-1.5"): "was made by clip-l-336, which this recipe reads",
    ("train.py", "--text", "nope.jsonl"): "--text nope.jsonl: there is no such file",
    ("train.py", "--text", "photos"): "--text photos is a folder; name a file with one JSON text per line",
    ("train.py", "--resume", "runs/nope"): "--resume runs/nope: there is no such run",
    ("train.py", "--resume", "photos"): "photos is not a run: it holds no config.toml",
    ("train.py", "--adapter", "mpl16"): "or mlp16?",
    ("train.py", "--lm", "gpt2"): "such as openai-community/gpt2",
    (*TRAIN[:3], "--lm", "user/name"): "can't be reached; connect, or pass a folder with the model",
    (*TRAIN[:3], "--lm", "runs/name"): "--lm runs/name: there is no such folder",
    (*TRAIN[:3], "--lm", "photos"): "a folder without a config.json",
    (*TRAIN[:3], "--tiny", "--lm", "user/name"): "--tiny doesn't know what user/name is",
    (*TRAIN, "--adapter", "epalm"): "holds pooled, not layers; encode again with --kinds layers",
    (*TRAIN, "--name", "first"): "runs/first exists, and a run is never overwritten",
    (*TRAIN, "--lora", "r=x"): "isn't of the form r=64,alpha=16",
    (*TRAIN, "--merge-lora", "x"): "there is no LoRA to merge",
    (*TRAIN, "--init", "photos"): "photos is not a run: it holds no config.toml",
    ("train.py", "--sweep", "adpter=mlp8,mlp16"): "did you mean adapter?",
    ("eval.py", "--run", "runs/nope"): f"runs/nope {NO_RUN}; runs that are there: runs/first",
    ("eval.py", "--run", "photos"): "photos is not a run: it holds no config.toml and no adapter",
    ("eval.py", "--run", "runs/first", "--features", "photos"): "photos isn't a feature set",
    ("eval.py", "--run", "runs/first", "--image", "nope.png"): "--image nope.png: there is no such file",
    ("eval.py", "--run", "runs/first", "--audio", "bark.wav"): "was given as audio, and the adapter reads image",
    ("eval.py", "--run", "runs/first", "--audio", "photos/a.png"): f"a.png is a picture, and {SOUNDS_ONLY} --image",
    ("eval.py", "--run", "runs/first", "--image", "bark.wav"): "only pictures are read here: pass it with --audio",
    ("eval.py", "--run", "runs/first", "--runtime", "llama.cpp"): "reads GGUF files, and lm isn't one; it holds sm",
    ("eval.py", "--run", "runs/first", "--push", "nope"): "nope is no place to push to",
    ("periscope", "ask", "runs/nope", "photos/a.png", "?"): f"runs/nope {NO_RUN}; runs that are there: runs/first",
    ("periscope", "ask", "runs/frist", "photos/a.png", "?"): f"{NO_RUN}; did you mean runs/first?",
    ("periscope", "ask", "./runs/nope", "photos/a.png", "?"): NO_RUN,
    ("periscope", "ask", "nope", "photos/a.png", "What?"): f"nope {NO_RUN}",
    ("periscope", "ask", "photos", "photos/a.png", "What?"): "photos is not a run: it holds no config.toml",
    ("periscope", "ask", "user/name", "photos/a.png", "?"): "user/name is not here, and the Hub isn't asked",
    ("periscope", "ask", "audio=runs/first", "photos/a.png", "?"): "is named as audio, but reads image",
    ("periscope", "ask", "runs/first", "nope.png", "What?"): "nope.png: there is no such file",
    ("periscope", "ask", "runs/first", "photos", "What?"): "photos is a folder; name files",
    ("periscope", "ask", "runs/first", "photos/a.txt", "?"): "neither a picture nor a sound nor a clip",
    (*ASK, "--lm", "nope"): "--lm nope is neither a folder that exists nor a hub id",
    (*ASK, "--encoder", "nope"): "no encoder is called 'nope'",
    ("periscope", "ask", "others/moved", "photos/a.png", "?"): "/nope isn't there; if it has moved, say where",
    ("eval.py", "--run", "others/moved", "--features", "hf://owner/name"): "owner/name is not here, and the Hub isn't",
    (*ASK, "--runtime", "llama.cpp"): "pass --lm lm/small.gguf, or leave --runtime llama.cpp out",
    (*ASK, "--runtime", "llama.cpp", "--lm", "lm/small.gguf"): "needs the package llama-cpp-python",
    ("periscope", "chat", "runs/nope"): f"runs/nope {NO_RUN}",
    ("periscope", "chat", "runs/first", "photos/a.png", "What is it?"): "takes files alone: type the question when",
    ("periscope", "caption", "runs/nope", "photos", "--out", "new.jsonl"): f"runs/nope {NO_RUN}",
    ("periscope", "caption", "runs/first", "nope", "--out", "new.jsonl"): "nope: there is no such file",
    ("periscope", "caption", "runs/first", "lm/empty", "--out", "new.jsonl"): "lm/empty holds no image that can be",
    ("periscope", "caption", "--with", "nope", "photos", "--out", "new.jsonl"): "--with nope is neither a folder",
    ("periscope", "serve", "runs/nope"): f"runs/nope {NO_RUN}",
    ("periscope", "push", "runs/nope", "owner/name"): f"runs/nope {NO_RUN}",
    ("periscope", "push", "runs/first", "nope"): "nope is no place to push to",
    ("periscope", "push", "runs/first", "owner/name"): "pushing to owner/name takes a token of the Hub",
    ("periscope", "push", "others/moved", "owner/name"): "pushing to owner/name takes a token of the Hub",
    ("eval.py", "--run", "runs/first", "--push", "owner/name"): "pushing to owner/name takes a token of the Hub",
    ("periscope", "export", "gguf", "runs/nope", "--out", "x"): f"runs/nope {NO_RUN}",
    ("periscope", "export", "gguf", "runs/first", "--out", "photos"): "photos exists, and nothing is overwritten",
    ("periscope", "export", "llava", "runs/first", "--out", "x"): "can't be exported to transformers: ",
    ("periscope", "export", "merged", "runs/first", "--out", "x"): "there is no LoRA to merge",
    ("periscope", "import", "epalm", "nope.pth", "--lm", "lm", "--features", "f", "--out", "x"): "nope.pth: there is",
    ("periscope", "features", "verify", "photos"): "photos isn't a feature set",
    ("periscope", "features", "merge", "x", "photos", "photos"): "photos isn't a feature set",
    ("periscope", "features", "recode", "features/photos", "x", "--store", "int9"): "--store int9 isn't possible",
    ("periscope", "features", "fetch", "nope"): "nope is no name of a feature set on the Hub",
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
    ("eval.py", "--run", "runs/first", "--push", "a/b", "--runtime", "llama.cpp"): "--runtime does nothing with --push",
    ("periscope", "ask", "hf://owner/name", "photos/a.png", "What?"): "named owner/name, here owner/name",
    ("periscope", "init", "nope"): "nope: there is no such folder or file",
    ("periscope", "init", "phots"): "there is no such folder or file; did you mean photos?",
    ("periscope", "init", "lm/empty"): "no media in ",
    ("periscope", "plan", "--encoder", "clp-l-336"): "plan counts encoders with short names; nearest: clip-l-336",
    ("periscope", "plan", "--adapter", "mpl16"): "or mlp16?",
    ("periscope", "plan", "--lm", "nope"): "--lm nope is neither a folder that exists nor a hub id",
    ("eval.py", "--run", "runs/first", "--loss-drop", "wrong"): "--loss-drop wrong: features/photos has no such texts",
    (*TRAIN, "--sweep", "lr=1e-3,-1"): "--sweep: --lr is -1.0; it must be at least 0",
    (*TRAIN, "--sweep", "adapter=mlp8,mpl16"): "or mlp16?",
    (*TRAIN, "--sweep", "adapter=epalm,epalm-shared"): "holds pooled, not layers",
    (*TRAIN[:3], "--sweep", "lm=lm,models/vit"): "models/vit is an encoder (vit), not a language model",
    (*TRAIN[:3], "--lm", "models/vit"): "an encoder (vit), not a language model; pass it to precompute.py --encoder",
    (*ASK, "--lm", "models/timm"): "(resnet50), not a language model; pass it to periscope precompute",
    ("precompute.py", "--data", "photos", "--encoder", "models/llama"): "is a language model, not an encoder; pas",
    ("precompute.py", "--data", "photos/a.txt"): "photos/a.txt is one file of words; name a folder or .zip of pictures",
    ("eval.py", "--run", "alone"): "alone is an adapter by itself, which doesn't say what to score it on",
    ("periscope", "ask", "alone", "photos/a.png", "?"): "encoder owner/vit isn't on this machine and HF_HUB_OFFLINE",
    ("periscope", "serve", "alone"): "encoder owner/vit isn't on this machine and HF_HUB_OFFLINE",
    ("eval.py", "--run", "runs/first/step-99"): "the last steps of runs/first are runs/first/steps/000001",
    ("train.py", "--resume", "runs/first/steps/9"): "the last steps of runs/first are runs/first/steps/000001",
    ("periscope", "features", "verify", "features"): "it holds features/clip, features/photos, features/wordless: na",
    ("train.py", "--features", "features", "--lm", "lm"): "it holds features/clip, features/photos, features/wordless",
    ("periscope", "train", "--features", "photos", "--lm", "lm"): "make one with periscope precompute",
    ("periscope", "plan", "--lm", "user/name"): "--lm user/name is not on this machine and huggingface.co can't be",
    ("periscope", "features", "push", "features/photos", "owner/name"): "pushing to owner/name takes a token of the",
    (*TRAIN, "--sweep", "lr=1e-3,3e-4", "--resume", "runs/first"): "a sweep goes on by its own command with its --name",
    ("precompute.py", "--data", "photos", "--encoder", "timm:models/llama"): "is a language model, not an encoder; pas",
    ("periscope", "ask", "runs/first", "bark.wav", "What?"): "bark.wav is a sound, and only pictures are read here",
    ("periscope", "ask", "photos/a.png", "runs/first", "What?"): "a.png is a file, not a run; the run comes first",
    ("periscope", "ask", "runs/first", "photos/b.png", "What?"): "there is no such file; did you mean photos/a.png?",
    ("python", "periscope.load('runs/nope')"): f"runs/nope {NO_RUN}; runs that are there: runs/first",
    ("python", "periscope.load('runs/first', runtime='llama.cpp')"): "reads GGUF files, and lm isn't one",
    ("python", "periscope.load('runs/first', lm='nope')"): "--lm nope is neither a folder",
    ("python", "from pathlib import Path; periscope.load('runs/first', lm=Path('nope'))"): "--lm nope is neither",
    ("python", "from pathlib import Path; periscope.load('runs/first', encoder=Path('nope'))"): "called 'nope'",
}  # fmt: skip


def make_home(home: Path) -> None:
    """Photos, two feature sets, a run with an adapter, and a language model's folder, as far as they are looked at."""
    (home / "photos").mkdir()
    Image.new("RGB", (8, 8), "red").save(home / "photos" / "a.png")
    (home / "photos" / "a.txt").write_text("a red square\n")
    photos = toy_sets.make(home / "features" / "photos", range(4), {"pooled": toy_sets.FEATURES["pooled"]})
    (home / "features" / "wordless").mkdir()
    counts = photos.manifest["counts"] | {"texts": 0}
    save_manifest(home / "features" / "wordless", photos.manifest | {"counts": counts})
    (home / "lm" / "empty").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "small.gguf"):
        (home / "lm" / name).write_text("{}")
    (home / "a.pth").touch()
    (home / "bark.wav").write_bytes(b"RIFF\x24\0\0\0WAVEfmt ")
    make_run(home / "runs" / "first", ["features/photos"], "test")
    alone = home / "runs" / "first" / "steps" / "000001" / "adapter" / "adapter.json"
    (home / "alone").mkdir()
    facts = json.loads(alone.read_text())
    facts["encoder"] |= {"library": "transformers", "id": "owner/vit"}
    (home / "alone" / "adapter.json").write_text(json.dumps(facts))
    make_run(home / "others" / "moved", ["features/photos", "features/gone"], "/nope")  # as its encoder and a set have


def make_run(path: Path, features: list[str], encoder: str) -> None:
    """A run with an adapter.json. encoder: its folder."""
    run = Run.create(path, config_from({"adapter": "mlp16", "features": features, "lm": "lm", "steps": 9}, "the test"))
    adapter = run.path / "steps" / "000001" / "adapter"
    adapter.mkdir(parents=True)
    AdapterConfig(
        format=FORMAT,
        adapter="mlp16",
        features=FeatureShape("pooled", 1, 24),
        hidden_size=32,
        tokens=16,
        soft_prompt=0,
        soft_prompt_mlp=False,
        output_norm=True,
        projector_hidden=0,
        projector_layers=0,
        projector_frames=0,
        soft_prompt_unit=False,
        injection=None,
        embedding_rms=0.1,
        lora=None,
        modality="image",
        encoder=toy_sets.ENCODER | {"id": encoder},
        storage=None,
        language_model=RecordedLanguageModel("lm", LanguageModelIdentity()),
        template=Template(),
        training={},
    ).write(adapter / "adapter.json")


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> dict[tuple[str, ...], tuple[str, str]]:
    """Command line -> (how it ended, what it printed), without torch, offline."""
    home = tmp_path_factory.mktemp("lines")
    make_home(home)
    for name, config in MODELS.items():
        (home / "models" / name).mkdir(parents=True)
        (home / "models" / name / "config.json").write_text(json.dumps(config))
    (home / "features" / "clip").mkdir()
    clip = {"name": "x", "library": "open_clip", "class": "VisionTransformer"}
    manifest = {"encoder": clip, "modality": "image", "features": {"patches": {}}}
    (home / "features" / "clip" / "manifest.json").write_text(json.dumps(manifest))
    lines = [*BEGINNINGS, *LISTS, *MISTAKES]
    call = [sys.executable, "-c", WITHOUT_TORCH, json.dumps(lines)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "cache"), "HOME": str(home)}
    done = subprocess.run(call, cwd=home, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, map(tuple, json.loads(done.stdout)), strict=True))


@pytest.mark.parametrize("line", BEGINNINGS, ids=" ".join)
def test_a_command_says_what_it_does_before_it_imports_torch(line, ends):
    end, said = ends[line]
    assert end == "torch is imported" and said.startswith(BEGINNINGS[line]), (end, said)


@pytest.mark.parametrize("line", LISTS, ids=" ".join)
def test_a_list_needs_no_torch(line, ends):
    end, said = ends[line]
    assert not end and LISTS[line] in said


@pytest.mark.parametrize("line", MISTAKES, ids=" ".join)
def test_a_mistake_is_refused_before_torch_is_imported(line, ends):
    end, said = ends[line]
    assert end.startswith("error: ") and MISTAKES[line] in end, (end, said)
