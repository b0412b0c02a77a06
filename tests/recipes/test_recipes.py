"""Every recipe in miniature, from media to answers, and in full size as far as counting goes.

What each should build is written here again, from the papers' tables, so that a slip in a recipe shows.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import finish, forks, processes
from safetensors.torch import load_file
from tiny_media import clip, greys, recordings, sine, sound

from periscope import eval as eval_script
from periscope import inference as live
from periscope import train as train_script
from periscope.adapters.io import checkpoint
from periscope.adapters.io.checkpoint import load_adapter
from periscope.adapters.lm.injection import Injection, map_layers
from periscope.adapters.model import Adapter
from periscope.adapters.projectors import FeatureShape, find_projector
from periscope.errors import AdapterError, PrecomputeError, RunError
from periscope.exports.gguf import MMPROJ, export_gguf, run_mmproj
from periscope.exports.ways import NEEDS
from periscope.inference import adapter_folder
from periscope.precompute.cli import main as precompute
from periscope.precompute.encoders.names import ENCODERS
from periscope.precompute.tiny_encoders import tiny_encoder
from periscope.recipes import ASPECTS, load_recipe, recipe_names
from periscope.shards.read import FeatureSet
from periscope.training.config import config_from
from periscope.training.memory.model_sizes import LANGUAGE_MODELS, full_config, skeleton
from periscope.training.memory.recipe_table import trained_size
from periscope.training.run import Run
from periscope.training.step import make_optimizer

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Expected:
    """What a recipe builds. `encoder` and `lm` are the classes of the tiny models, which are those of the true ones;
    `tiny` are the tokens of one medium in miniature, `tokens` in full size, `parameters` those trained in full size.
    """

    kind: str
    encoder: str
    lm: str
    projector: str
    tiny: int
    tokens: int
    parameters: int
    groups: tuple = (("projector", 0.0),)
    layer: int = -2
    delimiters: tuple[str, str] = ("", "")
    style: str = "plain"
    more: tuple[tuple[str, object], ...] = ()  # further fields of the template
    first: str = ""  # the recipe whose run it goes on from, in a second stage
    lora: int = 0  # parameters of the LoRA, or of the language model where it is trained, in full size


MARKS = ("<image>", "</image>")
EPALM = (("loss_on", "all"), ("soft_prompt", "first"))
EPALM_GROUPS = tuple((name, decay) for name in ("projector", "soft prompt") for decay in (0.0, 0.02))
ROWS = (("rows", 6), ("row_separator", "&&"), ("requests", "keep"), ("own_space", True), ("caption_form", "{}\n"))
EXPECTED = {
    "doubutsu-smol": Expected(
        *("pooled", "VisionTransformer", "MistralForCausalLM", "PooledMLP", 16, 16, 271_650_816), delimiters=MARKS
    ),
    "doubutsu-patch9": Expected(
        *("patches", "VisionTransformer", "MistralForCausalLM", "RasterGroups", 4, 64, 37_752_832),
        more=(("eos", False),),
    ),
    "doubutsu-llava": Expected(
        *("patches", "SiglipVisionModel", "MistralForCausalLM", "PatchLinear", 36, 729, 4_722_688), delimiters=MARKS
    ),
    # 63,019,008 of the resampler at width 1024, and Linear(1024, 4096)
    "anymal-image": Expected(
        *("patches", "VisionTransformer", "LlamaForCausalLM", "PerceiverResampler", 64, 64, 63_019_008 + 4_198_400)
    ),
    "anymal-audio": Expected(
        *("pooled", "ClapAudioModelWithProjection", "LlamaForCausalLM", "PooledLinear", 32, 32, 32 * 4096 * 513),
        layer=-1,
    ),
    "anymal-imu": Expected(
        *("pooled", "MotionEncoder", "LlamaForCausalLM", "PooledLinear", 32, 32, 32 * 4096 * 513), layer=-1
    ),
    "anymal-video": Expected(
        *("patches", "VisionTransformer", "LlamaForCausalLM", "PerceiverResampler", 32, 32, 46_200_832 + 4096)
    ),
    "epalm-image": Expected(
        *("layers", "VisionTransformer", "OPTForCausalLM", "LayerLinears", 1, 1, 24_949_760), EPALM_GROUPS, more=EPALM
    ),
    "epalm-image-large": Expected(
        *("layers", "VisionTransformer", "OPTForCausalLM", "SharedLinear", 1, 1, 4_239_360),
        *(EPALM_GROUPS[:2] + EPALM_GROUPS[3:],),  # no MLP, so no biases in its soft prompt
        more=EPALM,
    ),
    "epalm-audio": Expected(
        *("layers", "ASTModel", "OPTForCausalLM", "LayerLinears", 1, 1, 24_949_760), EPALM_GROUPS, more=EPALM
    ),
    "epalm-video": Expected(
        *("layers", "TimesformerModel", "OPTForCausalLM", "LayerLinears", 1, 1, 24_949_760), EPALM_GROUPS, more=EPALM
    ),
    "cobra": Expected(*("patches", "ModuleList", "MambaForCausalLM", "FusedMLP", 36, 729, 47_789_568)),
    "cobra-ldpv2": Expected(*("patches", "ModuleList", "MambaForCausalLM", "FusedLDP", 196, 196, 41_259_008)),
    "pythia-vl": Expected(
        *("patches", "Eva", "GPTNeoXForCausalLM", "PatchMLP", 36, 576, 9_180_160),
        *((("projector", 0.0),), -1, ("###", "###")),
        more=ROWS,
    ),
    "mamba-vl": Expected(
        *("patches", "Eva", "MambaForCausalLM", "PatchMLP", 36, 576, 9_180_160),
        *((("projector", 0.0),), -1, ("###", "###")),
        more=ROWS,
    ),
    "cobra-tune": Expected(
        *("patches", "ModuleList", "MambaForCausalLM", "FusedMLP", 36, 729, 47_789_568),
        (("projector", 0.0), ("projector", 0.1)),
        more=(("requests", "question"), ("own_space", True), ("question", "In: {}\nOut: ")),
        lora=2_768_345_600,
    ),
    "pythia-vl-tune": Expected(
        *("patches", "Eva", "GPTNeoXForCausalLM", "PatchMLP", 36, 576, 9_180_160),
        *((("projector", 0.0),), -1, ("###", "###")),
        more=ROWS,
        first="pythia-vl",
        lora=2_775_208_960,
    ),
    "mamba-vl-tune": Expected(
        *("patches", "Eva", "MambaForCausalLM", "PatchMLP", 36, 576, 9_180_160),
        *((("projector", 0.0),), -1, ("###", "###")),
        more=ROWS,
        first="mamba-vl",
        lora=2_768_345_600,
    ),
    "limber": Expected(*("patches", "VisionTransformer", "GPTJForCausalLM", "PatchLinear", 36, 256, 4_198_400)),
    "mapl": Expected(*("patches", "VisionTransformer", "GPTJForCausalLM", "Mapper", 32, 32, 3_431_680), layer=-1),
    "clipcap": Expected(*("pooled", "VisionTransformer", "GPT2LMHeadModel", "ClipCapMLP", 10, 10, 31_468_800)),
    "llava-1.5": Expected(
        *("patches", "VisionTransformer", "LlamaForCausalLM", "PatchMLP", 36, 576, 20_979_712),
        more=(("captions", "all"), ("end", "\n")),
    ),
    # of rank 64 on Llama-7B as QLoRA counts it, and twice that
    "anymal-instruct": Expected(
        *("patches", "VisionTransformer", "LlamaForCausalLM", "PerceiverResampler", 64, 64, 67_217_408),
        (("lora", 0.0), ("projector", 0.0)),
        more=(("media", "after"), ("marks", "inner"), ("question", "[INST] {} [/INST] ")),
        first="anymal-image",
        lora=159_907_840,
    ),
    "llava-1.5-tune": Expected(
        *("patches", "VisionTransformer", "LlamaForCausalLM", "PatchMLP", 36, 576, 20_979_712),
        (("lora", 0.0), ("projector", 0.0)),
        more=(("question", "USER: <image>\n{} ASSISTANT: "), ("between", ""), ("requests", "question")),
        first="llava-1.5",
        lora=319_815_680,
    ),
    # with the output norm's gain, the one number more
    "first": Expected(
        *("patches", "SiglipVisionModel", "LlamaForCausalLM", "PixelShuffle", 9, 49, 4 * 768 * 960 + 1),
        delimiters=MARKS,
    ),
    "modern": Expected(
        *("patches", "SiglipVisionModel", "Qwen3ForCausalLM", "GridWindows", 4, 81, 2560 * (9 * 1152 + 1) + 1),
        delimiters=MARKS,
        style="chat",
    ),
    "lmstudio": Expected(
        *("patches", "SiglipVisionModel", "Qwen3ForCausalLM", "PatchMLP", 36, 196, 2560 * (769 + 2561)), style="chat"
    ),
}
# The recipes of the demo are run by its own tests.
NAMED = [name for name in recipe_names() if not name.startswith("demo")]


def test_every_recipe_is_expected():
    assert set(EXPECTED) == set(NAMED)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """So small tensors gain nothing from more, and threads wait for one another by spinning."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Eight pictures, sounds and clips, each with a folder of its own and a caption or a question each."""
    home = tmp_path_factory.mktemp("recipes")
    for kind in ("image", "audio", "video"):
        folder, lines = home / kind, []
        folder.mkdir()
        for i in range(8):
            if kind == "image":
                pixels = np.random.default_rng(i).integers(0, 256, (60, 80, 3), dtype=np.uint8)
                name = f"{i}.png"
                Image.fromarray(pixels).save(folder / name)
            elif kind == "audio":
                name = f"{i}.wav"
                (folder / name).write_bytes(sound(sine(200 + 50 * i, 1.0, 16000), 16000))
            else:
                name = f"{i}.mp4"
                (folder / name).write_bytes(clip(greys(16)[i:] + greys(16)[:i]))
            turns = [{"role": "user", "content": "What colour is it?"}] * (i % 2)
            turns = [*turns, {"role": "assistant", "content": "a small blue star" if i % 2 else "a red circle"}]
            lines.append({"id": f"t{i}", "media": [name], "turns": turns, "split": "heldout" if i < 3 else "train"})
        (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recordings(home / "imu", 8)
    return home


def modality(recipe) -> str:
    return recipe.precompute.get("demo", ENCODERS[recipe.precompute["encoder"]].modality)


@pytest.fixture(scope="module")
def features(media):
    """A function from a recipe to its tiny feature set, made once for all recipes that encode alike."""
    made: dict[str, Path] = {}

    def of(recipe) -> Path:
        alike = json.dumps(recipe.precompute, sort_keys=True)
        if alike not in made:
            made[alike] = media / f"features-{len(made)}"
            flags = ["--data", str(media / modality(recipe)), "--out", str(made[alike])]
            call = ["--recipe", recipe.name, "--tiny", "--device", "cpu", "--workers", "1", *flags]
            precompute(args=call)
        return made[alike]

    return of


@pytest.fixture
def in_workshop(media, monkeypatch):
    monkeypatch.chdir(media)
    monkeypatch.setenv("XDG_CACHE_HOME", str(media / "cache"))

    def call(script, *flags):
        monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, flags), "--device", "cpu"])
        script.main()

    return call


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_in_miniature_from_media_to_answers(name, media, features, in_workshop):
    recipe, expected = load_recipe(name), EXPECTED[name]
    encoded = features(recipe)
    start = ()
    if expected.first:
        if not (media / "runs" / expected.first / "last").exists():
            short = ("--features", encoded, "--steps", "2", "--name", expected.first)
            in_workshop(train_script, "--recipe", expected.first, "--tiny", *short)
        start = ("--init", f"runs/{expected.first}")
    flags = ("--tiny", "--features", encoded, "--steps", "2", *start)
    in_workshop(train_script, "--recipe", name, *flags, "--name", name)
    # Prompts one by one: an empty one (a caption without a medium) would hide behind the padding of others.
    in_workshop(eval_script, "--run", f"runs/{name}", "--max-new-tokens", "3", "--batch", "1")
    run = Run.open(Path("runs") / name)
    assert json.loads((run.path / "eval.json").read_text())["n"] == 3
    assert all(np.isfinite(row["loss"]) for row in run.metrics() if "loss" in row)

    manifest = FeatureSet(encoded).manifest
    encoder = manifest["encoder"]
    assert list(manifest["features"]) == recipe.precompute["kinds"] and encoder["class"] == expected.encoder
    assert encoder["layer"]["patches"] == expected.layer and manifest["modality"] == modality(recipe)
    if expected.kind == "layers":
        assert manifest["features"]["layers"]["shape"] == [6, 32]

    model, config = live.load_adapted(run.path)
    eyes, stored = live.load(run.path), FeatureSet(encoded)
    medium = media / modality(recipe) / stored.info(stored.keys[0])["origin"]
    medium = medium if medium.exists() else medium.parent  # a recording that is one window
    torch.testing.assert_close(eyes.features(medium), stored.read(stored.keys[0], expected.kind), rtol=5e-3, atol=5e-3)
    assert isinstance(eyes.ask(medium, "What colour is it?", 3), str)
    assert type(model.lm.model).__name__ == expected.lm
    assert type(model.adapter.projector).__name__ == expected.projector and model.adapter.tokens == expected.tiny
    assert config.tokens == expected.tiny
    template = model.prompt.template
    assert (template.style, template.delimiters) == (expected.style, expected.delimiters)
    usual = {"eos": True, "loss_on": "answer", "row_separator": "", "rows": 0, "soft_prompt": "before"}
    wanted = usual | dict(expected.more)
    assert {field: getattr(template, field) for field in wanted} == wanted
    groups = make_optimizer(model.trained(), run.config).param_groups
    assert sorted((group["name"], group["weight_decay"]) for group in groups) == sorted(expected.groups)
    assert model.adapter.output_norm == (name in ("first", "modern"))
    assert model.loss_mean == "token"  # how to train, which answering needn't know
    assert run.config.optim.loss_mean == ("sample" if name.startswith(("pythia-vl", "mamba-vl")) else "token")
    assert (
        (config.language_model.folder == "lm") == run.config.tune.train_lm == name.endswith(("cobra-tune", "vl-tune"))
    )
    if expected.kind == "layers":
        assert (model.adapter.injection.start, model.adapter.injection.end) == (1, 13)
        assert model.adapter.soft_tokens == 10


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_in_full_size(name):
    """Parameters and tokens, counted on the meta device; the shapes that a recipe states are its encoder's."""
    recipe, expected = load_recipe(name), EXPECTED[name]
    row, full = ENCODERS[recipe.precompute["encoder"]], recipe.full
    shape = row.features()[expected.kind]["shape"]
    frames = recipe.precompute.get("frames", 1) if row.modality == "image" else 1
    with_cls = recipe.precompute.get("cls_token", False)
    grid = row.grid if expected.kind == "patches" and not with_cls else None
    assert full["width"] == shape[-1] and full["tokens"] == (shape[0] * frames + with_cls if len(shape) == 2 else 1)
    assert full.get("grid") == ([grid[0] * frames, grid[1]] if grid else None)
    assert recipe.precompute["kinds"][0] == expected.kind == find_projector(recipe.train["adapter"])[0].kind
    lm = skeleton(full_config(recipe.train["lm"]))
    assert type(lm).__name__ == expected.lm
    config = config_from(recipe.train, name)
    shape = FeatureShape(expected.kind, full["tokens"], full["width"], tuple(full["grid"]) if grid else None)
    injection = None
    if expected.kind == "layers":
        layers = map_layers(lm.config.num_hidden_layers, full["tokens"])
        assert (layers.start, layers.end) == (19, 31)
        assert [layers.block_of(layer) for layer in (18, 19, 20, 29, 30, 31)] == [None, 0, 0, 5, 5, None]
        injection = Injection(lm.config.hidden_size, layers.start, layers.end, compat=False)
    form = {key: getattr(config.projector, key)
            for key in ("soft_prompt", "soft_prompt_mlp", "output_norm", "projector_hidden")}  # fmt: skip
    with torch.device("meta"):
        adapter = Adapter(
            config.adapter,
            shape,
            lm.get_input_embeddings().weight.shape[1],
            0.01,
            **form,
            projector_layers=config.projector.projector_layers,
            projector_frames=config.projector.projector_frames,
            injection=injection,
        )
    assert sum(parameter.numel() for parameter in adapter.parameters()) == expected.parameters
    assert trained_size(recipe, adapter, lm) == expected.parameters + expected.lora
    assert adapter.tokens == expected.tokens


# Published totals: the models' own cards, and for OPT research on eP-ALM.
TOTALS = {
    "facebook/opt-350m": 331_196_416,
    "facebook/opt-2.7b": 2_651_596_800,
    "facebook/opt-6.7b": 6_658_473_984,
    "NousResearch/Nous-Hermes-2-Mistral-7B-DPO": 7_241_748_480,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "lmsys/vicuna-7b-v1.5": 6_738_415_616,
    "state-spaces/mamba-2.8b-hf": 2_768_345_600,
    "EleutherAI/pythia-2.8b": 2_775_208_960,
    "EleutherAI/gpt-j-6b": 6_050_882_784,
    "openai-community/gpt2": 124_439_808,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B-Instruct-2507": 4_022_468_096,
}


def test_the_language_models_have_their_published_sizes():
    assert set(TOTALS) == set(LANGUAGE_MODELS)
    for name, total in TOTALS.items():
        assert sum(p.numel() for p in skeleton(full_config(name)).parameters()) == total, name


@pytest.mark.parametrize("stage", ["", "-tune"])
def test_pythia_and_mamba_differ_in_one_name(stage):
    pythia, mamba = load_recipe(f"pythia-vl{stage}"), load_recipe(f"mamba-vl{stage}")
    assert pythia.precompute == mamba.precompute
    assert pythia.full | {"trained": 0} == mamba.full | {"trained": 0}, "what is trained is counted with the lm"
    differ = {key for key in pythia.train | mamba.train if pythia.train.get(key) != mamba.train.get(key)}
    assert differ == {"lm"}


def test_a_recipe_says_where_it_comes_from():
    for name in NAMED:
        about = load_recipe(name).about
        assert {"title", "paper", "data", "tasks", "scores", "differs"} == set(about), name
        assert len(about["title"]) < 100 and set(about["differs"]) <= set(ASPECTS), name
        assert all(" " in why and not why.endswith(".") for why in about["differs"].values()), name
        rescaled = "scaled before the first step" in about["differs"].get("projector", "")
        config = config_from(load_recipe(name).train, name)
        paper = not about["paper"].startswith("none") and not EXPECTED[name].first
        assert rescaled == (paper and not config.adapter.startswith("epalm")), name


def test_flags_override_a_recipe_and_a_wrong_field_is_named(tmp_path, media, in_workshop, features, capsys):
    encoded = features(load_recipe("llava-1.5"))
    in_workshop(
        *(train_script, "--recipe", "llava-1.5", "--tiny", "--features", encoded, "--name", "mine"),
        *("--steps", "1", "--adapter", "window3", "--delimiters", "a", "b", "--eos", "False"),
    )
    config = Run.open(Path("runs/mine")).config
    assert (config.adapter, config.prompt.delimiters, config.prompt.eos, config.lr) == (
        "window3",
        ("a", "b"),
        False,
        1e-3,
    )
    in_workshop(
        *(
            train_script,
            "--recipe",
            "doubutsu-patch9",
            "--tiny",
            "--features",
            encoded,
            "--steps",
            "1",
            "--name",
            "same",
        )
    )
    said = capsys.readouterr().out
    assert "is meant for" not in said and "can be exported to: vLLM\nnot to transformers: adapter group9" in said
    in_workshop(train_script, "--recipe", "limber", "--tiny", "--features", encoded, "--steps", "1", "--name", "other")
    assert "note: limber is meant for features of clip-l, and these come from clip-l-336" in capsys.readouterr().out
    (wrong := tmp_path / "wrong.toml").write_text('[precompute]\nencodr = "clip-l"\n')
    with pytest.raises(PrecomputeError, match="sets encodr"):
        precompute(args=["--recipe", str(wrong), "--device", "cpu"])


def test_what_the_lmstudio_recipe_trains_is_exported_as_it_is(media, features, in_workshop):
    """To llama.cpp, with what `--for` sets, and nothing to note. Its graph makes of a picture what was trained on."""
    recipe = load_recipe("lmstudio")
    for needs, table in ((NEEDS["llama.cpp"].precompute, recipe.precompute), (NEEDS["llama.cpp"].train, recipe.train)):
        assert all(json.dumps(table[option]) == json.dumps(value) for option, value in needs.items())
    encoded, run = features(recipe), Path("runs/lmstudio")
    if not (run / "last").exists():
        run, flags = Path("runs/leaving"), ("--recipe", "lmstudio", "--tiny", "--features", encoded, "--steps", "1")
        in_workshop(train_script, *flags, "--name", run.name)
    folder = adapter_folder(run)
    assert export_gguf(folder, media / "mmproj") == []
    stored, (adapter, _) = FeatureSet(encoded), load_adapter(folder)
    for key in stored.keys[:3]:
        image = Image.open(media / "image" / stored.info(key)["origin"])
        ours = adapter(stored.read(key, "patches")[None])[0].detach()
        theirs = run_mmproj(media / "mmproj" / MMPROJ, image)
        assert torch.cosine_similarity(ours, theirs, dim=-1).min() > 0.9999


def test_groups_of_the_optimizer_resume_to_the_same_bits(media, features, in_workshop):
    """eP-ALM's four groups: a state put to another parameter than its own would show at the end."""
    encoded, recipe = features(load_recipe("epalm-image")), ("--recipe", "epalm-image", "--tiny")
    steps = ("--steps", "4", "--save-every", "2", "--batch", "3", "--lr", "1e-2", "--soft-prompt-lr", "1e-2")
    in_workshop(train_script, *recipe, "--features", encoded, *steps, "--name", "groups")
    run = Path("runs/groups")
    whole = load_file(run / "steps" / "000004" / "adapter" / "adapter.safetensors")
    before = load_file(run / "steps" / "000002" / "adapter" / "adapter.safetensors")
    shutil.rmtree(run / "steps" / "000004")
    for pointer in ("last", "best"):
        (run / pointer).write_text("000002\n")
    in_workshop(train_script, "--resume", run)
    again = load_file(run / "steps" / "000004" / "adapter" / "adapter.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)
    assert not any(torch.equal(whole[key], before[key]) for key in whole)


@forks
@pytest.mark.parametrize("name", ["mamba-vl-tune", "pythia-vl-tune"])
def test_a_language_model_trained_by_recipe_goes_on_after_a_kill_in_the_same_bits(
    name, media, features, in_workshop, monkeypatch
):
    """Killed in the middle of its second checkpoint, when the language model is written and the rest isn't."""
    encoded, first = features(load_recipe(name)), name.removesuffix("-tune")
    if not (media / "runs" / first / "last").exists():
        in_workshop(train_script, "--recipe", first, "--tiny", "--features", encoded, "--steps", "2", "--name", first)
    start = ("--recipe", name, "--tiny", "--features", encoded, "--init", f"runs/{first}", "--batch", "3")
    steps = ("--steps", "4", "--save-every", "2", "--eval-every", "4", "--lr", "1e-3", "--lm-lr", "1e-3")
    in_workshop(train_script, *start, *steps, "--name", f"{name}-whole")
    whole, killed = (Path("runs") / f"{name}-{end}" for end in ("whole", "killed"))

    def dies(_: int) -> None:
        save, saved = checkpoint.save_language_model, []

        def save_and_die(folder, lm) -> None:
            save(folder, lm)
            saved.append(folder)
            if len(saved) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(checkpoint, "save_language_model", save_and_die)
        in_workshop(train_script, *start, *steps, "--name", killed.name)

    assert finish(processes(dies, 1)) == [-signal.SIGKILL]
    assert (killed / "last").read_text() == "000002\n" and (killed / "steps/000004.partial/adapter/lm").is_dir()
    in_workshop(train_script, "--resume", killed)
    at_two, ends = load_all(killed / "steps/000004"), load_all(whole / "steps/000004")
    assert at_two.keys() == ends.keys() and all(torch.equal(at_two[file], ends[file]) for file in ends)
    losses = [[row["loss"] for row in Run.open(path).metrics() if "loss" in row] for path in (whole, killed)]
    assert losses[0] == losses[1] and len(losses[0]) == 4 and not list(killed.glob("steps/*.partial"))
    tuned, began = (live.load_adapted(path)[0].lm.model.state_dict() for path in (whole, f"runs/{first}"))
    moved = [key for key, value in tuned.items() if not torch.equal(value, began[key])]
    assert len(moved) == len(tuned), "all of its weights were trained"
    assert [path.name for path in (whole / "steps").iterdir()] == ["000004"], "earlier language models aren't kept"


def load_all(step: Path) -> dict:
    """Every tensor of a checkpoint, by file and name."""
    files = {path.relative_to(step): load_file(path) for path in step.rglob("*.safetensors")}
    return {(str(file), name): value for file, tensors in files.items() for name, value in tensors.items()}


def test_without_data_a_recipe_encodes_the_demos_media_of_its_kind(media, in_workshop, monkeypatch):
    drawn = []

    def demo(kind: str, folder: Path, seed: int, limit: int) -> Path:
        drawn.append((kind, folder.name, seed, limit))
        return media / kind

    monkeypatch.setattr("periscope.precompute.cli.make_demo", demo)
    precompute(["--recipe", "epalm-audio", "--tiny", "--device", "cpu", "--limit", "6"])
    found = FeatureSet("features/epalm-audio-tiny").manifest
    assert drawn == [("audio", "seed-0-audio", 0, 6)] and found["counts"]["media"] == 6
    assert found["encoder"]["name"] == "tiny ast" and list(found["features"]) == ["layers"]
    # train finds that set by the encoder that the recipe names, and no other
    in_workshop(train_script, "--recipe", "epalm-audio", "--tiny", "--steps", "1", "--name", "found")
    assert Run.open(Path("runs/found")).config.features[0] == "features/epalm-audio-tiny"
    with pytest.raises(RunError, match="was made by ast, which this recipe reads"):
        in_workshop(train_script, "--recipe", "epalm-audio", "--name", "nothing")
    with pytest.raises(RunError, match="was made by a tiny clip-b-32"):
        in_workshop(train_script, "--recipe", "clipcap", "--tiny", "--name", "nothing")


def test_what_a_recipe_cannot_have_is_one_sentence(media, in_workshop, features):
    encoded = features(load_recipe("clipcap"))
    call = (train_script, "--tiny", "--features", encoded, "--name", "refused", "--lm")
    with pytest.raises(AdapterError, match=r"--row-separator needs a token for each patch of a grid"):
        in_workshop(*call, "openai-community/gpt2", "--adapter", "mlp4", "--row-separator", "&&")
    with pytest.raises(RunError, match="--tiny doesn't know what nobody/nothing is"):
        in_workshop(*call, "nobody/nothing", "--adapter", "mlp4")
    with pytest.raises(PrecomputeError, match="--tiny has no small model of the class of demo"):
        tiny_encoder("demo", media / "cache")


def test_the_list_of_recipes(in_workshop, capsys):
    in_workshop(train_script, "--list")
    said = capsys.readouterr().out
    assert all(name in said for name in EXPECTED) and "24,949,760" in said and "clip-l-336" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_as_a_person_runs_it(name, media, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(media / "cache"), "HF_HUB_OFFLINE": "1"}
    data = media / modality(load_recipe(name))
    for call in (
        ("precompute.py", "--recipe", name, "--tiny", "--data", str(data)),
        ("train.py", "--recipe", name, "--tiny", "--steps", "2", "--name", "it"),
        ("eval.py", "--max-new-tokens", "3"),
    ):
        command = [sys.executable, str(ROOT / call[0]), *call[1:], "--device", "cpu"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert (tmp_path / "runs" / "it" / "eval.json").is_file()
