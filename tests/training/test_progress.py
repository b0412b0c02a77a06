"""The progress bar: a smoothed loss that is one per target token."""

import math

import pytest

from periscope.training.progress import ProgressBar


def test_the_smoothed_loss_is_weighted_by_target_tokens():
    bar = ProgressBar(10, 0)
    assert math.isnan(bar.loss)
    bar.update(2.0, 30)
    assert bar.loss == pytest.approx(2.0)
    bar.update(8.0, 10)
    assert bar.loss == pytest.approx((0.95 * 30 * 2 + 10 * 8) / (0.95 * 30 + 10))
    bar.update(math.nan, 10)
    bar.update(math.inf, 10)
    assert bar.loss == pytest.approx((0.95 * 30 * 2 + 10 * 8) / (0.95 * 30 + 10))


def test_batches_of_short_and_long_texts_do_not_make_it_jump():
    """Short texts have a higher loss per token; by steps, each of their batches would count as much as a long one."""
    bar = ProgressBar(1000, 0)
    for step in range(300):
        loss, targets = ((4.0, 50) if step % 10 == 0 else (2.0, 1000)) if step < 299 else (4.0, 50)
        before = bar.loss
        bar.update(loss, targets)
    assert before == pytest.approx(2.0, abs=0.05) and abs(bar.loss - before) < 0.01
