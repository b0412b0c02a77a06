"""What a person is told who asks an adapter questions that was trained on captions alone, and what training shows."""

import json
import re
import shutil
import sys

import pytest
from script_runs import here

from periscope import train as train_script
from periscope.adapters.io.schema import read_adapter_config
from periscope.evaluation.report.runs import RunFolder
from periscope.inference import trained_on_questions
from periscope.training.run import Run

NOTE = "trained on captions alone"


def train(monkeypatch, name: str, *flags: str) -> None:
    given = ["--features", "features/photos", "--lm", "lm", "--adapter", "mlp3", "--steps", "1", "--name", name]
    monkeypatch.setattr(sys, "argv", ["train.py", *given, *flags, "--device", "cpu"])
    train_script.main()


def test_a_question_to_an_adapter_of_captions_gets_a_note(home, monkeypatch, capsys):
    texts = [json.loads(line) for line in (home / "features/photos/texts.jsonl").read_text().splitlines()]
    for text in texts:
        text["turns"] = [{"role": "user", "content": "What <is> it?"}, *text["turns"]]
    (home / "asked.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    train(monkeypatch, "captions")
    train(monkeypatch, "questions", "--text", "asked.jsonl", "--template", "plain")
    configs = {name: read_adapter_config(next((home / "runs" / name / "steps").glob("*/adapter")))
               for name in ("captions", "questions")}  # fmt: skip
    assert configs["captions"].training["captions"] == configs["questions"].training["questions"] == 64
    assert [trained_on_questions(config) for config in configs.values()] == [False, True]

    few = ("--max-new-tokens", "2")
    for name, expected in (("captions", True), ("questions", False)):
        for flags in (("--image", "photos/001.png", "--prompt", "What is it?"), ("--text", "asked.jsonl")):
            monkeypatch.setattr(sys, "stderr", sys.stdout)  # both streams in one
            said = here(home, monkeypatch, capsys, "eval.py", "--run", f"runs/{name}", *flags, *few)
            assert (NOTE in said) == expected, (name, flags)
            trains = "train.py --init runs/captions --features features/photos --text asked.jsonl (docs/stage2.md)"
            assert (trains in said) == (expected and "--text" in flags), "these questions are known"
    said = here(home, monkeypatch, capsys, "eval.py", "--run", "runs/captions", "--image", "photos/001.png",
                "--prompt", "", *few)  # fmt: skip
    assert NOTE not in said, "a caption was asked for"

    # A set with questions that this encoder made is named.
    asked = home / "features" / "asked"
    asked.mkdir()
    for file in ("manifest.json", "texts.jsonl"):
        shutil.copyfile(home / "features/photos" / file, asked / file)
    shutil.copyfile(home / "asked.jsonl", asked / "texts.jsonl")
    said = here(home, monkeypatch, capsys, "eval.py", "--run", "runs/captions", "--image", "photos/001.png",
                "--prompt", "What?", *few)  # fmt: skip
    assert "train.py --init runs/captions --features features/asked (docs/stage2.md)" in said
    shutil.rmtree(asked)

    # An older adapter doesn't tell, so nothing is said.
    file = next((home / "runs/captions/steps").glob("*/adapter/adapter.json"))
    facts = json.loads(file.read_text())
    del facts["training"]["captions"], facts["training"]["questions"]
    file.write_text(json.dumps(facts))
    said = here(home, monkeypatch, capsys, "eval.py", "--run", "runs/captions", "--text", "asked.jsonl", *few)
    assert NOTE not in said

    # samples.md names files and holds the prompts as they were asked, shown as they are.
    samples = (home / "runs/questions/samples.md").read_text()
    assert ".png | Question: What &lt;is&gt; it? Answer: | " in samples and "<is>" not in samples
    assert "| (caption) |" in (home / "runs/captions/samples.md").read_text()
    shown = re.findall(r"!\[\]\((.*?)\)", samples)
    assert shown and all((home / "runs/questions" / place).is_file() for place in shown)
    ((_, answers),) = RunFolder(home / "runs/questions").samples
    assert answers[0]["prompt"] == "Question: What <is> it? Answer:" and answers[0]["media"].endswith(".png")
    assert "data:image/jpeg" in (home / "runs/questions/report.html").read_text().split("Answers during training")[1]


def test_an_adapter_begun_from_another_counts_its_texts_too(home, monkeypatch):
    train(monkeypatch, "before")
    (home / "one.jsonl").write_text((home / "features/photos/texts.jsonl").read_text())
    train(monkeypatch, "after", "--init", "runs/before")
    after = read_adapter_config(Run.open(home / "runs/after").adapter_folders()[0]).training
    assert (after["captions"], after["questions"]) == (128, 0)


def test_words_in_samples_are_read_back_as_they_were(tmp_path):
    words = r"a|b *c* `d` [e](f) <g> &amp; \h\| _i_ ~j~"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("")
    Run(tmp_path / "run").write_samples(
        3, [{"media": words, "prompt": words, "answer": words, "reference": words, "id": "x"}]
    )
    ((step, (row,)),) = RunFolder(tmp_path / "run").samples
    assert step == 3 and set(row.values()) == {words}
    assert "<g>" not in (tmp_path / "run" / "samples.md").read_text()


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_line_after_training_works_as_printed(home, monkeypatch, capsys, split):
    import shlex

    lines = (home / "features/photos/texts.jsonl").read_text().splitlines()
    texts = [json.loads(line) for line in lines]
    for text in texts[: 8 if split == "heldout" else 0]:
        text["split"] = split
    kept = [text | {"split": text.get("split") if text.get("split") == split else "train"} for text in texts[:24]]
    (home / f"{split}.jsonl").write_text("".join(json.dumps(text) + "\n" for text in kept))
    train(monkeypatch, f"next-{split}", "--text", f"{split}.jsonl")
    said = capsys.readouterr().out
    assert ("Nothing is held out" in said) == (split == "train")
    assert f"done: runs/next-{split}; " in said and ("The best checkpoint is the last one" in said) == (
        split != "train"
    )
    (line,) = [line.removeprefix("Next: ") for line in said.splitlines() if line.startswith("Next: ")]
    program, script, *arguments = shlex.split(line)
    assert (program, script) == ("python", "eval.py")
    assert "written: " in here(home, monkeypatch, capsys, script, *arguments, "--max-new-tokens", "2")
