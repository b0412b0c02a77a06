"""Before encoding, three texts are shown as the plain template lays them out."""

import json
from pathlib import Path

from data_folders import picture, put

from periscope.precompute.plan import describe_words
from periscope.precompute.prepare import prompt_options
from periscope.precompute.sources import collect


def plan_of(folder: Path, recipe: str = "") -> str:
    return "\n".join(describe_words(collect(folder), *prompt_options(recipe, "image")))


def test_samples_are_spread_evenly_and_laid_out_by_the_template(tmp_path: Path) -> None:
    for n in range(9):
        picture(tmp_path / f"{n}.png")
    rows = [f"{n}.png,What is  {n}?,{n}" for n in range(9)]
    put(tmp_path / "metadata.csv", "\n".join(["file_name,question,answer", *rows]))
    plan = plan_of(tmp_path)
    assert "samples: with the plain template; periscope train shows them with the language model's own" in plan
    for n in (0, 4, 8):
        prompt = f"<image>[{n}.png]</image>Question: What is {n}? Answer:"
        assert f"sample {n + 1} of 9: {n}.png\n  prompt: {prompt}\n  target:  {n}[end of text]" in plan
    assert plan.count("sample ") == 3


def test_a_recipes_template_is_shown(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    put(tmp_path / "a.txt", "A dog.")
    put(
        tmp_path / "own.toml",
        '[train]\ndelimiters = ["", "\\n"]\ncaption_prompt = "Say:"\nquestion = "Q {} "\nsoft_prompt = 4\neos = false',
    )
    plan = plan_of(tmp_path, str(tmp_path / "own.toml"))
    assert "samples: with the plain template of the recipe own;" in plan
    assert "  prompt: [soft prompt][a.png]\\nQ Say:\n  target:  A dog.\n  prompt: [end of text]" in plan


def test_texts_that_are_not_trained_on_say_so(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    question = {"role": "user", "content": "Why?"}
    answer = {"role": "assistant", "content": "y"}
    texts = [[question], [{"role": "user", "content": "<image><image>x"}, answer]]
    put(tmp_path / "texts.jsonl", "\n".join(json.dumps({"media": ["a.png"], "turns": turns}) for turns in texts))
    plan = plan_of(tmp_path)
    assert "Question: Why? Answer:\n  no target: it has no answer, and isn't trained on" in plan
    assert "  not trained on: a text has 2 <image> marks for 1 media" in plan
