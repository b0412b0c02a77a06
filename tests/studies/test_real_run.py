"""Slow: a first run on the real SmolLM2-135M and EfficientNet-Lite0, from pictures to a conversation.

The weights come from package registries; without these the tests are skipped. The GGUF file is unpacked once: the
language model is frozen, so all share it. About twelve minutes of one core.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from real_assets import asset
from script_runs import Fork, script

import periscope
from periscope import eval as eval_script
from periscope import train as train_script
from periscope.adapters.composed import ComposedModel
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import default_template
from periscope.inference import LoadedModel
from periscope.precompute.cli import main as precompute
from periscope.shards.read import FeatureSet
from periscope.training.run import Run
from studies.real import assets, encode
from studies.real import run as study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
CONDITIONS = ("real", "shuffled", "blank", "none")
SHOWN = 4  # pictures that are captioned


@dataclass(frozen=True)
class Real:
    """Where everything is: the run, its features, the pictures (those of val first), the GGUF file."""

    home: Path
    pictures: Path
    val: list[dict]
    encoder: Path
    lm: Path

    @property
    def run(self) -> Path:
        return self.home / "runs" / "real"

    @property
    def shown(self) -> list[Path]:
        return [self.pictures / row["file_name"] for row in self.val[:SHOWN]]


@contextmanager
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Pictures of animals and food, encoded, and 60 steps of mlp16 on them."""
    encoder, pictures, lm = (asset(name) for name in ("efficientnet-lite0", "emoji", "smollm2"))
    pictures, home = pictures / "small", tmp_path_factory.mktemp("real")
    val = [row for row in assets.metadata(pictures) if row["split"] == "val"]
    found = Real(home, pictures, val, encoder, lm / assets.GGUF)
    unpack = cache(lambda file, device, precision: load_language_model(str(file), device, precision))

    def load_once(name: str, device: str = "cpu", precision: str = "auto", trust: bool = False) -> LanguageModel:
        assert not trust
        return unpack(Path(name).resolve(), device, precision)

    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for module in ("training.models.language_model_holder", "adapters.lm.runtimes.load"):
            patch.setattr(f"periscope.{module}.load_language_model", load_once)
        precompute(["--data", str(pictures), "--encoder", f"timm:{encoder}", "--kinds", "pooled", "--out",
                    "features/emoji", "--device", "cpu", "--workers", "1"])  # fmt: skip
        settings = ("--template", "plain", "--batch", "24", "--lr", "1e-3", "--warm-start", "60", "--steps", "60")
        run_script(patch, train_script, "--features", "features/emoji", "--lm", found.lm, "--adapter", "mlp16",
                   *settings, "--eval-every", "60", "--name", "real")  # fmt: skip
        yield found


def run_script(patch, script, *flags: object) -> None:
    patch.setattr(sys, "argv", [script.__file__, *map(str, flags), "--device", "cpu"])
    script.main()


@pytest.fixture(scope="module")
def loaded(real):
    with one_thread():
        yield periscope.load(real.run, device="cpu")


def test_features_are_timms_own(real):
    stored = FeatureSet(real.home / "features" / "emoji")
    keys = encode.key_of_file(stored)
    assert len(keys) == 928
    model, transform = encode.load_encoder()
    with one_thread():
        for path, row in zip(real.shown, real.val, strict=False):
            own = encode.encode(model, transform(encode.Image.open(path).convert("RGB"))[None])["pooled"][0]
            torch.testing.assert_close(
                stored.read(keys[row["file_name"]], "pooled").float(), own, rtol=2e-3, atol=2e-3
            )  # of float16, in another batch


def test_sixty_steps_see(real):
    """Held-out loss at least 1 nat below that with another picture's features; the loss without any is higher too."""
    (last,) = Run.open(real.run).evaluations(60)
    assert last["step"] == 60 and last["heldout"]["shuffled"] - last["heldout"]["real"] >= 1, last["heldout"]


def test_ctrl_c_at_ten_moments_saves_within_three_seconds_and_changes_no_bit(real):
    """The step that is under way is finished first, and then the frozen weights are verified, which takes what is left
    until the process ends. The times are those of a machine that does nothing else.
    """
    chosen = random.Random(0)
    options = ("--features", "features/emoji", "--lm", real.lm, "--adapter", "mlp16", "--template", "plain", "--batch",
               "8", "--warm-start", "20", "--steps", "40", "--eval-every", "40")  # fmt: skip
    script(real.home, "train.py", *options, "--name", "whole")
    run, saved, ended = real.home / "runs" / "stopped", [], []
    arguments = ("train.py", *options, "--name", "stopped")
    for _ in range(10):
        before = logged(run)
        process = Fork(real.home, *arguments)
        while logged(run) == before:
            assert process.running(), process.said()
            time.sleep(0.02)
        time.sleep(chosen.uniform(0, 2))
        began = time.time()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait() == 130, process.said()
        ended.append(time.time() - began)
        saved.append((run / "last").stat().st_mtime - began)
        assert "go on with: python" in process.said()[0]
        arguments = ("train.py", "--resume", "runs/stopped")
    print("seconds to a checkpoint:", *(f"{seconds:.2f}" for seconds in saved))
    print("seconds to the end:", *(f"{seconds:.2f}" for seconds in ended))
    script(real.home, *arguments)
    whole, pieces = (
        (real.home / "runs" / name / "steps" / "000040" / "adapter" / "adapter.safetensors").read_bytes()
        for name in ("whole", "stopped")
    )
    assert whole == pieces
    assert min(saved) > 0 and max(ended) <= 3, (saved, ended)


def logged(run: Path) -> int:
    """Lines of a run's log."""
    log = run / "metrics.jsonl"
    return log.read_text().count("\n") if log.is_file() else 0


def test_eval_writes_all_scores(real, monkeypatch):
    monkeypatch.chdir(real.home)
    with one_thread():
        run_script(monkeypatch, eval_script, "--run", "runs/real", "--limit", "64", "--max-new-tokens", "4")
    result = json.loads((real.run / "eval.json").read_text())
    assert result["finished"] and result["complete"] == {split: list(CONDITIONS) for split in ("val", "test")}
    for split, scores in result["splits"].items():
        for name in ("caption_exact", "caption_set_f1"):
            assert all(isinstance(scores[condition][name], float) for condition in CONDITIONS), (split, name)
        least = 0.5 if split == "val" else 0  # no training showed the names of the others
        assert scores["losses"]["drop"] > least and scores["verdict"]["seeing"], (split, scores["losses"])
    assert result["splits"]["val"]["verdict"]["seeing"] == "sees"
    answers = [json.loads(line) for line in (real.run / "predictions.jsonl").read_text().splitlines()]
    assert len(answers) == 128 and sum(bool(row["answer"]) for row in answers) > 100
    assert (real.run / "report.html").stat().st_size > 10_000
    read = study.predictions(real.run, real.home / "features" / "emoji", "small")
    assert [(one.said, one.name) for one in read] == [(row["answer"], row["reference"]) for row in answers]
    assert {one.picture for one in read if one.split == "val"} <= {row["file_name"] for row in real.val}


def test_it_answers_alike_wherever_its_parts_lie(real, loaded, tmp_path):
    """The adapter, its encoder and its language model copied elsewhere. No way out to llama.cpp or transformers is open
    to a convolutional encoder.
    """
    said = loaded.captions(real.shown, 8)
    assert len(set(said)) > 1 and all(said) and said == [loaded.caption(path, 8) for path in real.shown]
    adapter = shutil.copytree(Run.open(real.run).adapter_folders()[0], tmp_path / "adapter")
    encoder, lm = shutil.copytree(real.encoder, tmp_path / "eyes"), tmp_path / "moved.gguf"
    lm.symlink_to(real.lm)
    with one_thread():
        moved = periscope.load(adapter, device="cpu", lm=str(lm), encoder=f"timm:{encoder}")
        assert moved.captions(real.shown, 8) == said


def test_it_talks_about_a_picture(real, loaded):
    with one_thread():
        chat = loaded.chat(real.shown[0], max_new_tokens=12)
        first = chat.send("")
        pieces = list(chat.send("What is it?", stream=True))
        again = loaded.chat(real.shown[0], max_new_tokens=12)
        assert first == loaded.caption(real.shown[0], 12) == again.send("")
        assert again.send("What is it?") == "".join(pieces)
    assert [turn["role"] for turn in chat.history] == ["user", "assistant"] * 2
    assert chat.history[0]["media"] == [str(real.shown[0])]


def with_chat_template(lm: LanguageModel) -> LoadedModel:
    """An untrained adapter, for words alone."""
    adapter = Adapter("mlp1", FeatureShape("pooled", 1, 8), lm.hidden_size, lm.embedding_rms)
    prompt = Prompt(lm.tokenizer, default_template(lm.tokenizer, "chat"))
    return LoadedModel(ComposedModel({"image": AdaptedModel(lm, adapter, prompt)}), {})


def test_the_instruct_model_remembers_a_name(loaded):
    with one_thread():
        model = with_chat_template(loaded.model.lm)
        chat = model.chat(max_new_tokens=24)
        chat.send("Hello, my name is Zebedee.")
        pieces = list(chat.send("What is my name?", stream=True))
        said = "".join(pieces)
        assert "Zebedee" in said and len(pieces) > 2
        assert "Zebedee" not in model.chat(max_new_tokens=24).send("What is my name?")
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in chat.history]
        trained = [i for segment in model.prompt.segments(turns) for i in segment.ids]
        asked = [i for segment in model.prompt.segments(turns[:3], answer=False) for i in segment.ids]
    assert asked == trained[: len(asked)]


def test_a_gguf_file_is_the_model_it_was_unpacked_to(real, loaded):
    """The same weights as the folder's, rounded to float16 there, and the same tokens."""
    folder = load_language_model(str(real.lm.parent), precision="fp32")
    own, other = loaded.model.lm, folder
    words = "The capital of France is"
    ids = own.tokenizer(words).input_ids
    assert ids == other.tokenizer(words).input_ids and "GGUF" in own.note + own.reason
    with torch.no_grad(), one_thread():
        ours, theirs = (lm.model(torch.tensor([ids])).logits[0] for lm in (own, other))
    assert own.tokenizer.decode(ours[-1].argmax().item()) == " Paris"
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=0.1)
