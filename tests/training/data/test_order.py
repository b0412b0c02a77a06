"""Which texts make up which step."""

from collections import Counter
from itertools import pairwise

from periscope.training.data.order import epoch_spans, epoch_steps, steps_per_epoch


def test_an_epoch_holds_every_text_once_and_epochs_differ():
    media = [i // 5 for i in range(1003)]
    lengths = [10 + (i * 7) % 40 for i in range(1003)]
    epochs = [epoch_steps(media, lengths, 16, seed=0, epoch=e) for e in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]
    for steps in epochs:
        assert len(steps) == steps_per_epoch(1003, 16) == 63
        assert Counter(i for step in steps for i in step) == Counter(range(1003))
        assert sorted(map(len, steps))[1:] == [16] * 62
    assert epoch_steps(media, lengths, 16, seed=1, epoch=0) != epochs[0]


def test_a_mediums_texts_travel_together_and_steps_hold_texts_of_like_length():
    media = [i // 4 for i in range(4000)]
    lengths = [5 + 60 * ((i // 4) % 10) for i in range(4000)]
    together = epoch_steps(media, lengths, 16, seed=0, epoch=0)
    apart = epoch_steps(media, lengths, 16, seed=0, epoch=0, texts_per_medium=1)

    def media_per_step(steps):
        return sum(len({media[i] for i in step}) for step in steps) / len(steps)

    def padding(steps):
        real = sum(lengths)
        return 1 - real / sum(len(step) * max(lengths[i] for i in step) for step in steps)

    assert media_per_step(together) < 4.5 and media_per_step(apart) > 12
    assert padding(together) < 0.05 and padding(apart) < 0.05


def test_spans_keep_to_media_stored_next_to_each_other():
    """4,000 texts of 1,000 media, 100 media a span: a step reads from one span, or from the border of two."""
    about = [(i * 37) % 1000 for i in range(4000)]
    lengths = [5 + 60 * (i % 10) for i in range(4000)]
    spans = epoch_spans(about, lengths, 16, seed=0, epoch=0, span_media=100)
    steps = [step for span in spans for step in span.steps]
    assert len(steps) == 250 and Counter(i for step in steps for i in step) == Counter(range(4000))
    assert sorted(map(len, steps))[0] == 16

    def reach(steps):
        rows = [[about[i] for i in step] for step in steps]
        return [max(row) - min(row) for row in rows]

    anywhere = epoch_steps(about, lengths, 16, seed=0, epoch=0)
    assert sum(span < 100 for span in reach(steps)) > 230 and sum(span < 100 for span in reach(anywhere)) < 25
    places = [min(about[i] for i in step) // 100 for step in steps]
    turns = sum(a != b for a, b in pairwise(places))
    assert turns < 60, "one span is read before the next begins"
    other = [step for span in epoch_spans(about, lengths, 16, seed=0, epoch=1, span_media=100) for step in span.steps]
    firsts = [{min(about[i] for i in step) for step in some} for some in (steps, other)]
    assert firsts[0] != firsts[1], "another epoch's spans begin elsewhere"
