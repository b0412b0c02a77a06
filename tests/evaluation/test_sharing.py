"""Sharing: what leaves is what was shown, it comes back the same, and a stranger's adapter is read and never run."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import hub
import pytest
import tiny
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from tiny import save_tiny_adapter

from periscope.adapters.io.checkpoint import load_adapter, save_adapter
from periscope.adapters.io.eval_results import write_eval_result
from periscope.adapters.io.fetch import fetch_adapter
from periscope.adapters.io.hub import stage
from periscope.adapters.lm.identity import same_language_model
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.lm.lora import add_lora, lora_parameters
from periscope.errors import AdapterError
from periscope.evaluation import sharing

ROOT = Path(__file__).parents[2]
SECRET = "a training caption | <b>of mine</b>"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run of an untrained adapter on models in folders of this machine, scored, with a picture to ask about."""
    home = tmp_path_factory.mktemp("sharing")
    run = home / "run"
    training = {
        "features": "photos",
        "texts": 5,
        "step": 20,
        "held-out loss": 0.123456789,
        "init": str(home / "runs" / "earlier"),
    }
    save_tiny_adapter(run / "steps" / "000020" / "adapter", home, training, family="qwen2")
    (run / "last").write_text("000020\n")
    (run / "config.toml").write_text(f'adapter = "mlp2"\nfeatures = "{home}/features/photos"\n')
    found = {"real": {"caption_f1": 0.75, "qa_colour": 0.5}, "shuffled": {"caption_f1": 0.5},
             "gain": {"caption_f1": 0.5}, "counts": {"caption_f1": 40}, 
             "intervals": {"real": {"caption_f1": [0.7, 0.8]}}, "n": 40}  # fmt: skip
    (run / "eval.json").write_text(json.dumps({"splits": {"heldout": found}, "step": "000020"}))
    rows = [{"split": "heldout", "id": str(i), "media": f"key-{i}", "prompt": "", "answer": f"said {i}",
             "reference": SECRET, "control": "other"} for i in range(12)]  # fmt: skip
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("RGB", (40, 30), "red").save(run / "samples.png")
    Image.new("RGB", (40, 30), "blue").save(home / "cat.png")
    return home


DRIVER = """
import json, os
from periscope.errors import AdapterError
from periscope import inference as live
from periscope.evaluation.sharing import PushRequest, share

shown, found = [], {}

def tried(name, what):
    try:
        found[name] = what()
    except AdapterError as error:
        found[name] = f"refused: {error}"

def yes(text):
    shown.append(text)
    return True

tried("no", lambda: share(PushRequest("run", "user/no"), lambda text: False))
tried("plain", lambda: share(PushRequest("run", "user/plain", license="mit"), yes))
tried("again", lambda: share(PushRequest("run", "user/plain"), yes))
tried("samples", lambda: share(PushRequest("run", "user/samples", private=True, public_samples=True), yes))
tried("bad name", lambda: share(PushRequest("run", "plain"), yes))
tried("worse name", lambda: share(PushRequest("run", "user/a b"), yes))
tried("more", lambda: share(PushRequest("run", "user/fewer", public_samples=True), yes))
tried("fewer", lambda: share(PushRequest("run", "user/fewer"), yes))
tried("public", lambda: share(PushRequest("run", "user/plain", private=True), yes))
tried("conflict", lambda: share(PushRequest("run", "user/conflict"), yes))
tried("broken", lambda: share(PushRequest("run", "user/broken"), yes))
tried("not here", lambda: live.load("user/nothing"))
tried("no adapter", lambda: live.load("stranger/other"))
eyes = live.load("user/plain", lm="lm")
found["caption"] = eyes.caption("cat.png", 8)
found["local"] = live.load("run").caption("cat.png", 8)
tried("stranger", lambda: live.load("stranger/evil", lm="lm").caption("cat.png", 8))
found["shown"] = shown[:5]
tried("spoilt", lambda: share(PushRequest("run", "user/spoilt"), yes))
os.environ["HF_TOKEN"] = "hf_another"
tried("denied", lambda: share(PushRequest("run", "user/denied"), yes))
print("\\n" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def pushed(home):
    """(the stand-in after all of the driver's pushes and loads, what the driver found, the Hub's cache)."""
    stand_in = hub.Hub()
    with stand_in.serving() as address:
        environment = os.environ | {
            "HF_ENDPOINT": address, "HF_TOKEN": hub.TOKEN, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home / "cache"),
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        adapter = home / "run" / "steps" / "000020" / "adapter"
        own = {name: (adapter / name).read_bytes() for name in ("adapter.json", "adapter.safetensors", "README.md")}
        evil = {"../escaped.txt": b"x", "setup.py": b"raise SystemExit", "adapter.pkl": b"x", "lora/evil.py": b"x"}
        stand_in.repos |= {"stranger/evil": own | evil, "stranger/other": {"README.md": b"hello"}}
        stand_in.commits |= {"stranger/evil": "1" * 40, "stranger/other": "2" * 40}
        stand_in.private |= {"stranger/evil": False, "stranger/other": False}
        stand_in.spoilt.add("user/spoilt")
        stand_in.refuses["user/conflict"] = 409
        stand_in.deaf.add("user/broken")
        environment |= {"TMPDIR": str(home / "tmp")}
        (home / "tmp").mkdir()
        done = subprocess.run([sys.executable, "-c", DRIVER], cwd=home, env=environment, capture_output=True, text=True,
                              timeout=120)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert hub.TOKEN not in done.stdout + done.stderr and not list((home / "tmp").glob("periscope-*"))
    found = json.loads(done.stdout.splitlines()[-1])
    return stand_in, found, home / "cache"


def test_a_push_asks_first_and_arrives_as_it_was_shown(pushed, home):
    stand_in, found, _ = pushed
    assert found["no"] == "refused: nothing was pushed" and "user/no" not in stand_in.repos
    files = stand_in.repos["user/plain"]
    assert set(files) == {"adapter.safetensors", "adapter.json", "config.json", "README.md"}
    for name, data in files.items():
        assert f"{name} " in found["shown"][0] and (name == "README.md" or f"{len(data):,} bytes" in found["shown"][0])
    assert "is on the Hub" in found["plain"] and "is the same and loads" in found["again"]
    assert (
        found["bad name"].startswith("refused: plain is no place to push to: name an owner")
        and stand_in.private["user/samples"]
    )
    assert "log in with a token that may write" in found["denied"]
    assert "README.md comes back as something else" in found["spoilt"]
    config = json.loads(files["adapter.json"])
    assert config["language_model"]["name"] == "lm" and config["encoder"]["id"] == "clip"
    assert config["training"]["init"] == "earlier" and str(home) not in json.dumps(config)


def test_words_and_pictures_leave_only_when_asked_for(pushed):
    stand_in, found, _ = pushed
    plain, samples = stand_in.repos["user/plain"], stand_in.repos["user/samples"]
    assert not any(b"said 3" in data or SECRET.encode() in data for data in plain.values())
    assert "no sample texts and no pictures" in found["shown"][0]
    assert set(samples) == {*plain, "samples.png"}
    card = samples["README.md"].decode()
    assert "](samples.png)" in card and card.count("| (caption) | said ") == 8
    assert card.count("a training caption \\| &lt;b&gt;of mine&lt;/b&gt;") == 8
    assert found["shown"][2].count(SECRET) == 8 and "samples.png" in found["shown"][2]


def test_what_an_earlier_push_left_is_named_replaced_and_removed(pushed):
    stand_in, found, _ = pushed
    assert "the repository exists, and these files would be replaced: README.md, adapter.json" in found["shown"][1]
    assert "it is there already" not in found["shown"][0]
    assert "these files of an earlier push would be removed: samples.png" in found["shown"][4]
    assert "is on the Hub" in found["fewer"] and set(stand_in.repos["user/fewer"]) == set(stand_in.repos["user/plain"])
    assert not any(SECRET.encode() in data for data in stand_in.repos["user/fewer"].values())


def test_a_private_push_never_goes_where_all_can_see_it(pushed):
    _, found, _ = pushed
    assert found["public"].startswith(
        "refused: user/plain is on the Hub already, for all to see, and --private doesn't"
    )
    assert "user/plain (public)" in found["shown"][0] and "user/samples (private)" in found["shown"][2]


def test_a_push_that_fails_says_what_to_do(pushed):
    stand_in, found, _ = pushed
    assert found["worse name"] == "refused: 'user/a b' is no name of the Hub's, which are owner/name"
    assert found["conflict"].startswith("refused: the Hub refused to write user/conflict")
    assert found["conflict"].endswith("somebody else is changing it: try again") and "log in" not in found["conflict"]
    assert found["broken"].startswith("refused: user/broken on the Hub can't be reached")
    assert found["broken"].endswith("the same command tries again") and not stand_in.repos["user/broken"]


def test_what_was_pushed_loads_in_three_lines_and_answers(pushed):
    _, found, _ = pushed
    assert found["caption"] and found["local"]
    assert found["not here"] == "refused: user/nothing is neither here nor on the Hub (or it is private: hf auth login)"
    assert found["no adapter"].startswith("refused: stranger/other on the Hub holds no adapter.json")


def test_of_a_stranger_only_an_adapters_own_files_are_fetched(pushed, home):
    stand_in, found, cache = pushed
    assert found["stranger"] == found["local"]
    asked = {
        request.split("/resolve/")[1].split("/", 1)[1]
        for request in stand_in.requests
        if "stranger/evil/resolve" in request
    }
    assert asked == {"adapter.json", "adapter.safetensors", "README.md"}
    names = {path.name for path in cache.rglob("*")}
    assert not names & {"escaped.txt", "setup.py", "adapter.pkl", "evil.py"} and not list(home.rglob("escaped.txt"))


def test_the_card_has_the_metadata_the_hub_reads(pushed):
    stand_in, _, _ = pushed
    _, head, text = stand_in.repos["user/plain"]["README.md"].decode().split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["library_name"] == "periscope" and data["pipeline_tag"] == "image-text-to-text"
    assert "license" not in data and "base_model" not in data, "the second push named none; lm is a folder's name"
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"]["split"] == "heldout" and result["metrics"] == [
        {"type": "caption_f1", "value": 0.75, "name": "caption_f1",
         "args": {"shuffled": 0.5, "interval_95": [0.7, 0.8], "n": 40}}
    ]  # fmt: skip
    assert "| caption_f1 | 0.750 [0.700, 0.800] | 0.500 | 0.50 | 40 |" in text
    assert 'periscope.load("user/plain", lm="FOLDER", encoder="FOLDER")' in text, "they were folders of whoever pushed"
    assert "| held-out loss | 0.1235 |" in text
    assert "--lm FOLDER --encoder FOLDER" in text and "language model `lm` and the encoder `clip`" in text


def test_staged_weights_are_bf16_and_a_hub_id_names_the_base_model(home, tmp_path):
    folder = home / "run" / "steps" / "000020" / "adapter"
    stage(folder, tmp_path / "out", "user/x", license="mit", datasets=["a/b"], lm="meta-llama/Llama-2-7b-hf")
    whole, half = load_file(folder / "adapter.safetensors"), load_file(tmp_path / "out" / "adapter.safetensors")
    assert {value.dtype for value in half.values()} == {torch.bfloat16}
    assert all(torch.equal(half[name].float(), value.bfloat16().float()) for name, value in whole.items())
    adapter, config = load_adapter(tmp_path / "out")
    assert config.language_model.name == "meta-llama/Llama-2-7b-hf" and adapter.spec == "mlp2"
    data = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert data["base_model"] == "meta-llama/Llama-2-7b-hf" and data["base_model_relation"] == "adapter"
    assert data["license"] == "mit" and data["datasets"] == ["a/b"] and "model-index" not in data
    assert 'periscope.load("user/x", encoder="FOLDER")' in (tmp_path / "out" / "README.md").read_text()


def test_scores_of_a_benchmark_are_not_said_to_be_of_the_training_data(home, tmp_path):
    found = {"task": "vqav2", "splits": {"val": {"real": {"qa_vqa": 0.5}, "n": 4}}}
    folder = home / "run" / "steps" / "000020" / "adapter"
    stage(folder, tmp_path / "out", "user/x", found, datasets=["a/b"], lm="meta-llama/Llama-2-7b-hf")
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert [(one.dataset_name, one.dataset_split, one.metric_value) for one in data.eval_results] == [
        ("vqav2", "val", 0.5)
    ]
    assert data.datasets == ["a/b"] and data.base_model == "meta-llama/Llama-2-7b-hf"


def test_scores_are_of_the_set_that_was_scored(home, tmp_path):
    """Not of the data it was trained on."""
    found = {"features": "features/other-photos", "splits": {"heldout": {"real": {"caption_f1": 0.5}, "n": 4}}}
    folder = home / "run" / "steps" / "000020" / "adapter"
    stage(folder, tmp_path / "out", "user/x", found, datasets=["a/b"], lm="meta-llama/Llama-2-7b-hf")
    (one,) = ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
    assert (one.dataset_name, one.dataset_split, one.metric_value) == ("other-photos", "heldout", 0.5)


SCORES = {"real": {"pope_f1": 0.8, "qa_accuracy": 0.75}, "shuffled": {"qa_accuracy": 0.5}, "warnings": [], "n": 4}
RESULT = {"task": "pope", "finished": True, "splits": {"test": SCORES}}


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """The stand-in with a benchmark of one task, one of two, and a dataset that is none."""
    stand_in = hub.Hub()
    for name, text in (
        ("one", "tasks: [{id: all}]"),
        ("two", "tasks: [{id: a}, {id: b}]"),
        ("odd", "tasks: 3"),
        ("none", None),
    ):
        stand_in.repos[f"datasets/user/{name}"] = {} if text is None else {"eval.yaml": text.encode()}
        stand_in.commits[f"datasets/user/{name}"], stand_in.private[f"datasets/user/{name}"] = "5" * 40, False
    with stand_in.serving() as address, pytest.MonkeyPatch.context() as patch:
        hub.point_to(patch, address, tmp_path_factory.mktemp("benchmarks"))
        yield


def test_a_registered_benchmarks_score_goes_to_its_leaderboard(benchmarks, tmp_path):
    path = write_eval_result(tmp_path, RESULT, "user/one", "user/x")
    assert path == tmp_path / ".eval_results" / "one.yaml"
    (entry,) = yaml.safe_load(path.read_text())
    assert entry["dataset"] == {"id": "user/one", "task_id": "all"} and entry["value"] == 0.75
    assert entry["notes"] == "qa_accuracy as pope of Periscope, test split; shuffled 0.5"
    assert entry["source"]["url"] == "https://huggingface.co/user/x"
    (entry,) = yaml.safe_load(write_eval_result(tmp_path, RESULT, "user/two:b", "user/x").read_text())
    assert entry["dataset"]["task_id"] == "b"


@pytest.mark.parametrize(
    ("benchmark", "changes", "why"),
    [
        ("user/none", {}, "user/none on the Hub is no registered benchmark: it has no eval.yaml"),
        ("user/odd", {}, "has an eval.yaml that names no tasks"),
        ("user/two", {}, "needs one of its tasks, as user/two:a; it has a, b"),
        ("user/one:b", {}, "needs one of its tasks, as user/one:all"),
        ("user/one", {"task": None}, "first score the run on it, with --task"),
        ("user/one", {"finished": False}, "first score the run on it, with --task"),
        ("user/one", {"splits": {"test": {"real": {"a": 1}, "warnings": ["only the first 3 (--limit)"]}}}, "whole"),
    ],
)
def test_a_score_that_is_no_benchmarks_isnt_put_on_its_leaderboard(benchmarks, tmp_path, benchmark, changes, why):
    with pytest.raises(AdapterError, match=why):
        write_eval_result(tmp_path, RESULT | changes, benchmark, "user/x")
    assert not (tmp_path / ".eval_results").exists()


def test_words_from_data_are_no_markup_in_the_card_nor_orders_to_the_terminal(home, tmp_path):
    evil = "![x](https://x.example/a.png) <img src=x> `a` | b\nc"
    row = {"prompt": "", "answer": evil, "reference": "\x1b[2Kred", "control": "blue"}
    folder = home / "run" / "steps" / "000020" / "adapter"
    files = stage(folder, tmp_path / "out", "user/x", None, [row])
    (line,) = (line for line in (tmp_path / "out" / "README.md").read_text().splitlines() if "x.example" in line)
    assert line.startswith(r"| (caption) | !\[x\](https://x.example/a.png) &lt;img src=x&gt; \`a\` \| b c | ")
    said = sharing.shown(sharing.PushRequest("run", "user/x"), tmp_path / "out", files, [row], False)
    assert "\x1b" not in said and "?[2Kred | blue" in said


def test_what_a_disk_or_a_pictures_file_does_is_said(home, tmp_path, monkeypatch):
    folder, fake = home / "run" / "steps" / "000020" / "adapter", tmp_path / "samples.png"
    fake.write_text("PRIVATE KEY")
    with pytest.raises(AdapterError, match="can't be written"):
        stage(folder, tmp_path / "a", "user/x", picture=fake)
    assert not (tmp_path / "a" / "samples.png").exists(), "only a picture leaves as one"

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("periscope.adapters.io.hub.save_file", full)
    with pytest.raises(AdapterError, match=r"can't be written to .*No space left"):
        stage(folder, tmp_path / "b", "user/x")
    monkeypatch.setattr("periscope.adapters.io.fetch.snapshot_download", full)
    with pytest.raises(AdapterError, match=r"user/x can't be kept on this machine: .*No space left"):
        fetch_adapter("user/x", into=tmp_path / "c")


def test_paths_inside_other_words_lose_all_but_their_last_part(home, tmp_path):
    adapter, config = load_adapter(home / "run" / "steps" / "000020" / "adapter")
    about = {name: getattr(config, name) for name in ("modality", "storage", "language_model", "template")}
    encoder = config.encoder | {"library": "frames", "id": "8/open_clip:/data/of/me/clip",
                                   "name": "8 frames of /data/of/me/clip"}  # fmt: skip
    training = {"init": "../of/me/earlier", "note": "https://x.example/a/b", "both": "timm:/data/of/me/a+timm:/data/b"}
    save_adapter(tmp_path / "a", adapter, about | {"encoder": encoder, "training": training})
    stage(tmp_path / "a", tmp_path / "out", "user/x", lm="a/b")
    told = json.loads((tmp_path / "out" / "adapter.json").read_text())
    assert told["encoder"]["id"] == "8/open_clip:clip" and told["encoder"]["name"] == "8 frames of clip"
    assert told["training"] == {"init": "earlier", "note": "https://x.example/a/b", "both": "timm:a+timm:b"}
    result = {"splits": {"heldout": {"real": {f"see {tmp_path}/a": 0.5}, "n": 1}}}
    with pytest.raises(AdapterError, match=r"README.md would show a path of this machine"):
        stage(tmp_path / "a", tmp_path / "other", "user/x", result, lm="a/b")


def test_lora_goes_along_in_bf16_without_a_path_in_pefts_config(home, tmp_path):
    from periscope import inference as live

    lm = load_language_model(str(home / "lm"))
    add_lora(lm, 2, 4)
    with torch.no_grad():
        for number, parameter in enumerate(lora_parameters(lm.model).values()):
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    adapter, config = load_adapter(home / "run" / "steps" / "000020" / "adapter")
    about = {
        name: getattr(config, name)
        for name in ("modality", "encoder", "storage", "language_model", "template", "training")
    }
    save_adapter(tmp_path / "tuned", adapter, about, lm=lm)
    files = stage(tmp_path / "tuned", tmp_path / "out", "user/x")
    assert {"lora/adapter_config.json", "lora/adapter_model.safetensors"} < {
        path.relative_to(tmp_path / "out").as_posix() for path in files
    }
    assert (
        json.loads((tmp_path / "out" / "lora" / "adapter_config.json").read_text())["base_model_name_or_path"] == "lm"
    )
    again, _ = live.load_adapted(tmp_path / "out", lm=str(home / "lm"))
    mine, theirs = lora_parameters(lm.model), lora_parameters(again.lm.model)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(theirs[name], value.bfloat16().float()) for name, value in mine.items())
    assert "parameters of LoRA, r=2 and" in (tmp_path / "out" / "README.md").read_text()


def test_a_path_that_would_leave_all_the_same_stops_it(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    folder = home / "run" / "steps" / "000020" / "adapter"
    result = {"splits": {"heldout": {"real": {f"see {home}/photos": 0.5}, "n": 1}}}
    with pytest.raises(AdapterError, match=r"README.md would show a path of this machine"):
        stage(folder, tmp_path / "out", "user/x", result)


def test_a_copy_is_recognised_and_a_fine_tune_is_refused_without_anyway(home, tmp_path, capsys):
    from periscope import inference as live

    whole = load_language_model(str(home / "lm"))
    for name in ("copy", "tuned", "deep"):
        if name != "copy":
            with torch.no_grad():
                changed = whole.model.model.layers[0].mlp.down_proj.weight if name == "deep" else \
                    whole.model.get_input_embeddings().weight  # fmt: skip
                changed.mul_(1.02)
        whole.model.save_pretrained(tmp_path / name)
        whole.tokenizer.save_pretrained(tmp_path / name)
        if name == "tuned":
            whole = load_language_model(str(home / "lm"))
    before = load_language_model(str(home / "lm")).identity()
    assert same_language_model(before, load_language_model(str(tmp_path / "copy")).identity()) is None
    said = same_language_model(before, load_language_model(str(tmp_path / "deep")).identity())
    assert said == "its weights differ, though not its embeddings"
    old = replace(before, weight_sample={}, digest=None)
    assert same_language_model(old, load_language_model(str(tmp_path / "deep")).identity()) is None, "older adapters"
    live.load(home / "run", lm=str(tmp_path / "copy"))
    for name in ("tuned", "deep"):
        with pytest.raises(AdapterError, match=r"another language model: its weights differ.*--anyway"):
            live.load(home / "run", lm=str(tmp_path / name))
        live.load(home / "run", lm=str(tmp_path / name), anyway=True)
        assert "another language model: its weights differ" in capsys.readouterr().out
    wide = tiny.save_language_model("qwen2", tmp_path / "wide", hidden_size=48)
    with pytest.raises(AdapterError, match="hidden size"):
        live.load(home / "run", lm=str(wide), anyway=True)
    few, _ = live.load_adapted(home / "run", precision="4bit")
    assert "trained with fp32 weights, here in 4bit" in few.lm.reason, "a quantised copy is allowed and named"


def test_a_push_that_isnt_answered_with_yes_pushes_nothing(home, monkeypatch, capsys):
    from periscope import eval as eval_script

    monkeypatch.chdir(home)
    monkeypatch.setattr(sharing, "standing", lambda repo, private: None)
    for reply in ("n\n", ""):
        monkeypatch.setattr(sys, "argv", ["eval.py", "--run", "run", "--push", "user/x", "--device", "cpu"])
        monkeypatch.setattr(sys, "stdin", __import__("io").StringIO(reply))
        with pytest.raises(AdapterError, match="nothing was pushed"):
            eval_script.main()
    assert "to be uploaded to user/x (public):" in capsys.readouterr().out
