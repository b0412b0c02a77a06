"""The shuffled control: who stands in for whom."""

from periscope.evaluation.controls import derangement


def test_a_derangement_never_gives_the_same_content():
    contents = [i // 3 for i in range(30)] + [99] * 14
    order = derangement(contents)
    assert sorted(order) == list(range(44)) and all(contents[i] != contents[j] for i, j in enumerate(order))
    assert derangement(contents) == order
    assert derangement([1, 1, 1, 2]) is None and derangement([]) is None and derangement([1]) is None
