"""The three scripts as a person runs them: pictures in, answers out; wrong input gets one clear sentence."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from script_runs import MAINS, ROOT, TRAIN, Fork, command, here, script


def test_train_and_eval_end_to_end(workshop):
    said = script(workshop, *TRAIN, "--adapter", "mlp3", "--soft-prompt", "2", "--steps", "40", "--name", "first",
                  "--eval-every", "20", "--lr", "5e-3")  # fmt: skip
    assert "language model is unchanged" in said and "fp32 (the fastest exact choice on a CPU)" in said
    assert re.search(r"held-out loss real [\d.]+, shuffled [\d.]+, none [\d.]+", said)
    run = workshop / "runs" / "first"
    losses = [row["loss"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
    assert len(losses) == 40 and sum(losses[-8:]) / 8 < sum(losses[:8]) / 8 - 0.2
    assert (run / "samples.md").read_text().count("## step") == 2
    looks = [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "scores" in row]
    assert [row["step"] for row in looks] == [20, 40] and all(0 <= row["scores"]["caption_f1"] <= 1 for row in looks)

    table = script(workshop, "eval.py", "--max-new-tokens", "8")
    assert re.search(r"caption_f1 +[\d.]+ +[\d.]+ to [\d.]+( +[\d.]+){3} +-?[\d.]+ +\d+", table)
    assert re.search(r"CIDEr of \d+ items means little; use at least 100", table)
    result = json.loads((run / "eval.json").read_text())
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert table.index(result["verdict"]["sentence"]) < table.index("caption_f1"), "the verdict comes first"
    assert result["finished"] and result["complete"] == {"heldout": ["real", "shuffled", "blank", "none"]}
    assert result["losses"]["texts"] == result["losses"]["media"] == 16 and not list(run.glob("evals/2.json"))
    assert result["version"] == 1 and result["n"] == len(rows) == result["counts"]["caption_f1"] >= 16
    names = {"caption_f1", "caption_bleu4", "caption_cider", "caption_rouge_l", "caption_exact", "caption_set_f1"}
    for condition in ("real", "shuffled", "blank", "none"):
        assert set(result[condition]) == set(result["intervals"][condition]) == names
    low, high = result["intervals"]["real"]["caption_f1"]
    assert low <= result["real"]["caption_f1"] <= high and set(result["gain"]) == names
    assert {"id", "media", "prompt", "answer", "reference", "control", "blank", "none", "score"} <= set(rows[0])
    assert len({row["blank"] for row in rows}) == len({row["none"] for row in rows}) == 1  # there is nothing to see
    before = (run / "evals" / "1.json").read_text()
    script(workshop, "eval.py", "--batch", "1", "--max-new-tokens", "8")
    again = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert again == rows, "answers depend on the batch"
    assert (run / "evals" / "1.json").read_text() == before and (run / "evals" / "2.json").exists()
    Image.open(run / "samples.png").verify()
    page = (run / "report.html").read_text()
    assert page.count("data:image/jpeg") >= 16 and "held out, shuffled" in page and "a small blue star" in page


def test_a_live_picture_answers_as_its_shard_does(workshop, monkeypatch, capsys):
    from periscope import inference as live
    from periscope.shards.read import FeatureSet

    if not (workshop / "runs" / "first").exists():
        pytest.skip("needs the end-to-end run")
    features = FeatureSet(workshop / "features" / "photos")
    monkeypatch.chdir(workshop)
    eyes = live.load("runs/first")
    for key in features.keys[:5]:
        picture = workshop / "photos" / features.info(key)["origin"]
        stored = features.read(key, "pooled")
        torch.testing.assert_close(eyes.features(picture), stored, rtol=2e-3, atol=1e-3)  # one ulp: the batch differs
    picture = "photos/003.png"
    asked = ("--image", picture, "--prompt", "the dog", "--max-new-tokens", "8")
    one = here(workshop, monkeypatch, capsys, "eval.py", "--run", "runs/first", *asked)
    talk = script(workshop, "eval.py", "--image", "photos/001.png", "--max-new-tokens", "8",
                  input=f"/image no.png\n/image {picture}\nthe dog\n\n/quit\n")  # fmt: skip
    assert one.splitlines()[-1] in talk and "still about photos/001.png" in talk
    shared = "runs/first/steps/000040/adapter"
    again = here(workshop, monkeypatch, capsys, "eval.py", "--run", shared, *asked)
    assert again.splitlines()[-1] == one.splitlines()[-1]
    said = script(workshop, "eval.py", "--image", "photos/003.txt", "--prompt", "the dog", fails=True)
    assert "photos/003.txt" in said


def test_killed_runs_resume_to_the_same_bits(workshop):
    """SIGKILL at two moments, each after a checkpoint; the end is bit-identical to a run left alone."""
    options = ("--adapter", "mlp3", "--soft-prompt", "2", "--steps", "120", "--save-every", "15", "--eval-every", "60",
               "--token-noise", "0.2", "--start-words", "red blue", "--warm-start", "4")  # fmt: skip
    script(workshop, *TRAIN, *options, "--name", "whole")
    run, starts = workshop / "runs" / "killed", []
    arguments = (*TRAIN, *options, "--name", "killed")
    for least in (15, 75):
        process = Fork(workshop, *arguments)
        deadline = time.monotonic() + 120
        while not ((run / "last").exists() and int((run / "last").read_text()) >= least):
            assert process.running() and time.monotonic() < deadline, "it ended before it could be killed"
            time.sleep(0.005)
        time.sleep(0.01 * least % 0.07)
        os.kill(process.pid, signal.SIGKILL)
        starts += re.findall(r"going on after step (\d+)", process.said()[0])
        arguments = ("train.py", "--resume", "runs/killed")
    starts += re.findall(r"going on after step (\d+)", script(workshop, *arguments))
    assert len(starts) == 2 and 0 < int(starts[0]) < int(starts[1])
    whole, pieces = (load_file(workshop / "runs" / name / "steps" / "000120" / "adapter" / "adapter.safetensors")
                     for name in ("whole", "killed"))  # fmt: skip
    assert whole.keys() == pieces.keys() and all(torch.equal(whole[key], pieces[key]) for key in whole)
    logs = [[(row["step"], row.get("loss"), row.get("heldout")) for row in
             map(json.loads, (workshop / "runs" / name / "metrics.jsonl").read_text().splitlines())]
            for name in ("whole", "killed")]  # fmt: skip
    assert logs[0] == logs[1]
    said = script(workshop, "train.py", "--resume", "runs/killed", fails=True)
    assert "is finished" in said


def test_ctrl_c_saves_and_leaves(workshop):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = command(*TRAIN, "--adapter", "mlp3", "--steps", "100000", "--name", "stopped")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(arguments, cwd=workshop, env=environment, **pipes)
    metrics = workshop / "runs" / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and re.search(r"go on with: python \S*train\.py --resume runs/stopped", output)
    assert (workshop / "runs" / "stopped" / "last").exists()


def test_words_are_ranked_written_anew_and_trained_on(mistakes, monkeypatch, capsys):
    def eval_py(*arguments):
        return here(
            mistakes, monkeypatch, capsys, "eval.py", "--run", "runs/taken", "--max-new-tokens", "6", *arguments
        )

    said = eval_py("--gain", "train", "--drop", "0.25", "--write", "words/good.jsonl")
    ranked = [json.loads(line) for line in (mistakes / "runs/taken/gain.jsonl").read_text().splitlines()]
    assert len(ranked) == 64 and [row["gain"] for row in ranked] == sorted(row["gain"] for row in ranked)
    assert "64 texts, without 16 whose media don't explain them" in said
    kept = {json.loads(line)["id"] for line in (mistakes / "words/good.jsonl").read_text().splitlines()}
    assert kept.isdisjoint(row["id"] for row in ranked[:16]) and kept >= {row["id"] for row in ranked[16:]}

    only_words = {"id": "only words", "media": [], "turns": [{"role": "assistant", "content": "Once upon a time."}]}
    texts = (mistakes / "features/photos/texts.jsonl").read_text()
    (mistakes / "words/more.jsonl").write_text(texts + json.dumps(only_words) + "\n")
    said = eval_py("--gain", "heldout", "--text", "words/more.jsonl", "--write", "words/left.jsonl", "--drop", "0.5")
    left = {json.loads(line)["id"] for line in (mistakes / "words/left.jsonl").read_text().splitlines()}
    assert "of 16 texts" in said and "only words" in left and len(left) == 81 - 8

    assert "80 captions" in eval_py("--write", "words/set.jsonl")
    assert "80 captions" in eval_py("--data", "photos", "--write", "words/folder.jsonl")
    of_set, of_folder = ([json.loads(line) for line in (mistakes / f"words/{name}.jsonl").read_text().splitlines()]
                         for name in ("set", "folder"))  # fmt: skip
    assert {row["media"][0] for row in of_folder} == {path.name for path in (mistakes / "photos").glob("*.*g")}
    from periscope.shards.read import FeatureSet

    features = FeatureSet(mistakes / "features" / "photos")
    by_origin = {features.info(row["media"][0])["origin"]: row["turns"] for row in of_set}
    assert sum(by_origin[row["media"][0]] == row["turns"] for row in of_folder) > 70  # rounding may turn one or two

    for words in ("set", "folder"):
        texts = features.texts(mistakes / f"words/{words}.jsonl")
        assert len(texts) == 80 and {text.split for text in texts} == {"train", "heldout"}
    said = here(mistakes, monkeypatch, capsys, *TRAIN, "--adapter", "mlp3", "--steps", "1", "--name", "fewer",
                "--text", "words/good.jsonl")  # fmt: skip
    assert "texts: 48 to learn from, 16 held out" in said


def test_a_task_from_its_files_to_eval_json(mistakes, monkeypatch, capsys, tmp_path):
    from data_folders import pope

    from periscope.precompute.cli import main as precompute

    monkeypatch.chdir(mistakes)
    pope(tmp_path / "pope")
    precompute(args=["--data", str(tmp_path / "pope"), "--encoder", "clip", "--device", "cpu"])
    said = here(mistakes, monkeypatch, capsys, "eval.py", "--run", "runs/taken", "--features", "features/pope",
                "--task", "pope", "--prompt-of", "mamba-vl", "--controls", "blank", "none")  # fmt: skip
    assert "task: POPE, prompt of mamba-vl 'Answer the question using a single word or phrase" in said
    result = json.loads((mistakes / "runs/taken/eval.json").read_text())
    assert result["task"] == "pope" and result["max_new_tokens"] == 10 and result["n"] == 6
    assert {"qa_accuracy", "pope_f1", "pope_yes", "qa_random"} <= set(result["real"])
    assert (
        set(result["intervals"]) == {"real", "blank", "none", "majority"} and result["majority"]["qa_accuracy"] == 0.5
    )
    said = here(mistakes, monkeypatch, capsys, "eval.py", "--run", "runs/taken", "--features", "features/pope",
                "--limit", "4")  # fmt: skip
    assert json.loads((mistakes / "runs/taken/eval.json").read_text())["warnings"][:2] == [
        "only the first 4 texts were scored (--limit)",
        "majority: the commonest answer of each kind of question, from the references scored here, which favours it",
    ]
    assert "task: POPE, prompt of own" in said and "no shuffled features" in said


MISTAKES = {
    "unknown adapter": ((*TRAIN, "--adapter", "mpl16"), "or mlp16?"),
    "unknown flag": (("train.py", "--adaptr", "mlp16"), None),
    "features without pooled": (
        ("train.py", "--features", "features/patches-only", "--lm", "lm", "--adapter", "mlp16"), "--kinds pooled"
    ),
    "no words": (
        ("train.py", "--features", "features/wordless", "--lm", "lm"),
        "(see docs/troubleshooting.md)",
    ),
    "run exists": ((*TRAIN, "--name", "taken"), "never overwritten"),
    "no language model named": (("train.py", "--features", "features/photos"), "--lm is missing"),
    "language model that isn't there": (
        ("train.py", "--features", "features/photos", "--lm", "nowhere"), "neither a folder"
    ),
    "no such feature set": (("train.py", "--features", "features/nope", "--lm", "lm"), "features/nope"),
    "no such run": (("eval.py", "--run", "runs/nope"), "runs/nope is not a run"),
    "a hub id to be scored": (("eval.py", "--run", "user/name"), "no such folder here (an adapter by itself"),
    "an adapter folder to be scored on nothing": (("eval.py", "--run", "alone"), "--features features/photos"),
    "runs that aren't there to be compared": (("eval.py", "--compare", "runs/nope", "runs/taken"), "pe doesn't exist"),
    "language model of another width": (("eval.py", "--run", "runs/taken", "--lm", "wide"), "another language model"),
    "features of another encoder": (
        ("eval.py", "--run", "runs/taken", "--features", "features/other"), "trained on clip"
    ),
    "unknown task": (("eval.py", "--run", "runs/taken", "--task", "vqa2"), "did you mean vqav2"),
    "a task that these texts aren't of": (("eval.py", "--run", "runs/taken", "--task", "gqa"), "gqa scores questions"),
    "a share above all": (
        ("eval.py", "--run", "runs/taken", "--gain", "all", "--drop", "2"), "--drop is 2.0; it must be less than 1"
    ),
    "gain of a split that isn't there": (
        ("eval.py", "--run", "runs/taken", "--gain", "trian"), "it has heldout, train, or all"
    ),
    "captions over a file that is there": (
        ("eval.py", "--run", "runs/taken", "--write", "features/photos/texts.jsonl"), "exists and is never overwritten"
    ),
    "captions to a folder": (("eval.py", "--run", "runs/taken", "--write", "."), "exists and is never overwritten"),
    "captions where nothing can be written": (
        ("eval.py", "--run", "runs/taken", "--write", "lm/config.json/x.jsonl"), "its folder can't be made ("
    ),
    "CLIPScore of questions": (
        ("eval.py", "--run", "runs/taken", "--clip-score", "--text", "words/asked.jsonl"), "these texts are questions"
    ),
    "texts for training alone": (
        ("eval.py", "--run", "runs/taken", "--text", "words/train.jsonl"), "none is held out to score"
    ),
    "a prompt that the task lacks": (
        ("eval.py", "--run", "runs/taken", "--task", "gqa", "--prompt-of", "llava"), "it has cobra, mamba-vl, own"
    ),
    "questions without answers": (
        ("eval.py", "--run", "runs/taken", "--text", "words/unanswered.jsonl"), "questions without answers to compare"
    ),
    "prompt without a picture": (("eval.py", "--prompt", "what?"), "--image"),
    "unknown recipe": (("train.py", "--recipe", "dmo"), "did you mean demo"),
    "resume with another choice": (("train.py", "--resume", "runs/taken", "--lr", "0.5"), "not 0.5"),
    "a name that leaves the folder": ((*TRAIN, "--name", "../x"), "plain folder name"),
    "a set without its flag": (("train.py", "features/photos"), "did you mean --features features/photos?"),
    "a run without its flag": (("eval.py", "runs/taken"), "did you mean --run runs/taken?"),
    "data without their flag": (("precompute.py", "photos"), "did you mean --data photos?"),
    "one picture as data": (("precompute.py", "--data", "photos/001.png"), "is one image file; name the folder"),
    "an adapter in two words": ((*TRAIN, "--adapter", "mlp", "16"), "without the space it is --adapter mlp16"),
    "another program's flag": ((*TRAIN, "--learning-rate", "1e-3"), "it is called --lr"),
    "a question for eval.py": (("eval.py", "--question", "What?"), "it is called --prompt"),
    "half a hub id": (("train.py", "--features", "features/photos", "--lm", "gpt2"), "such as openai-community/gpt2"),
    "a run's name alone": (("eval.py", "--run", "taken"), "did you mean runs/taken?"),
    "nearly a set's name": (("train.py", "--features", "features/photo", "--lm", "lm"), "mean features/photos?"),
    "sounds for an image encoder": (("precompute.py", "--data", "sounds"), "try --encoder ast"),
    "an encoder that is unknown": (("precompute.py", "--data", "photos", "--encoder", "clp"), "nearest: clap"),
    "a second encoder on the same data": (
        ("precompute.py", "--data", "photos", "--encoder", "other-clip"), "such as --out features/photos-other-clip"
    ),
    "a picture that isn't there": (("eval.py", "--image", "no.png", "--prompt", "?"), "no.png: there is no such file"),
    "an address": (("eval.py", "--image", "https://x.org/a.png", "--prompt", "?"), "download it and pass the file"),
}  # fmt: skip
USAGE = {"unknown flag", "a set without its flag", "a run without its flag", "data without their flag",
         "an adapter in two words", "another program's flag", "a question for eval.py"}  # fmt: skip


@pytest.mark.parametrize("name", ["train.py", "eval.py"])
def test_another_folder_is_named(name, tmp_path, monkeypatch):
    from periscope.console import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--device", "cpu"])
    with pytest.raises(SystemExit) as left:
        run(MAINS[name])
    assert "yet; " in left.value.code and f"go to the folder that has one (this is {tmp_path})" in left.value.code


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_sentence(mistake, mistakes, monkeypatch, capsys):
    """In this process, as `console.run` runs it: exit with a sentence, no traceback, nothing half-made."""
    arguments, expected = MISTAKES[mistake]
    from periscope.console import run

    main = MAINS[arguments[0]]
    monkeypatch.chdir(mistakes)
    monkeypatch.setattr(sys, "argv", [*arguments, "--device", "cpu"])
    before = sorted(p.name for p in (mistakes / "runs").iterdir())
    with pytest.raises(SystemExit) as left:
        run(main)
    said = str(left.value.code) + capsys.readouterr().err
    assert (expected or "--adapter") in said, said
    if mistake in USAGE:
        assert left.value.code == 2
    else:
        assert left.value.code.startswith("error: "), "a sentence, which is status 1"
    assert sorted(p.name for p in (mistakes / "runs").iterdir()) == before


def test_a_gpu_that_torch_cannot_use_is_said(monkeypatch):
    from periscope import device
    from periscope.errors import DeviceError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device, "_gpu_in_machine", lambda: True)
    for name in ("auto", "cuda"):
        with pytest.raises(DeviceError, match=r"can't use this machine's GPU.*--device cpu"):
            device.choose_device(name)
    assert device.choose_device("cpu") == "cpu"
    monkeypatch.setattr(device, "_gpu_in_machine", lambda: False)
    assert device.choose_device("auto") == "cpu"
    with pytest.raises(DeviceError, match="shows no NVIDIA GPU"):
        device.choose_device("cuda")


@pytest.mark.parametrize("name", ["precompute.py", "train.py", "eval.py"])
def test_help_is_quick(name):
    start = time.monotonic()
    done = subprocess.run([sys.executable, str(ROOT / name), "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "--device" in done.stdout
    assert time.monotonic() - start < 5, "help must not load torch"


def test_the_help_of_eval_begins_with_what_a_beginner_needs():
    done = subprocess.run([sys.executable, str(ROOT / "eval.py"), "--help"], capture_output=True, text=True, cwd=ROOT)
    first, *others = re.split(r"^╭─ ", done.stdout, flags=re.M)[1:]
    assert re.findall(r"│ --([\w-]+)", first) == ["run", "image", "audio", "video", "prompt"] and len(others) == 6
    assert re.search(r"^ +python \S*eval\.py --compare runs/\*$", done.stdout, re.M) and "None" not in done.stdout


def test_a_cpu_that_computes_in_bf16_trains_and_is_scored(workshop, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "DEFAULT")
    said = script(workshop, *TRAIN, "--adapter", "mlp2", "--steps", "6", "--eval-every", "3", "--name", "in-bf16")
    assert "bf16 (this CPU has instructions for it)" in said and "language model is unchanged" in said
    run = workshop / "runs" / "in-bf16"
    losses = [row["loss"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
    assert len(losses) == 6 and all(0 < loss < 20 for loss in losses)
    table = script(workshop, "eval.py", "--run", "runs/in-bf16", "--max-new-tokens", "4")
    assert "bf16 (this CPU has instructions for it)" in table and re.search(r"caption_f1 +[\d.]+", table)
    table = script(workshop, "eval.py", "--run", "runs/in-bf16", "--precision", "fp32", "--limit", "2")
    assert "trained with bf16 weights, here in fp32" in table
    shutil.rmtree(run)  # other tests take the newest
