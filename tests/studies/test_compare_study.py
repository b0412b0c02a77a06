"""What is made of a comparison's runs: the table, the picture, and that every variant is one train.py knows."""

from periscope.adapters.projectors import find_projector
from studies import compare


def row(variant: str, seed: int, qa: float) -> dict:
    scores = {"caption_scene": qa / 2, "caption_objects": qa, "qa_accuracy": qa}
    found = {"real": scores, "shuffled": dict.fromkeys(scores, 0.25)}
    facts = {"adapter": variant, "tokens": 16, "steps": 100 + seed, "seconds_a_step": 0.5, "seconds": 60.0}
    return {"variant": variant, "seed": seed, **facts, "scores": {"heldout": found, "newpairs": found}}


def test_the_table_has_means_and_spreads_best_first() -> None:
    rows = [row("linear1", 0, 0.4), row("mlp", 0, 0.8), row("mlp", 1, 0.6)]
    lines = compare.table(rows).splitlines()
    assert lines[2] == (
        "| mlp | 16 | 100 | 0.35 ± 0.05 | 0.25 ± 0.00 | 0.70 ± 0.10 | 0.25 ± 0.00 | 0.35 ± 0.05 | 0.70 ± 0.10 | 2 |"
    )
    assert lines[3].startswith("| linear1 | 16 | 100 | 0.20 | 0.25 | 0.40 |") and len(lines) == 4


def test_the_picture_shows_a_dot_for_each_run() -> None:
    figure = compare.picture([row("mlp", 0, 0.25), row("ldp", 0, 0.75), row("ldp", 1, 0.65)])
    scenes, questions = figure.axes
    own, other = questions.lines
    assert own.get_xydata().tolist() == [[0.75, 0], [0.65, 0], [0.25, 1]], "the best variant stands on top"
    assert set(other.get_xdata()) == {0.25} and other.get_fillstyle() == "none"
    assert scenes.lines[0].get_xdata()[0] == 0.375
    assert [label.get_text() for label in scenes.get_yticklabels()] == ["ldp", "mlp"]


def test_every_variant_is_known_to_the_script() -> None:
    from periscope.training.config import parse_request

    for adapter, flags in compare.VARIANTS.values():
        find_projector(adapter)
        assert parse_request(["--adapter", adapter, *flags]).flags["adapter"] == adapter
