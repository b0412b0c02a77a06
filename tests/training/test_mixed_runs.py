"""Training on several feature sets: one projector per modality, exact resume, what is refused."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import finish, forks, processes
from processes import train as train_with
from safetensors.torch import load_file

from periscope.errors import AdapterError, RunError
from periscope.exports.__main__ import merged as merge_lora
from periscope.shards.features import encode_fp16
from periscope.shards.write import SetWriter, make_key

WORDS = ["a red circle", "the quick brown fox", "blue", "in the top left, in the centre"]


def feature_set(folder, modality, width, fingerprint, count=24, first=0, kind="pooled"):
    """A feature set on the disk: captions of `count` media, half of them with a question too, and as many held out as
    fall so; and a few texts without a medium.
    """
    shape = {"pooled": [width], "patches": [4, width]}[kind]
    described = {"name": f"{modality}-{fingerprint}", "fingerprint": fingerprint * 64}
    with SetWriter(folder, modality, described, {kind: {"shape": shape, "dtype": "float16"}}) as writer:
        with writer.shard() as shard:
            for number in range(first, first + count):
                generator = torch.Generator().manual_seed(number)
                tensor = encode_fp16(torch.randn(*shape, generator=generator))
                origin = f"{number}.{modality}"
                info = {"modality": modality, "origin": origin, "sha256": f"{number:064x}"}
                shard.add(make_key(origin), {kind: tensor}, info)
        hashes = {sample.key: sample.sha256 for sample in writer.samples()}
        rows = []
        for i, key in enumerate(hashes):
            turns = [{"role": "assistant", "content": WORDS[i % 4]}]
            split = "heldout" if i % 6 == 5 else "train"
            row = {"id": key, "media": [key], "turns": turns, "split": split, "meta": {}}
            rows += [row, row | {"id": f"{key}-q", "turns": [{"role": "user", "content": "What is it?"}, *turns]}]
        talk = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "the lazy dog"}]
        rows += [{"id": f"talk{i}", "media": [], "turns": talk * 2, "split": "train", "meta": {}} for i in range(3)]
        held = {row["media"][0] for row in rows if row["split"] == "heldout"}
        jpeg = io.BytesIO()
        Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
        writer.finish(rows, held, lambda keys: ((key, jpeg.getvalue()) for key in keys), [])


@pytest.fixture(scope="module")
def home(tmp_path_factory, language_model_folder):
    home = tmp_path_factory.mktemp("mixes")
    feature_set(home / "a", "image", 6, "1")
    feature_set(home / "b", "image", 6, "1", count=12, first=100)
    feature_set(home / "c", "image", 6, "2")
    feature_set(home / "wide", "image", 7, "1")
    feature_set(home / "sounds", "audio", 5, "3", count=16)
    feature_set(home / "rows", "audio", 5, "4", kind="patches")
    (home / "lm").symlink_to(language_model_folder("llama"))
    return home


@pytest.fixture
def train(home, monkeypatch):
    """train.py in this process, on one thread."""
    from periscope import console
    from periscope import train as script

    def run(*arguments, fails=""):
        monkeypatch.chdir(home)
        words = [*map(str, arguments), *(() if "--resume" in arguments else ("--lm", "lm"))]
        monkeypatch.setattr(sys, "argv", ["train.py", *words, "--device", "cpu"])
        if not fails:
            return script.main()
        with pytest.raises(SystemExit) as left:
            console.run(script.main)
        assert fails in str(left.value.code)

    return run


def weights_of(run, adapter="adapter"):
    return load_file(run / "steps" / (run / "last").read_text().strip() / adapter / "adapter.safetensors")


def metrics_of(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: row[name] for name in ("step", "loss", "heldout", "sets") if name in row} for row in rows]


LENGTH = ("--steps", "12", "--batch", "8", "--eval-every", "4", "--save-every", "3", "--token-noise", "0.2")
OPTIONS = ("--adapter", "mlp2", "--soft-prompt", "2", *LENGTH)
BOTH = ("a=1", "sounds=2", "b=1")


@pytest.fixture
def both_run(home, train, monkeypatch):
    """A run on pictures and sounds, in the current folder."""
    monkeypatch.chdir(home)
    run = home / "runs" / "adapter-audio-adapter-image-whole"
    if not run.exists():
        train("--features", *BOTH, *OPTIONS, "--name", run.name)
    return run


@pytest.mark.parametrize(
    ("features", "folders"), [(("a=0.7", "b=0.3"), ["adapter"]), (BOTH, ["adapter-audio", "adapter-image"])]
)
def test_a_mixed_run_that_was_stopped_ends_in_the_same_bits(features, folders, home, train, monkeypatch):
    from periscope.training import step as training_step

    name = "-".join(folders)
    if not (home / "runs" / f"{name}-whole").exists():
        train("--features", *features, *OPTIONS, "--name", f"{name}-whole")
    whole, taken = training_step.take_step, []

    def stops(*arguments):
        if len(taken) == 7:
            raise RunError("pulled the plug")
        taken.append(0)
        return whole(*arguments)

    monkeypatch.setattr(training_step, "take_step", stops)
    train("--features", *features, *OPTIONS, "--name", f"{name}-cut", fails="pulled the plug")
    monkeypatch.setattr(training_step, "take_step", whole)
    train("--resume", f"runs/{name}-cut")
    runs = [home / "runs" / f"{name}-{end}" for end in ("whole", "cut")]
    assert sorted(path.name for path in (runs[0] / "steps" / "000012").glob("adapter*")) == folders
    for folder in folders:
        one, two = (weights_of(run, folder) for run in runs)
        assert all(torch.equal(one[key], two[key]) for key in one) and one.keys() == two.keys()
    assert metrics_of(runs[0]) == metrics_of(runs[1])
    looks = [row["sets"] for row in metrics_of(runs[0]) if "sets" in row]
    assert len(looks) == 3 and sum(one["texts"] for one in looks[-1].values()) == 96
    assert all({"real", "shuffled", "none"} <= set(one["heldout"]) for look in looks for one in look.values())
    assert (runs[0] / "samples.md").read_text().count("image") >= 6
    train("--resume", f"runs/{name}-cut", "--features", "b", fails="was started with features")


@forks
def test_two_ranks_share_a_mixed_step(home, both_run):
    options = (*OPTIONS, "--lm", "lm", "--device", "cpu", "--name", "ranks")
    assert finish(processes(lambda rank: train_with("--features", *BOTH, *options))) == [0, 0]
    one, two = (metrics_of(run) for run in (both_run, home / "runs" / "ranks"))
    assert [row["loss"] for row in one if "loss" in row] == pytest.approx([row["loss"] for row in two if "loss" in row])
    for folder in ("adapter-image", "adapter-audio"):
        for name, value in weights_of(both_run, folder).items():
            torch.testing.assert_close(weights_of(home / "runs" / "ranks", folder)[name], value, rtol=0, atol=2e-5)


def test_two_adapters_of_one_run_load_each_alone_and_together(home, train, both_run):
    from periscope import inference as live

    run = both_run
    folders = live.adapter_folders(run)
    assert sorted(folders) == ["audio", "image"]
    both = {m: live.load_adapted(run, modality=m) for m in folders}
    for modality, (model, config) in both.items():
        assert config.modality == modality and config.encoder["name"].startswith(modality)
        alone, _ = live.load_adapted(folders[modality])
        assert all(
            torch.equal(a, b) for a, b in zip(alone.adapter.parameters(), model.adapter.parameters(), strict=True)
        )
    assert both["image"][1].training["features"] == "a, b" and both["image"][1].soft_prompt == 2
    together = live.load_several(dict.fromkeys(folders, run))
    assert together["image"][0].lm is together["audio"][0].lm
    with pytest.raises(AdapterError, match="holds adapters of audio and image; name one, as audio="):
        live.load_adapted(run)
    train("--features", "a", "--init", run, fails="holds 2 adapters")
    with pytest.raises(AdapterError, match="holds adapters of audio and image; name one, as audio="):
        merge_lora(run, home / "merged")


def test_eval_scores_each_set_of_a_mix(home, both_run, monkeypatch, capsys):
    from periscope import eval as script

    run = str(both_run)
    for more, scored in (((), "a"), (("--features", "sounds"), "sounds"), (("--run", f"audio={run}"), "sounds")):
        words = [
            "eval.py",
            *(more if "--run" in more else ("--run", run, *more)),
            "--device",
            "cpu",
            "--controls",
            "none",
        ]
        monkeypatch.setattr(sys, "argv", [*words, "--max-new-tokens", "2"])
        script.main()
        result = json.loads((home / run / "eval.json").read_text())
        assert Path(result["features"]).name == scored and result["n"] > 0
    assert "a; trained on sounds, b too" in capsys.readouterr().out


def test_sets_that_do_not_mix_are_refused(train):
    plain = ("--adapter", "mlp2", "--steps", "1")
    for features, says in (
        (("a", "c"), "a was made with encoder image-1 and c with image-2"),
        (("a", "wide"), "hold pooled of different shapes"),
        (("a=0.5", "b"), "every set a weight"),
        (("a", "rows"), "rows holds patches, not pooled"),
        (("a", "nowhere"), "nowhere"),
    ):
        train("--features", *features, *plain, fails=says)
    train("--features", "a", "b", "--text", "a/texts.jsonl", *plain, fails="--text goes with one")
    train("--features", "a", "sounds", "--lora", "r=2", *plain, fails="--lora goes with one adapter")


def test_a_recipe_says_what_is_one_modalitys_own(home, train):
    (home / "own.toml").write_text(
        '[train]\nadapter = "mlp2"\nsteps = 1\nbatch = 8\n[modality.audio]\nadapter = "linear"\n'
        'delimiters = ["{", "}"]\nsoft_prompt = 3\n'
    )
    train("--recipe", "own.toml", "--features", "a=1", "rows=1", "--name", "own")
    run = home / "runs" / "own" / "steps" / "000001"
    sound, picture = (json.loads((run / f"adapter-{m}" / "adapter.json").read_text()) for m in ("audio", "image"))
    assert (sound["adapter"], sound["soft_prompt"], sound["template"]["delimiters"]) == ("linear", 3, ["{", "}"])
    assert (picture["adapter"], picture["soft_prompt"]) == ("mlp2", 0) and picture["template"]["delimiters"] != [
        "{",
        "}",
    ]
    assert "audio.soft_prompt = 3" in (home / "runs" / "own" / "config.toml").read_text()
    train("--recipe", "own.toml", "--features", "a=1", "rows=1", "--soft-prompt", "1", "--name", "flag")
    told = json.loads((home / "runs/flag/steps/000001/adapter-audio/adapter.json").read_text())
    assert told["soft_prompt"] == 1
    (home / "bad.toml").write_text('[train]\nadapter = "mlp2"\n[modality.audio]\nlr = 3\n')
    train("--recipe", "bad.toml", "--features", "a", fails="sets lr for audio")
