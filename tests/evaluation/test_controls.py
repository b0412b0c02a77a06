"""The controls: which there are, in which order, and what each puts in the place of a medium's features."""

import pytest
import torch

from periscope.evaluation.controls import (
    CONTROLS,
    Condition,
    blank_feature,
    conditions,
    derangement,
    stand_ins,
    text_losses,
)
from periscope.shards.texts import Text
from periscope.training.data.dataset import Batch, medium_contents
from periscope.training.heldout import heldout_losses, still_blind

UP = {"colour": "red", "shape": "ring", "pace": "fast", "way": "up", "place": "top"}
STILL = {"colour": "blue", "shape": "star", "pace": "still", "way": "nowhere", "place": "bottom"}
TEXTS = [Text(f"t{i}", (str(i),), ({"role": "assistant", "content": "x" * i},), "heldout") for i in (1, 2, 3)]


class Sums:
    """A data set whose medium "3" has the features (3, 3), and a model whose loss is their sum."""

    def batch(self, texts, *, answer=True, media=True, instead=None):
        assert answer
        shown = [instead(text.media[0]) if instead else text.media[0] for text in texts]
        rows = torch.tensor([[float(key)] * 2 for key in shown]) if media else torch.zeros(0, 2)
        return Batch(list(texts), [text.media[0] for text in texts] if media else [], rows, 0)

    def text_losses(self, texts, features):
        return [(features[text.media[0]].sum().item() if features else 0.0, 2) for text in texts]


def test_conditions_come_in_one_order_and_shuffled_needs_a_stand_in():
    blank = torch.ones(2)
    assert list(conditions(CONTROLS[::-1], {"1": "2"}, blank)) == ["real", "shuffled", "blank", "none"]
    assert conditions(("none", "shuffled"), {}) == {"real": Condition(), "none": Condition(media=False)}
    assert conditions((), {"1": "2"}) == {"real": Condition()}
    assert [each.text_only for each in conditions(CONTROLS, {"1": "2"}, blank).values()] == [False, False, True, True]
    with pytest.raises(ValueError, match="blank feature"):
        conditions(("blank",))


def test_losses_under_each_condition_are_in_the_texts_order():
    stand_in, done = {"1": "2", "2": "3", "3": "1"}, []
    under = conditions(CONTROLS, stand_in, torch.full((2,), 5.0))
    losses = text_losses(Sums(), Sums(), TEXTS, under, batch=2, advance=done.append)
    assert losses == {
        "real": [(2.0, 2), (4.0, 2), (6.0, 2)],
        "shuffled": [(4.0, 2), (6.0, 2), (2.0, 2)],
        "blank": [(10.0, 2)] * 3,
        "none": [(0.0, 2)] * 3,
    }
    assert done == [2, 1] * 4
    assert heldout_losses(Sums(), Sums(), TEXTS, stand_in, 2) == {"real": 2.0, "shuffled": 2.0, "none": 0.0}
    assert heldout_losses(Sums(), Sums(), TEXTS, None, 2) == {"real": 2.0, "none": 0.0}


def test_the_blank_feature_is_the_mean_of_media_that_are_trained_on():
    class Features:
        keys, heldout = ["1", "2", "9"], {"9"}

        def read_many(self, keys, kind):
            return torch.tensor([[float(key)] * 2 for key in keys]).half()

    assert blank_feature(Features(), "pooled").tolist() == [1.5, 1.5]
    Features.heldout = set(Features.keys)
    assert blank_feature(Features(), "pooled").tolist() == [4.0, 4.0]


def test_a_stand_in_shows_something_else():
    contents = {"a": 1, "b": 1, "c": 2, "d": 3}
    found = stand_ins(contents)
    assert sorted(found.values()) == list("abcd") and all(contents[key] != contents[found[key]] for key in found)
    assert stand_ins({"a": 1, "b": 1, "c": 2}) == {} == stand_ins({})


@pytest.mark.parametrize("name", ["objects", "events", "movers"])
def test_media_that_hold_the_same_have_the_same_content(name):
    """So that none stands in for its like, whichever kind of medium it is."""

    class Features:
        def info(self, key):
            return {"sha256": f"hash of {key}"}

    texts = [Text(key, [key], [], "heldout", {name: things} if things else {}) for key, things in (
        ("a", [UP]), ("b", [STILL]), ("c", [dict(UP)]), ("d", None)
    )]  # fmt: skip
    found = medium_contents(Features(), texts)
    assert found["a"] == found["c"] != found["b"] and found["d"] == "hash of d"


def test_still_blind_needs_500_steps_and_no_gain():
    assert still_blind(500, {"real": 2.0, "shuffled": 2.01}) and not still_blind(499, {"real": 2.0, "shuffled": 2.0})
    assert not still_blind(900, {"real": 2.0, "shuffled": 2.5}) and not still_blind(900, {"real": 2.0})


def test_a_derangement_never_gives_the_same_content():
    contents = [i // 3 for i in range(30)] + [99] * 14
    order = derangement(contents)
    assert sorted(order) == list(range(44)) and all(contents[i] != contents[j] for i, j in enumerate(order))
    assert derangement(contents) == order
    assert derangement([1, 1, 1, 2]) is None and derangement([]) is None and derangement([1]) is None
