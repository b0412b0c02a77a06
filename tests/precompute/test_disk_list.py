"""Records that wait on disk."""

import tracemalloc

import pytest

from periscope.precompute.sources import Words
from periscope.precompute.sources.disk_list import DiskList


def test_records_come_back_as_they_were_whatever_was_read_between() -> None:
    spool = DiskList()
    for n in range(5):
        spool.append({"n": n, "text": "a\nb\udcff\u00e9"})
        assert spool[0]["n"] == 0 and len(spool) == n + 1
    assert [record["n"] for record in spool] == [0, 1, 2, 3, 4] and spool[-1]["n"] == 4
    assert spool[3]["text"] == "a\nb\udcff\u00e9"
    one, two = iter(spool), iter(spool)
    assert [next(one)["n"], next(two)["n"], next(one)["n"], next(two)["n"]] == [0, 0, 1, 1]
    assert [record["n"] for record in spool.only(lambda record: record["n"] % 2)] == [1, 3]
    with pytest.raises(IndexError):
        spool[5]
    assert list(DiskList()) == []


def test_words_keep_their_types_and_take_8_bytes_each() -> None:
    from periscope.precompute.sources import _packed, _unpacked

    words = Words(("a.jpg", "b.jpg"), ({"role": "assistant", "content": "x" * 500},), "val", None, {"answers": ["y"]})
    spool = DiskList(_packed, _unpacked)
    tracemalloc.start()
    for _ in range(10_000):
        spool.append(words)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert spool[9_999] == words and grown < 200_000
