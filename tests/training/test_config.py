"""The command line of train.py and the tables it shares with recipes and config.toml, earlier spellings included."""

import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from toy_runs import run_at, save_step

from periscope.adapters.projectors import PROJECTORS, find_projector
from periscope.errors import RunError
from periscope.flags import flat_fields
from periscope.recipes import load_recipe, recipe_names
from periscope.training.config import (
    ADAPTERS,
    RENAMED,
    TrainConfig,
    TrainFlags,
    config_from,
    option_names,
    parse_request,
)
from periscope.training.resolve import resumed
from periscope.training.run import Run

ROOT = Path(__file__).parents[2]
# config.toml as an earlier version wrote it: option by option, with names that have changed since.
EARLIER = """init = ""
adapter = "mlp16"
soft_prompt = 0
soft_prompt_place = "before"
soft_prompt_mlp = false
soft_prompt_lr = 0.0
output_norm = true
projector_hidden = 1024
projector_layers = 0
inject_layers = []
epalm_compat = false
start_words = " top-left top,,"
warm_start = 0
token_noise = 0.3
media_place = "before"
row_separator = ""
box_decimals = 2
eos = true
loss_on = "answer"
loss_mean = "token"
precision = "auto"
lora = ""
lora_lr = 0.0002
freeze_projector = 0
rerun_layers = 2
batch = 24
micro_batch = 0
lr = 0.001
warmup = 0.03
schedule = "cosine"
min_lr = 0.0
weight_decay = 0.0
clip = 0.5
texts_per_medium = 0
disk = "ssd"
limit = 0
track = []
seed = 0
lm = "demo/backbones/lm"
template = "plain"
delimiters = ["Scene:", "\\n"]
steps = 100
features = "features/demo"
eval_every = 50
save_every = 50
"""


def test_earlier_spellings_of_flags_still_work():
    given = parse_request(["--rerun-layers", "1", "--clip", "0.5", "--eos", "False", "--output-norm", "False"]).flags
    assert given == {"gradient_checkpointing": 1, "grad_clip": 0.5, "eos": False, "output_norm": False}
    assert parse_request(["--rerun_layers=2", "--eos", "True"]).flags == {"gradient_checkpointing": 2, "eos": True}
    now = parse_request(["--gradient-checkpointing", "1", "--grad-clip", "0.5", "--no-eos", "--no-output-norm"])
    assert now.flags == given


def test_earlier_spellings_are_not_shown(capsys):
    text = help_text(capsys)
    assert not any(re.search(rf"--{old.replace('_', '-')}\b", text) for old in RENAMED)


def test_earlier_spellings_in_a_recipe_still_work(tmp_path):
    path = tmp_path / "earlier.toml"
    path.write_text("[train]\nrerun_layers = 1\nclip = 0.5\n[adapter.mlp4]\nclip = 0.25\n")
    recipe = load_recipe(str(path))
    table = recipe.train_options(option_names(), "mlp16", RENAMED)
    assert table == {"gradient_checkpointing": 1, "grad_clip": 0.5}
    assert recipe.train_options(option_names(), "mlp4", RENAMED)["grad_clip"] == 0.25
    assert config_from(recipe.train, str(path)).model.gradient_checkpointing == 1


def test_a_run_of_an_earlier_version_opens_and_resumes(tmp_path):
    run = run_at(tmp_path / "r")
    (run.path / "config.toml").write_text(EARLIER)
    config = Run.open(run.path).config
    assert config.features == ("features/demo",) and config.prompt.delimiters == ("Scene:", "\n")
    assert (config.model.gradient_checkpointing, config.optim.grad_clip) == (2, 0.5)
    renamed = {RENAMED.get(name, name): value for name, value in tomllib.loads(EARLIER).items()}
    table = run.config_table()
    assert {name: table[name] for name in renamed} == renamed, "no value is lost or changed"
    added = {name: table[name] for name in table if name not in renamed}
    assert added == {
        **{"soft_prompt_unit": False, "projector_frames": 0, "caption_form": "", "caption_requests": "question"},
        **{"captions": "requested", "media_marks": "all", "preamble": "", "between_turns": "\n", "own_space": False},
        **{"answer_end": "", "train_lm": False, "lm_lr": 2e-5, "optimizer": "adamw"},
        **{"feature_shift": 0.0},
    }, "what is new does what was done before"
    save_step(run, 50)
    assert resumed(run, {"grad_clip": 0.5, "features": "features/demo"}) == config
    with pytest.raises(RunError, match=r"was started with grad-clip 0.5, not 1.0"):
        resumed(run, {"grad_clip": 1.0})


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_survives_as_a_table(name):
    recipe = load_recipe(name)
    for adapter in ("mlp16", *recipe.adapter):
        config = config_from(recipe.train_options(option_names(), adapter, RENAMED), str(recipe.path))
        assert config_from(config.to_flat(), "the table") == config


def test_options_of_one_modality_survive_as_a_table():
    config = config_from({"adapter": "mlp2", "audio": {"adapter": "linear", "soft_prompt": 3}}, "the test")
    assert config.by_modality == {"audio": {"adapter": "linear", "soft_prompt": 3}}
    assert config_from(config.to_flat(), "the table") == config
    assert config.of_modality("audio").adapter == "linear" and config.of_modality("image").adapter == "mlp2"


def test_several_feature_sets_are_a_list_and_one_is_a_string():
    several = TrainConfig(features=("a=0.7", "b=0.3"))
    assert several.to_flat()["features"] == ["a=0.7", "b=0.3"]
    assert replace(several, features=("a",)).to_flat()["features"] == "a"
    assert config_from({"features": "a"}, "the test") == config_from({"features": ["a"]}, "the test")


@pytest.mark.parametrize(
    "table, sentence",
    [
        ({"grad_clp": 1.0}, "runs/x/config.toml sets grad_clp, which is no option; did you mean grad_clip?"),
        ({"batch": "many"}, "runs/x/config.toml sets batch to 'many': Expected int | null, got str"),
        ({"schedule": "step"}, "runs/x/config.toml sets schedule to 'step': Invalid enum value 'step'"),
        ({"delimiters": ["a"]}, "runs/x/config.toml sets delimiters to ['a']: Expected array of length 2, got 1"),
        ({"warmup": -0.1}, "runs/x/config.toml: --warmup is -0.1; it must be at least 0"),
    ],
)
def test_a_damaged_table_gets_one_sentence(table, sentence):
    with pytest.raises(RunError) as error:
        config_from(table, "runs/x/config.toml")
    assert str(error.value) == sentence


def test_every_option_has_one_name_and_no_earlier_one():
    names = list(flat_fields(TrainFlags))  # raises TypeError for a name in two groups
    flags = [name.rstrip("_").replace("_", "-") for name in names]
    assert len(set(flags)) == len(flags)
    assert not set(RENAMED) & set(names) and set(RENAMED.values()) <= set(names)


def help_text(capsys) -> str:
    with pytest.raises(SystemExit) as left:
        parse_request(["--help"])
    assert left.value.code == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)


def test_help_lists_every_adapter_with_the_features_it_reads(capsys):
    registry: dict[str, set[str]] = {}
    for pattern, entry in PROJECTORS.items():
        registry.setdefault(entry.kind, set()).add(re.sub(r"\{.*\}", "K", pattern))
    assert {kind: set(names.split(", ")) for kind, names in ADAPTERS.items()} == registry
    text = " ".join(help_text(capsys).split())
    for kind, names in ADAPTERS.items():
        assert re.search(rf"{kind} \([^)]*\): {re.escape(names)}", text)
        for name in names.split(", "):
            assert parse_request(["--adapter", name.replace("K", "4")]).flags == {"adapter": name.replace("K", "4")}
            assert find_projector(name.replace("K", "4"))[0].kind == kind


@pytest.mark.parametrize(
    ("started", "train"), [("train.py", "python train.py"), ("periscope train", "periscope train")]
)
def test_help_begins_with_the_common_flags_and_prints_examples_line_by_line(capsys, monkeypatch, started, train):
    monkeypatch.setattr(sys, "argv", [started])
    text = help_text(capsys)
    flags = re.findall(r"^│ (--[a-z-]+)", text, re.M)
    common = {"--adapter", "--features", "--lm", "--recipe", "--name", "--resume", "--init", "--lr"}
    assert common <= set(flags[:14])
    assert f"\n  {train} --resume runs/first\n" in text and "(default: None)" not in text


def test_help_imports_no_torch():
    code = (
        "import sys, runpy\nsys.argv = ['train.py', '--help']\n"
        "try:\n    runpy.run_module('periscope.train', run_name='__main__')\nexcept SystemExit as left:\n"
        "    assert not left.code\nassert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
