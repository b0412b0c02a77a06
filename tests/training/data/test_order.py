"""Which texts make up which step."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from periscope.training.data import order
from periscope.training.data.order import TextOrder, steps_per_epoch


def test_an_epoch_holds_every_text_once_and_epochs_differ():
    media = [i // 5 for i in range(1003)]
    lengths = [10 + (i * 7) % 40 for i in range(1003)]
    texts = TextOrder(media, lengths, lengths, 16, seed=0)
    epochs = [texts.steps(epoch) for epoch in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]
    for steps in epochs:
        assert len(steps) == steps_per_epoch(1003, 16) == 63
        assert Counter(i for step in steps for i in step) == Counter(range(1003))
        assert sorted(map(len, steps))[1:] == [16] * 62
    assert replace(texts, seed=1).steps(0) != epochs[0]


def padding(lengths, steps):
    return 1 - sum(lengths) / sum(len(step) * max(lengths[i] for i in step) for step in steps)


def times_the_mean(targets, steps):
    """The fewest and the most target tokens of a full step, over the mean."""
    sums = [sum(targets[i] for i in step) for step in steps if len(step) == len(steps[0])]
    mean = np.mean(targets) * len(steps[0])
    return min(sums) / mean, max(sums) / mean


@pytest.mark.parametrize("batch, span_media", [(8, 0), (32, 0), (32, 3000)])
def test_steps_have_about_as_many_targets_and_little_padding(batch, span_media, monkeypatch):
    """Captions spread like Conceptual Captions' behind 16 tokens; sorting alone misses the bounds twofold."""
    targets = np.random.default_rng(0).lognormal(2.5, 0.42, 20_000).round().clip(3).astype(int).tolist()
    lengths = [16 + count for count in targets]

    def steps():
        spans = TextOrder(range(20_000), lengths, targets, batch, seed=0, span_media=span_media).spans(0)
        return sorted((step for span in spans for step in span.steps), key=len, reverse=True)

    mixed = steps()
    assert Counter(i for step in mixed for i in step) == Counter(range(20_000))
    fewest, most = times_the_mean(targets, mixed)
    assert fewest > 1 / 1.51 and most < 1.51 and padding(lengths, mixed) < 0.08
    monkeypatch.setattr(order, "MOST_PADDING", 0.0)
    fewest, most = times_the_mean(targets, steps())
    assert fewest < 0.33 and most > 2.7


def test_padding_comes_before_even_targets():
    """Where short and long answers are far apart, steps of both would be mostly padding."""
    targets = [3 if i % 2 else 150 + i % 40 for i in range(4000)]
    lengths = [40 + count for count in targets]
    steps = TextOrder(range(4000), lengths, targets, 16, seed=0).steps(0)
    assert padding(lengths, steps) < 0.08
    assert TextOrder([], [], [], 16, seed=0).steps(0) == []


def test_a_mediums_texts_travel_together_and_steps_hold_texts_of_like_length():
    media = [i // 4 for i in range(4000)]
    lengths = [5 + 60 * ((i // 4) % 10) for i in range(4000)]
    together = TextOrder(media, lengths, lengths, 16, seed=0).steps(0)
    apart = TextOrder(media, lengths, lengths, 16, seed=0, texts_per_medium=1).steps(0)

    def media_per_step(steps):
        return sum(len({media[i] for i in step}) for step in steps) / len(steps)

    assert media_per_step(together) < 4.5 and media_per_step(apart) > 12
    assert padding(lengths, together) < 0.08 and padding(lengths, apart) < 0.08


def test_spans_keep_to_media_stored_next_to_each_other():
    """4,000 texts of 1,000 media, 100 media a span: a step reads from one span, or from the border of two."""
    about = [(i * 37) % 1000 for i in range(4000)]
    lengths = [5 + 60 * (i % 10) for i in range(4000)]
    texts = TextOrder(about, lengths, lengths, 16, seed=0, span_media=100)
    spans = texts.spans(0)
    steps = [step for span in spans for step in span.steps]
    assert len(steps) == 250 and Counter(i for step in steps for i in step) == Counter(range(4000))
    assert sorted(map(len, steps))[0] == 16

    def reach(steps):
        rows = [[about[i] for i in step] for step in steps]
        return [max(row) - min(row) for row in rows]

    anywhere = replace(texts, span_media=0).steps(0)
    assert sum(span < 100 for span in reach(steps)) > 230 and sum(span < 100 for span in reach(anywhere)) < 25
    places = [min(about[i] for i in step) // 100 for step in steps]
    turns = sum(a != b for a, b in pairwise(places))
    assert turns < 60, "one span is read before the next begins"
    firsts = [{min(about[i] for i in step) for step in some} for some in (steps, texts.steps(1))]
    assert firsts[0] != firsts[1], "another epoch's spans begin elsewhere"
