"""Reading for a disk that is slow to seek: in the order of the disk, ahead of the steps, each part once an epoch."""

import os
import pickle
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from periscope.adapters.projectors import FeatureShape
from periscope.shards.features import encode_fp16
from periscope.shards.read import FeatureSet
from periscope.shards.write import SetWriter, make_key
from periscope.training.data.dataset import TextFeatureDataset, TextIndex
from periscope.training.data.mix import MixedSteps
from periscope.training.data.read_ahead import ReadAhead
from periscope.training.data.steps import TrainingSteps
from periscope.training.data.training_set import media_per_span

ENCODER = {"name": "random", "library": "none", "id": "", "class": "None", "fingerprint": "0" * 64}
MEDIA, EACH = 60, 25


@pytest.fixture
def features(tmp_path) -> FeatureSet:
    """60 media in three shards, the i-th of them i everywhere."""
    import torch

    with SetWriter(tmp_path / "set", "image", ENCODER, {"pooled": {"shape": [8], "dtype": "float16"}}) as writer:
        for first in range(0, MEDIA, EACH):
            with writer.shard() as shard:
                for i in range(first, min(first + EACH, MEDIA)):
                    info = {"modality": "image", "origin": f"{i}.jpg", "sha256": f"{i:064x}"}
                    shard.add(make_key(f"{i}.jpg"), {"pooled": encode_fp16(torch.full((8,), float(i)))}, info)
        writer.finish([], set(), lambda _: (), [])
    return FeatureSet(tmp_path / "set")


def steps_of(features, batch=4, span_media=10):
    adapter = SimpleNamespace(features=FeatureShape("pooled", 1, 8), tokens=1, soft_tokens=0)
    dataset = TextFeatureDataset(features, SimpleNamespace(segments=lambda *_, **__: []), adapter)
    texts = [SimpleNamespace(media=(key,), turns=(), id=key, request="") for key in features.keys]
    index = TextIndex(texts, [3] * MEDIA, [2] * MEDIA, range(MEDIA), [1] * MEDIA, [False] * MEDIA)
    return dataset, index, TrainingSteps(dataset, index, batch, seed=1, span_media=span_media)


def test_a_part_is_read_once_from_its_first_byte_to_its_last(features, monkeypatch):
    read, really = [], os.pread

    def pread(file, size, place):
        found = really(file, size, place)
        read.append((os.readlink(f"/proc/self/fd/{file}").rsplit("/")[-1], place, len(found)))
        return found

    monkeypatch.setattr("periscope.shards.read.READ_THROUGH", 1500)
    monkeypatch.setattr(os, "pread", pread)
    features.read_through(20, 29)
    shards = dict.fromkeys(name for name, *_ in read)
    assert len(shards) == 2
    spans = {shard: [(place, size) for name, place, size in read if name == shard] for shard in shards}
    for parts in spans.values():
        assert all(a + size == b for (a, size), (b, _) in pairwise(parts)), "in order, without a gap"
    members, begins = features._index.member, [parts[0][0] for parts in spans.values()]
    ends = [place + size for place, size in (parts[-1] for parts in spans.values())]
    assert begins == [members[20], members[25]]
    assert ends == [features.manifest["shards"][0]["bytes"], members[30]]


def test_the_parts_are_asked_for_before_their_media_and_once_an_epoch(features):
    _, _, steps = steps_of(features)
    asked = []
    steps._ahead = SimpleNamespace(ask=lambda turn, first, last: asked.append((turn, first, last)))
    for epoch in range(2):
        seen = []
        for number in range(steps.per_epoch):
            batch = steps[epoch * steps.per_epoch + number]
            rows = batch.rows[:, 0].int().tolist()
            parts = [range(first, last + 1) for turn, first, last in asked if turn[0] == epoch]
            assert all(any(row in part for part in parts) for row in rows)
            seen += rows
        assert sorted(seen) == list(range(MEDIA))
    turns = list(dict.fromkeys(asked))
    assert len(turns) == len({turn for turn, *_ in turns}) and 12 <= len(turns) <= 14
    for epoch in range(2):
        spans = [(first, last) for turn, first, last in turns if turn[0] == epoch]
        assert sorted(row for first, last in spans for row in range(first, last + 1)) == list(range(MEDIA))
        assert [number for (e, number), *_ in turns if e == epoch] == list(range(len(spans)))
    assert {first for (e, _), first, _ in turns if e == 0} != {first for (e, _), first, _ in turns if e == 1}


def test_without_it_nothing_is_read_ahead_and_the_order_is_any(features):
    _, _, steps = steps_of(features, span_media=0)
    rows = [steps[number].rows[:, 0].tolist() for number in range(steps.per_epoch)]
    assert steps._ahead is None and sum(max(some) - min(some) for some in rows) / len(rows) > 20


def test_a_mix_reads_each_set_ahead(features):
    dataset, index, _ = steps_of(features)
    mix = MixedSteps([(dataset, index), (dataset, index)], [3.0, 1.0], 4, 0, span_media=[10, 20])
    asked = []
    for number, part in enumerate(mix.by_set):
        part._ahead = SimpleNamespace(ask=lambda *what, number=number: asked.append((number, *what)))
    for step in range(mix.per_epoch):
        mix[step]
    assert {number for number, *_ in asked} == {0, 1}
    runs = {number: {turn for n, turn, *_ in asked if n == number} for number in (0, 1)}
    assert max(epoch for epoch, _ in runs[0]) == 1 and {epoch for epoch, _ in runs[1]} == {0}


def test_it_reads_in_a_thread_and_a_disk_that_fails_does_not_end_it():
    read = []

    def through(first, last):
        read.append((first, last))
        if first == 0:
            raise OSError("gone")

    ahead = ReadAhead(through)
    for turn, first in (("a", 0), ("b", 10), ("a", 0), ("c", 20)):
        ahead.ask(turn, first, first + 9)
    for _ in range(200):
        if len(read) == 3:
            break
        time.sleep(0.01)
    assert read == [(0, 9), (10, 19), (20, 29)]


def test_it_can_be_sent_to_a_process(features):
    steps = pickle.loads(pickle.dumps(ReadAhead(features.read_through)))
    steps.ask("a", 0, 5)


def test_a_span_is_as_long_as_its_size_allows(features):
    size = sum(shard["bytes"] for shard in features.manifest["shards"])
    assert media_per_span(features, size // 2) == MEDIA // 2 and media_per_span(features, 1) == 1
    assert np.isclose(media_per_span(features, 1 << 30), (1 << 30) * MEDIA / size, rtol=0.01)
