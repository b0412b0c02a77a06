"""Texts that stay in their file: found, picked, sent to other processes."""

import json
import pickle
import tracemalloc

import pytest

from periscope.errors import FeatureSetError
from periscope.shards.texts import BOM, Text, Texts


def row(number, split="train", **more):
    turns = [{"role": "assistant", "content": f"words {number} " + "long " * (number % 7 * 150)}]
    return {"id": f"t{number}", "media": [f"m{number % 9}"], "turns": turns, "split": split, "meta": {}} | more


def found(path, known=tuple(f"m{i}" for i in range(9)), names=(), heldout=()):
    texts = Texts(path, dict(names))
    return texts, texts.find(set(known), frozenset(heldout))


def test_each_text_is_read_as_it_stands_in_the_file(tmp_path):
    rows = [row(i, "heldout" if i % 5 == 0 else "train") for i in range(40)]
    file = tmp_path / "texts.jsonl"
    file.write_bytes(BOM + b"\n\n".join(json.dumps(one).encode() for one in rows))  # blank lines, no end of line
    texts, unknown = found(file)
    wanted = [Text(r["id"], tuple(r["media"]), tuple(r["turns"]), r["split"], {}) for r in rows]
    assert list(texts) == wanted and len(texts) == 40 and unknown == (0, "")
    assert [texts[i] for i in (39, 0, 17, -1)] == [wanted[i] for i in (39, 0, 17, -1)]
    with pytest.raises(IndexError):
        texts[40]
    held = texts.of_split("heldout")
    assert list(held) == [one for one in wanted if one.split == "heldout"] and held.splits == {"heldout"}
    assert list(texts[30:2:-3]) == wanted[30:2:-3] and texts.splits == {"heldout", "train"}
    assert list(held[1:].pick([2, 0])) == [held[3], held[1]] and not texts.of_split("none")
    assert list(pickle.loads(pickle.dumps(held))) == list(held)


def test_names_splits_and_unknown_media(tmp_path):
    file = tmp_path / "texts.jsonl"
    rows = [row(0, None, media=["a.jpg"]), row(1, None), row(2, "mine", media=["m2", "m3"]), row(3, media=["x", "y"])]
    del rows[1]["id"]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    texts, unknown = found(file, names={"a.jpg": "m7"}, heldout={"m7"})
    assert [(text.id, text.media, text.split) for text in texts] == [
        ("t0", ("m7",), "heldout"),
        ("line-2", ("m1",), "train"),
        ("t2", ("m2", "m3"), "mine"),
    ]
    assert unknown == (1, "x")


def test_a_file_changed_under_the_reader_is_said(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps(row(i)) for i in range(4)))
    texts, _ = found(file)
    file.write_text("other words\n" * 20)
    with pytest.raises(FeatureSetError, match=r"texts.jsonl, line 3: not JSON"):
        texts[2]
    with pytest.raises(FeatureSetError, match=r"texts.jsonl, line 1: not JSON"):
        found(file)
    with pytest.raises(FeatureSetError, match=r"nothing.jsonl doesn't exist"):
        Texts(tmp_path / "nothing.jsonl", {})


def test_a_text_takes_little_memory(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps(row(7 * i)) for i in range(20_000)))
    tracemalloc.start()
    texts, _ = found(file)
    part = texts.of_split("train")
    assert tracemalloc.get_traced_memory()[0] / len(part) < 24
    tracemalloc.stop()
