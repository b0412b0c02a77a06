"""The benchmarks' own arithmetic, and that each measures what it says."""

import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, SiglipVisionConfig, SiglipVisionModel, ViTConfig

from benchmarks import (
    _synthetic,
    caching,
    clip_retrieval,
    decoding,
    growth,
    loader,
    other_trainers,
    padding,
    prefix,
    published_loop,
    ranks,
    sharing,
    side_by_side,
    startup,
    step,
    sweep,
    workers,
)
from benchmarks._meters import peak_bytes
from periscope.adapters.projectors import FeatureShape
from periscope.shards.read import FeatureSet

ROOT = Path(__file__).parents[2]


def test_the_ways_take_turns_and_the_median_counts() -> None:
    calls: list[str] = []

    def way(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(0.2 if len(calls) == 3 else seconds)  # one slow turn doesn't count

    found = side_by_side({"slow": lambda: way("slow", 0.04), "fast": lambda: way("fast", 0.01)}, rounds=3)
    assert calls == ["slow", "fast"] * 4
    assert 0.035 < found["slow"] < 0.15 and 0.008 < found["fast"] < found["slow"]


def test_decoding_gives_a_ratio_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SIZES", {"small": ((64, 48), 4)})
    found = decoding.measure(1)
    assert set(found) == {"decode on two threads, small"}
    assert found["decode on two threads, small"]["ratio"] > 0 < found["decode on two threads, small"]["images/s on one"]


def test_an_unknown_benchmark_is_named() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks", "decodng"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "no benchmark 'decodng'; there are" in done.stderr and "decoding" in done.stderr


TINY = {"layers": 1, "width": 32, "inner": 64}
FEW_PATCHES = FeatureShape("patches", 16, 12, (4, 4))


def measured(module: ModuleType, monkeypatch: pytest.MonkeyPatch, **sizes: object) -> dict[str, dict]:
    """What a benchmark finds at these sizes, in one round; every ratio is a sane number."""
    for name, value in sizes.items():
        monkeypatch.setattr(module, name, value)
    found = module.measure(1)
    assert found and all(0 < row["ratio"] < 1000 for row in found.values())
    return found


def test_a_prefix_is_measured_against_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"MODEL": TINY | {"vocab": 1500}, "PREFIXES": {"30": 30}, "MEDIA": 64, "STEPS": 1}
    found = measured(prefix, monkeypatch, **sizes)
    assert [row["losses apart"] < 1e-4 for row in found.values()] == [True] * 3


def test_a_step_is_measured_beside_the_bare_model(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        "pooled": step.Case("mlp2", FeatureShape("pooled", 1, 12), 4, 64, 1, 8, 2),
        "patches": step.Case("linear", FEW_PATCHES, 0, 4, 5, 10, 2),
    }
    found = measured(step, monkeypatch, MODEL=TINY | {"vocab": 1500}, CASES=cases)
    assert [row["adapter/model"] < 0.02 for row in found.values()] == [True, True]


def test_the_bare_model_reads_the_very_rows_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = _synthetic.language_model(**TINY, vocab=1500)
    model = _synthetic.adapted(lm, "linear", FEW_PATCHES)
    (batch,) = _synthetic.some_steps(model, 4, 5, 10, 1)
    (call,) = step.calls_of(lm, lambda: model.loss(batch.texts, batch.features))
    shared = sum(len(segment.ids) for text in batch.texts for segment in text) + 2 * 16
    assert call["inputs_embeds"].shape[:2].numel() == pytest.approx(shared, rel=0.3)  # two pictures for ten texts
    assert call["logits_to_keep"].sum() <= batch.targets and not call["inputs_embeds"].requires_grad
    assert lm.model.forward.__func__ is type(lm.model).forward


def test_the_published_loop_learns_the_same_from_more_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    case = ("linear", FEW_PATCHES, 1500, 16, 8, (2, 4))
    found = measured(published_loop, monkeypatch, MODEL=TINY, CASES={"tiny": case}, peak_bytes=lambda way: way() or 1)
    row = found["against the published loop, tiny"]
    assert row["losses apart"] < 1e-5 and row["its batch"] in (2, 4)
    lm = _synthetic.language_model(**TINY, vocab=1500)
    model = _synthetic.adapted(lm, "linear", FEW_PATCHES, output_norm=False)
    batches = _synthetic.some_steps(model, 16, 1, 4, 2)
    assert published_loop.evenly(list(range(12)), 3) == [2, 6, 10]
    pairs = [pair for batch in batches for pair in published_loop.pairs_of(batch)]
    with torch.no_grad():
        next(model.adapter.parameters()).add_(0.5)
    moved = published_loop.publish(model, published_loop.cut(pairs, 4))
    assert moved == pytest.approx(published_loop.train(model, batches), abs=1e-5)
    assert moved != pytest.approx(published_loop.publish(model, published_loop.cut(pairs[1:], 4)), abs=1e-5)


def test_other_trainers_learn_the_same_with_the_encoder_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = SiglipVisionConfig(**size, image_size=28, patch_size=14)
    cases = {
        kind: other_trainers.Case(spec, kind, 16, 4, (2, 4)) for spec, kind in (("mlp2", "pooled"), ("mlp", "patches"))
    }
    sizes = {"MODEL": TINY | {"vocab": 1500}, "ENCODER": encoder, "CASES": cases, "peak_bytes": lambda way: 1 << 30}
    found = measured(other_trainers, monkeypatch, **sizes)
    assert len(found) == 4 and all(row["memory"] == 1 and row["its batch"] in (2, 4) for row in found.values())
    model = _synthetic.adapted(
        _synthetic.language_model(**TINY, vocab=1500), "mlp", other_trainers.feature_shape("patches"), output_norm=False
    )
    loops = other_trainers.Loops(model, SiglipVisionModel(encoder).eval(), "patches")
    (batch,) = _synthetic.some_steps(model, 8, 1, 8, 1)
    loops.features = loops.encode(loops.pixels)  # not rounded to fp16, as stored ones are
    samples = loops.samples([batch])
    ours = published_loop.train(model, [loops.with_features(batch)])
    assert loops.llava([samples]) == pytest.approx(ours, abs=1e-4)
    alone = [(loops.nanovlm([[sample]], 40), len(sample.ids)) for sample in samples]
    together = sum(loss * count for loss, count in alone) / sum(count for _, count in alone)
    assert loops.nanovlm([samples], 60) == pytest.approx(together, abs=1e-4)
    with torch.no_grad():
        next(model.adapter.parameters()).add_(0.5)
    assert loops.llava([samples]) != pytest.approx(ours, abs=1e-4)


def test_peak_memory_is_what_work_takes_beyond_what_was_there() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux says so")
    held = torch.zeros(30 << 18)
    took = peak_bytes(lambda: [torch.ones(40 << 18), torch.ones(10 << 18)].clear())
    assert took == pytest.approx(50 << 20, rel=0.2) and held.sum() == 0


def test_captions_are_as_long_as_published() -> None:
    lengths = np.array(_synthetic.caption_lengths(20_000)) / _synthetic.TOKENS_A_WORD
    assert lengths.mean() == pytest.approx(10.3, abs=0.2) and lengths.std() == pytest.approx(4.5, abs=0.3)
    assert np.median(lengths) == pytest.approx(9, abs=0.6)


def test_sharing_caching_and_the_loader_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(sharing, monkeypatch, MODEL=TINY | {"vocab": 1500}, SHAPE=FEW_PATCHES)
    assert all(row["losses apart"] < 1e-5 for row in found.values())
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = CLIPVisionConfig(**size, image_size=28, patch_size=14)
    found = measured(caching, monkeypatch, MODEL=TINY | {"vocab": 1500}, ENCODER=encoder)
    assert all("break-even" in row for row in found.values())
    shapes = {"POOLED": FeatureShape("pooled", 1, 768), "PATCHES": FEW_PATCHES}
    found = measured(loader, monkeypatch, MANY=64, FEW=8, SLICE=TINY | {"vocab": 1500}, **shapes)
    assert len(found) == 6


def test_a_read_costs_the_same_in_a_larger_set(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self/io").exists():
        pytest.skip("only Linux counts them")
    found = measured(growth, monkeypatch, SMALL=40, LARGE=240, READS=200)
    reads, calls, memory = found.values()
    assert reads["ratio"] == pytest.approx(1, abs=0.01) and reads["bytes"] >= 2 * 64
    assert calls["ratio"] == pytest.approx(1, abs=0.01) and calls["calls"] == pytest.approx(1, abs=0.02)
    assert 10 < memory["bytes"] < 200


def test_padding_is_under_a_twelfth_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(padding, monkeypatch, TEXTS=20_000)
    assert all(row["share"] < 0.08 < 0.2 < row["at random"] for row in found.values())
    assert all(0.66 < row["fewest"] < 1 < row["most"] < 1.51 for row in found.values())


SMALL_VIT = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)


def test_both_ways_encode_the_same_pictures(tmp_path: Path) -> None:
    clip_retrieval.prepare(tmp_path, SMALL_VIT, pictures=5)
    theirs = np.load(clip_retrieval.partition(tmp_path, workers=0)).astype(float)
    features = FeatureSet(clip_retrieval.stored(tmp_path, "set"))
    keys = sorted(features.keys, key=lambda key: features.info(key)["origin"])
    ours = features.read_many(keys, "pooled").double().numpy()
    assert theirs == pytest.approx(ours / np.linalg.norm(ours, axis=1, keepdims=True), abs=2e-3)
    assert np.linalg.norm(theirs, axis=1) == pytest.approx(1, abs=1e-2)


def test_workers_are_measured_against_decoding_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    began = workers.processor_seconds()
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert 0.25 < workers.processor_seconds() - began < 3
    sizes = {"PICTURES": 6, "ENCODED": 4, "SIZE": (64, 48), "VIT": SMALL_VIT}
    found = measured(workers, monkeypatch, **sizes, processor_seconds=count().__next__)
    assert [row["ratio"] for row in found.values()] == [1, 1]


@pytest.mark.slow
def test_each_way_of_encoding_has_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(clip_retrieval, monkeypatch, VIT=SMALL_VIT, PICTURES=5, WORKERS=(0, 1))
    assert found["precompute against clip-retrieval's way"]["its workers"] in (0, 1)


@pytest.mark.slow
def test_a_run_of_one_step_is_measured_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(startup, monkeypatch, TEXTS=100)
    assert all(row["seconds"] > 0 for row in found.values())


@pytest.mark.slow
def test_ranks_and_sweeps_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = measured(ranks, monkeypatch, SIZES={"0.6M": 600_000}).values()
    assert 0 < row["a few numbers ms"] < 1000 and row["GB/s"] > 0
    (row,) = measured(sweep, monkeypatch, MIDDLE={"hidden_size": 32}, RATES=("1e-3", "3e-4")).values()
    assert row["s saved a run"] > 0 and row["ratio"] > 1
