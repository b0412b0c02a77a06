"""units.py: bytes and durations as people read them."""

import pytest

from periscope.units import format_bytes, format_duration


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000, "1.5 MB"), (3e9, "3.0 GB"), (2e12, "2.0 TB")],
)
def test_bytes_are_decimal(number, shown):
    assert format_bytes(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "1 s"), (80, "80 s"), (90, "2 min"), (600, "10 min"), (5400, "1.5 h"), (36000, "10.0 h")]
)
def test_durations(seconds, shown):
    assert format_duration(seconds) == shown
