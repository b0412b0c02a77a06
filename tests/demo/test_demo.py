"""The demo through the three scripts: small in the default run, whole (minutes) with `pytest -m slow`."""

import json

import pytest
from script_runs import script


def test_the_demo_in_small(tmp_path):
    said = script(tmp_path, "precompute.py", "--limit", "96")
    assert "features/demo is ready" in said and "seed-0-96" in said
    assert "nothing to do" in script(tmp_path, "precompute.py", "--limit", "96")
    said = script(tmp_path, "train.py", "--adapter", "mlp16", "--steps", "10", "--name", "small")
    assert "recipe: demo" in said and "language model is unchanged" in said
    script(tmp_path, "precompute.py", "--limit", "24", "--demo-seed", "7", "--out", "features/seven")
    pictures = sorted((tmp_path / "demo" / "media").rglob("*.jpg"))
    live = script(tmp_path, "eval.py", "--image", str(pictures[0]), "--prompt", "How many objects are there?")
    assert live.strip()
    assert len(pictures) == 96 + 24, "no more is drawn than was asked for"


@pytest.mark.slow
def test_the_demo_answers_questions_it_was_never_trained_on(tmp_path):
    """The claim of the README, on the demo's scenes and on scenes of a seed that nothing was tuned on."""
    script(tmp_path, "precompute.py")
    script(tmp_path, "train.py", "--adapter", "mlp16", "--name", "demo")
    script(tmp_path, "precompute.py", "--demo-seed", "20261120", "--out", "features/other-seed")
    for features in ("features/demo", "features/other-seed"):
        script(tmp_path, "eval.py", "--features", features)
        found = json.loads((tmp_path / "runs" / "demo" / "eval.json").read_text())
        real, shuffled = found["real"], found["shuffled"]
        assert real["caption_scene"] >= 0.85 and real["qa_accuracy"] >= 0.80, real
        assert shuffled["qa_accuracy"] <= 0.40, shuffled
        kinds = [name for name in real if name.startswith("qa_") and name != "qa_accuracy"]
        assert len(kinds) >= 5
        for kind in kinds:
            assert (real[kind] - shuffled[kind]) / (1 - shuffled[kind]) >= 0.65, (kind, real, shuffled)
        assert found["swapped"]["qa_accuracy"] >= 0.9 * found["swapped"]["real"], found["swapped"]
        assert set(found["splits"]) == {"heldout", "new_pairs"}
    texts = (tmp_path / "features" / "demo" / "texts.jsonl").read_text().splitlines()
    learnt = [text for text in map(json.loads, texts) if text["split"] == "train"]
    assert learnt and all(len(text["turns"]) == 1 for text in learnt), "training must hold captions alone"
