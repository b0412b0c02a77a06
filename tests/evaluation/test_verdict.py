"""The verdict: what decides whether a model sees, and what the sentence says of it."""

import json

import numpy as np
import pytest

from periscope.evaluation import commands
from periscope.evaluation.controls import evenly
from periscope.evaluation.report import gallery
from periscope.evaluation.report.sample_sheet import pick
from periscope.evaluation.scoring.losses import paired_losses
from periscope.evaluation.scoring.prediction import Prediction, split_order
from periscope.evaluation.scoring.scores import scores
from periscope.evaluation.scoring.summary import summarise
from periscope.evaluation.scoring.verdict import verdict
from periscope.shards.texts import Text


def losses_of(real: float, shuffled: float, media: int = 20, noise: float = 0.3, per_medium: int = 1):
    """Losses per token around two means, with an error that is the same under both and one that isn't."""
    draws = np.random.default_rng(0)
    texts = [Text(f"{i}/{k}", (f"m{i}",), (), "val") for i in range(media) for k in range(per_medium)]
    common = draws.normal(0, 1, len(texts))
    rows = {
        name: [(3 * (mean + each + draws.normal(0, noise)), 3) for each in common]
        for name, mean in (("real", real), ("shuffled", shuffled))
    }
    return paired_losses(texts, rows)


def labels(count: int, right: int, right_shuffled: int):
    """Captions of one word, `right` of which are, and `right_shuffled` from another medium's features."""
    words = ["cat", "dog", "cow", "pig"]
    return [
        Prediction(str(i), f"m{i}", "", words[i % 4] if i < right else "x", words[i % 4],
                   words[i % 4] if i < right_shuffled else "x")
        for i in range(count)
    ]  # fmt: skip


def both(rows):
    return {"real": scores(rows), "shuffled": scores(rows, "shuffled")}


@pytest.mark.filterwarnings("ignore:CIDEr of")
def test_the_loss_decides_where_scores_of_short_captions_cant():
    """As in a run that was called blind: 2.47 nats per token against 3.66, and hardly an answer right under either."""
    rows = labels(20, 1, 1)
    found = verdict("val", losses_of(2.47, 3.66), rows, both(rows))
    assert found.seeing == "sees" and found.measure == "loss" and found.sentence.startswith("It sees: the loss on val")
    numbers, shown = summarise("val", rows, both(rows), [], "", losses_of(2.47, 3.66))
    assert shown.startswith(found.sentence) and numbers["verdict"]["seeing"] == "sees"
    assert numbers["losses"]["drop"] == pytest.approx(1.19, abs=0.2) and "median of 1 word," in str(numbers["warnings"])
    assert not any("blind" in warning for warning in numbers["warnings"])


@pytest.mark.parametrize(
    ("losses", "right", "shuffled", "seeing", "measure"),
    [
        (losses_of(2.5, 2.5, noise=0.01), 20, 0, "blind", "loss"),
        (losses_of(2.5, 2.505, noise=0.0), 20, 0, "blind", "loss"),  # surely more, but nothing to speak of
        (losses_of(2.5, 2.2), 0, 0, "blind", "loss"),
        (losses_of(2.5, 2.55, noise=2.0), 18, 2, "sees", "caption_exact"),
        (losses_of(2.5, 2.55, noise=2.0), 7, 7, "blind", "caption_exact"),
        (losses_of(2.5, 2.55, noise=2.0), 9, 8, "unclear", ""),
        (None, 20, 0, "sees", "caption_exact"),
    ],
)
@pytest.mark.filterwarnings("ignore:CIDEr of")
def test_the_verdict(losses, right, shuffled, seeing, measure):
    rows = labels(20, right, shuffled)
    found = verdict("val", losses, rows, both(rows))
    assert (found.seeing, found.measure) == (seeing, measure), found.sentence
    start = {"sees": "It sees: ", "blind": "It doesn't see yet: ", "unclear": "Too little data to tell"}[seeing]
    assert found.sentence.startswith(start) and found.sentence.endswith(".")


@pytest.mark.filterwarnings("ignore:CIDEr of")
def test_a_few_media_tell_nothing_however_large_the_difference():
    rows = labels(5, 5, 0)
    found = verdict("val", losses_of(1.0, 4.0, media=5, per_medium=8), rows, both(rows))
    assert found.seeing == "unclear" and "val has 5 media" in found.sentence


def test_the_interval_is_over_media():
    """Forty texts about four media say no more than four do."""
    one, several = losses_of(2, 3, media=160, noise=1), losses_of(2, 3, media=4, noise=1, per_medium=40)
    draws = np.random.default_rng(1)
    texts = [Text(f"{i}", (f"m{i // 40}",), (), "val") for i in range(160)]
    apart = np.repeat(draws.normal(1, 1, 4), 40)
    rows = {"real": [(2.0, 1)] * 160, "shuffled": [(2.0 + each, 1) for each in apart]}
    by_medium = paired_losses(texts, rows).drop
    alone = paired_losses([Text(text.id, (text.id,), (), "val") for text in texts], rows).drop
    assert by_medium.high - by_medium.low > 4 * (alone.high - alone.low)
    assert one.texts == several.texts == 160 and (one.media, several.media) == (160, 4)


def test_evenly_chosen_is_over_the_whole():
    assert evenly(range(100), 4) == [12, 37, 62, 87] and list(evenly(range(3), 8)) == [0, 1, 2]
    assert evenly(range(300), 256)[-1] > 297 and len(set(evenly(range(300), 256))) == 256
    rows = [{"media": f"m{i // 5}", "prompt": "" if i % 2 else "?", "id": i} for i in range(1000)]
    shown = [row["id"] for row in gallery.spread(rows, 18)]
    assert len(shown) == 18 and sum(i >= 500 for i in shown) == pytest.approx(9, abs=1)
    assert len({row["media"] for row in gallery.spread(rows, 18)}) == 18
    picked = pick([Prediction(str(i), f"m{i}", "", "x", "x") for i in range(100)])
    assert [int(row.id) // 25 for row in picked] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert split_order(["test", "dev", "val", "heldout"]) == ["heldout", "val", "dev", "test"]


def test_a_stop_in_a_later_control_loses_nothing(home, tmp_path, monkeypatch, capsys):
    """Ctrl-C while answering under `blank`: real and shuffled are on the disk, and both files say so."""
    import sys

    from periscope import eval as eval_script
    from periscope import train as train_script
    from periscope.adapters.model import AdaptedModel

    def call(script, *flags):
        monkeypatch.setattr(sys, "argv", [script.__file__, *flags, "--device", "cpu"])
        script.main()

    call(train_script, "--features", "features/photos", "--lm", "lm", "--adapter", "mlp3", "--steps", "2",
         "--name", "stopped-scoring")  # fmt: skip
    generate, calls = AdaptedModel.generate, []

    def stop(self, *given, **named):
        calls.append(len(given[0]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, *given, **named)

    monkeypatch.setattr(AdaptedModel, "generate", stop)
    with pytest.raises(KeyboardInterrupt):
        call(eval_script, "--run", "runs/stopped-scoring", "--max-new-tokens", "3")
    run = home / "runs" / "stopped-scoring"
    result = json.loads((run / "eval.json").read_text())
    assert result["finished"] is False and result["complete"] == {"heldout": ["real", "shuffled"]}
    assert {"real", "shuffled", "verdict"} <= set(result["splits"]["heldout"]) and "blank" not in result
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == result["n"] and all(row["control"] is not None and row["blank"] is None for row in rows)
    assert "isn't finished. Complete are heldout: real, shuffled" in (run / "report.html").read_text().replace(
        "&#39;", "'"
    )
    assert not (run / "evals").exists(), "the history holds finished results only"

    monkeypatch.setattr(AdaptedModel, "generate", generate)
    capsys.readouterr()
    # One checkpoint and one adapter folder by themselves, and a run whose training goes on beside.
    call(eval_script, "--run", "runs/stopped-scoring/steps/000002", "--max-new-tokens", "3")
    step = run / "steps/000002"
    assert json.loads((step / "eval.json").read_text())["finished"] and (step / "report.html").is_file()
    assert json.loads((run / "eval.json").read_text()) == result, "the run's own scores stay"
    (step / "adapter").rename(tmp_path / "mine")
    call(eval_script, "--run", str(tmp_path / "mine"), "--features", "features/photos", "--max-new-tokens", "3")
    told = json.loads((tmp_path / "mine/eval.json").read_text())
    assert told["step"] == "000002" and told["real"] == json.loads((step / "eval.json").read_text())["real"]
    (tmp_path / "mine").rename(step / "adapter")
    assert commands.load_models(
        {None: step}, __import__("periscope.evaluation.config", fromlist=["x"]).ModelOptions(), "cpu"
    )


def test_the_best_checkpoint_is_scored_and_its_step_is_read_once(home, monkeypatch):
    import sys

    from periscope import eval as eval_script
    from periscope import train as train_script
    from periscope.evaluation import scored_run

    def call(script, *flags):
        monkeypatch.setattr(sys, "argv", [script.__file__, *flags, "--device", "cpu"])
        script.main()

    call(train_script, "--features", "features/photos", "--lm", "lm", "--adapter", "mlp3", "--steps", "4",
         "--save-every", "2", "--name", "two-checkpoints")  # fmt: skip
    run = home / "runs" / "two-checkpoints"
    (run / "best").write_text("000002\n")
    load = scored_run.load_adapted

    def trained_on(*given, **named):
        (run / "last").write_text("000002\n")  # as if another checkpoint were written meanwhile
        return load(*given, **named)

    monkeypatch.setattr(scored_run, "load_adapted", trained_on)
    for flags, step in (((), "000002"), (("--last",), "000004")):
        (run / "last").write_text("000004\n")
        call(eval_script, "--run", "runs/two-checkpoints", "--max-new-tokens", "2", "--limit", "4", *flags)
        assert json.loads((run / "eval.json").read_text())["step"] == step
