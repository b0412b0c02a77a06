"""Fewer bits, fewer patches, more views: what is read is near what the encoder gave, and everyone reads the same."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from script_runs import script
from torch.utils.data import DataLoader

from periscope import inference as live
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.segments import Segment
from periscope.errors import FeatureSetError, PrecomputeError
from periscope.precompute import plan
from periscope.precompute.cli import main
from periscope.precompute.encoders import load_encoder_like
from periscope.precompute.media import decode_image
from periscope.precompute.pipeline import augment
from periscope.precompute.pipeline.filters import DUPLICATE
from periscope.precompute.tiny_encoders import open_clip_folder
from periscope.shards.features import CodedFeatures, encode, round_trip
from periscope.shards.index import NAME as INDEX
from periscope.shards.layout import parse_pool, settle_storage
from periscope.shards.read import FeatureSet
from periscope.shards.verify import verify
from periscope.shards.write import SetWriter, make_key
from periscope.training.data.dataset import Batch, TextFeatureDataset, TextIndex
from periscope.training.data.steps import TrainingSteps, choose_view
from periscope.units import format_bytes

ENCODER = {"name": "test", "library": "test", "id": "", "class": "Test", "fingerprint": "f" * 64}


def entry(*shape: int, codec: str = "fp16", **more: object) -> dict:
    return {"shape": list(shape), "dtype": "float16", "codec": codec, **more}


def test_patches_are_pooled_as_they_lie() -> None:
    torch.manual_seed(0)
    features = torch.randn(6 * 4, 8)
    how = settle_storage({"patches": entry(24, 8, grid=[6, 4])}, pool="3x2")["patches"]
    assert how == entry(4, 8, grid=[2, 2], pool=[3, 2])
    picture = features.half().float().T.reshape(1, 8, 6, 4)
    wanted = torch.nn.functional.avg_pool2d(picture, (3, 2)).flatten(2)[0].T
    torch.testing.assert_close(round_trip(features, how).float(), wanted, rtol=2e-3, atol=2e-3)
    twice = settle_storage({"patches": how}, pool="2x1")["patches"]
    assert twice == entry(2, 8, grid=[1, 2], pool=[6, 2])


def test_flags_become_entries() -> None:
    kinds = {"pooled": entry(8), "patches": entry(36, 8, grid=[6, 6]), "layers": entry(6, 8)}
    codec = lambda store: [e["codec"] for e in settle_storage(kinds, store).values()]  # noqa: E731
    assert codec([]) == codec(["fp16"]) == ["fp16"] * 3
    assert codec(["int8"]) == ["fp16", "int8", "fp16"]
    assert codec(["int8", "pooled=int4"]) == ["int4", "int8", "fp16"]
    assert settle_storage({"pooled": entry(8)}, ["int8"])["pooled"]["codec"] == "int8"
    assert kinds["patches"]["codec"] == "fp16" and parse_pool("2X3") == (2, 3)
    for store, pool, message in (
        (["int3"], "1x1", r"--store int3 isn't possible: it takes fp16, int8, int4"),
        (["tokens=int8"], "1x1", "one of the kinds pooled, patches, layers"),
        ([], "4x4", r"--pool 4x4 doesn't divide the grid of 6 x 6 patches; what does: 2x2, 3x3, 6x6"),
        ([], "2", "isn't ROWSxCOLUMNS"),
        ([], "0x2", "isn't ROWSxCOLUMNS"),
    ):
        with pytest.raises(FeatureSetError, match=message) as caught:
            settle_storage(kinds, store, pool)
        assert "\n" not in str(caught.value)
    with pytest.raises(FeatureSetError, match="these kinds have none: pooled"):
        settle_storage({"pooled": entry(8)}, pool="2x2")
    with pytest.raises(FeatureSetError, match="lie in a grid"):
        settle_storage({"patches": entry(7, 8)}, pool="7x1")
    with pytest.raises(FeatureSetError, match="12 x 101 patches; what does: 2x1, 3x1, 4x1"):
        settle_storage({"patches": entry(1212, 8, grid=[12, 101])}, pool="2x2")


STORED = {
    "pooled": entry(48, codec="int8"),
    "patches": entry(36, 40, codec="int4", grid=[6, 6], views=3, augmentation="x"),
    "layers": entry(6, 48),
}


def given(number: int, kind: str, how: dict) -> torch.Tensor:
    views = [how["views"]] if "views" in how else []
    return torch.randn(*views, *how["shape"], generator=torch.Generator().manual_seed(number * 10 + len(kind)))


def make(folder: Path, features: dict[str, dict], count: int = 12, per_shard: int = 5) -> FeatureSet:
    with SetWriter(folder, "image", ENCODER, features) as writer:
        for start in range(0, count, per_shard):
            with writer.shard() as shard:
                for n in range(start, min(count, start + per_shard)):
                    tensors = {}
                    for kind, how in features.items():
                        tensors |= encode(kind, given(n, kind, how), how)
                    info = {"modality": "image", "origin": f"{n}.jpg", "sha256": f"{n:064x}"}
                    shard.add(make_key(f"{n}.jpg"), tensors, info)
        writer.finish([], set(), lambda keys: [], [])
    return FeatureSet(folder)


def test_a_mixed_set_is_read_by_position(tmp_path: Path) -> None:
    features = make(tmp_path / "set", STORED)
    order = [7, 0, 7, 11, 3]
    keys, views = [features.keys[n] for n in order], [2, 1, 0, 0, 2]
    for kind, how in STORED.items():
        plain = {name: value for name, value in how.items() if name != "views"}
        some = views if "views" in how else None
        found = features.read_many(keys, kind, some)
        for row, n, view in zip(found, order, views, strict=True):
            whole = given(n, kind, how)
            assert torch.equal(row, round_trip(whole[view] if "views" in how else whole, plain))
    assert torch.equal(features.read(keys[0], "patches"), features.read_many(keys[:1], "patches", [0])[0])
    assert features.read_many([], "patches").shape == (0, 36, 40)
    with pytest.raises(FeatureSetError, match="holds 3 views of patches, not 4"):
        features.read(keys[0], "patches", 3)
    with pytest.raises(FeatureSetError, match="holds 1 views of pooled"):
        features.read_many(keys[:2], "pooled", [0, 1])
    good = (tmp_path / "set" / INDEX).read_bytes()
    (tmp_path / "set" / INDEX).unlink()
    assert torch.equal(FeatureSet(tmp_path / "set").read_many(keys, "patches", views), features.read_many(
        keys, "patches", views)) and (tmp_path / "set" / INDEX).read_bytes() == good  # fmt: skip
    assert "is whole" in verify(tmp_path / "set")
    loader = DataLoader(features.keys, 4, collate_fn=lambda part: features.read_many(part, "patches"), num_workers=2)
    assert torch.equal(torch.cat(list(loader)), features.read_many(features.keys, "patches"))


def test_large_tensors_far_from_their_scales(tmp_path: Path) -> None:
    wide = {"patches": entry(400, 96, codec="int8", views=2), "layers": entry(40, 96, codec="int8")}
    features = make(tmp_path / "set", wide, 4)
    for n, key in enumerate(features.keys):
        for view in (0, 1):
            plain = entry(400, 96, codec="int8")
            assert torch.equal(
                features.read(key, "patches", view), round_trip(given(n, "patches", wide["patches"])[view], plain)
            )
        assert torch.equal(features.read(key, "layers"), round_trip(given(n, "layers", wide["layers"]), wide["layers"]))


def test_a_set_of_the_first_format_is_read_and_extended(tmp_path: Path) -> None:
    plain = {"pooled": entry(48), "patches": entry(36, 40, grid=[6, 6])}
    features = make(tmp_path / "set", plain)
    path = tmp_path / "set/manifest.json"
    manifest = json.loads(path.read_text())
    for how in manifest["features"].values():
        del how["codec"]
    path.write_text(json.dumps(manifest | {"format": 1, "codec": "fp16"}))
    old = FeatureSet(tmp_path / "set")
    assert old.manifest["features"] == plain and "codec" not in old.manifest
    assert torch.equal(old.read_many(old.keys, "patches"), features.read_many(old.keys, "patches"))
    header = {"format": 1, "fingerprint": "f" * 64, "encoder": "test", "codec": "fp16"}
    shapes = {kind: how["shape"] for kind, how in plain.items()}
    (tmp_path / "set/progress.jsonl").write_text(json.dumps(header | {"features": shapes}) + "\n")
    with SetWriter(tmp_path / "set", "image", ENCODER, plain) as writer:
        assert len(writer.known()) == 12
    with (
        pytest.raises(FeatureSetError, match=r"36 x 40 fp16.*not as 36 x 40 int8"),
        SetWriter(tmp_path / "set", "image", ENCODER, settle_storage(plain, ["int8"])),
    ):
        pass


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_clip_folder(tmp_path_factory.mktemp("encoder") / "clip")


def photos(folder: Path, count: int = 12, size: tuple[int, int] = (48, 40)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"caption {number}")
    return folder


def run(data: Path, encoder: Path, out: Path, *more: str) -> FeatureSet:
    main(args=["--data", str(data), "--encoder", str(encoder), "--out", str(out), "--device", "cpu", *more])
    return FeatureSet(out)


def test_a_live_picture_is_what_the_shard_gives(tmp_path: Path, encoder: Path) -> None:
    data = photos(tmp_path / "photos")
    features = run(data, encoder, tmp_path / "set", "--store", "int4", "pooled=int8", "--pool", "2x2", "--batch", "1")
    held = features.manifest["features"]
    assert held["patches"] == entry(4, 32, codec="int4", grid=[2, 2], pool=[2, 2]) and held["pooled"]["codec"] == "int8"
    for kind in ("patches", "pooled"):
        eyes = live.Reader(load_encoder_like(features.manifest["encoder"]), kind, held[kind])
        unaware = live.Reader(eyes.encoder, kind)
        for number in (0, 5):
            stored = features.read(make_key(f"{number:03d}.png"), kind)
            assert torch.equal(eyes.features(data / f"{number:03d}.png"), stored)
            plain = unaware.features(data / f"{number:03d}.png")
            assert plain.shape != stored.shape or not torch.equal(plain, stored)


def test_an_adapter_knows_how_its_features_are_stored(tmp_path: Path, encoder: Path) -> None:
    run(photos(tmp_path / "photos", 24), encoder, tmp_path / "features/set", "--store", "int8", "--pool", "2x2")
    tiny.save_language_model("llama", tmp_path / "lm")
    script(tmp_path, "train.py", "--lm", "lm", "--adapter", "mlp", "--steps", "2", "--name", "one")
    features = FeatureSet(tmp_path / "features/set")
    eyes = live.load(tmp_path / "runs/one", lm=str(tmp_path / "lm"))
    storage = eyes.readers["image"].storage
    assert storage == features.manifest["features"]["patches"] and storage["pool"] == [2, 2]
    picture = tmp_path / "photos/003.png"
    assert torch.equal(eyes.features(picture), features.read(make_key("003.png"), "patches"))


def test_another_way_of_storing_at_the_same_out_is_refused(tmp_path: Path, encoder: Path) -> None:
    data, out = photos(tmp_path / "photos"), tmp_path / "set"
    run(data, encoder, out, "--store", "int8")
    run(data, encoder, out, "--store", "int8")
    for flags, message in (
        ((), "patches as 16 x 32 int8, grid 4 x 4, not as 16 x 32 fp16"),
        (("--store", "int8", "--pool", "2x2"), "not as 4 x 32 int8, grid 2 x 2, pooled 2x2"),
        (("--store", "int8", "--views", "2"), "not as 24 fp16, 2 views"),
    ):
        with pytest.raises(FeatureSetError, match=message):
            run(data, encoder, out, *flags)


def test_views_are_augmented_pictures(tmp_path: Path, encoder: Path) -> None:
    data = photos(tmp_path / "photos")
    features = run(data, encoder, tmp_path / "set", "--views", "3", "--batch", "5")
    once = run(data, encoder, tmp_path / "once")
    assert features.manifest["features"]["patches"]["views"] == 3
    clip = load_encoder_like(features.manifest["encoder"])
    for key in features.keys:
        for kind in ("pooled", "patches"):
            plain = once.read(key, kind)
            torch.testing.assert_close(features.read(key, kind), plain, rtol=2e-3, atol=2e-3)
            for view in (1, 2):
                assert (features.read(key, kind, view) - plain).abs().max() > 0.05
    name = "004.png"
    picture = augment.augment(decode_image(data / name), make_key(name), 2, clip.image_size)
    wanted = clip.encode(clip.preprocess(picture)[None], ["patches"])["patches"][0]
    torch.testing.assert_close(features.read(make_key(name), "patches", 2).float(), wanted, rtol=2e-3, atol=2e-3)
    assert verify(tmp_path / "set")


def test_a_view_depends_on_its_key_and_number_alone() -> None:
    from concurrent.futures import ThreadPoolExecutor

    picture = Image.effect_noise((90, 60), 80).convert("RGB")
    wanted = [augment.augment(picture, f"key{n % 4}", n // 4, 48).tobytes() for n in range(16)]
    assert len(set(wanted)) == 16
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda n: augment.augment(picture, f"key{n % 4}", n // 4, 48).tobytes(), range(16)))
    assert again == wanted and torch.equal(torch.get_rng_state(), state)


def test_training_takes_turns_with_views(tmp_path: Path) -> None:
    features = make(tmp_path / "set", {"pooled": entry(8, views=4)})
    shape = FeatureShape("pooled", 1, 8)
    adapter = SimpleNamespace(features=shape, tokens=1, soft_tokens=0)
    prompt = SimpleNamespace(segments=lambda *_, **__: [])
    encoded = TextFeatureDataset(features, prompt, adapter)
    texts = [SimpleNamespace(media=(key,), turns=(), id=key, request="") for key in features.keys]
    steps = TrainingSteps(encoded, TextIndex(texts, [3] * 12, [2] * 12, range(12), [1] * 12, [False] * 12), 4, seed=7)
    seen = {key: set() for key in features.keys}
    for step in range(3 * 40):
        batch = steps[step]
        for key, row in zip(batch.keys, batch.rows, strict=True):
            view = choose_view(7, step // 3, key, 4)
            assert torch.equal(row, features.read(key, "pooled", view))
            seen[key].add(view)
    assert all(views == {0, 1, 2, 3} for views in seen.values())
    resumed = TrainingSteps(encoded, TextIndex(texts, [3] * 12, [2] * 12, range(12), [1] * 12, [False] * 12), 4, seed=7)
    assert torch.equal(resumed[100].rows, steps[100].rows)
    counts = np.bincount([choose_view(0, epoch, "key", 4) for epoch in range(4000)])
    assert counts.min() > 900
    plain = encoded.batch(texts)
    assert torch.equal(plain.rows, features.read_many(plain.keys, "pooled"))


@pytest.mark.parametrize("codec", ["fp16", "int8", "int4"])
def test_a_step_is_decoded_where_it_is_trained_on(codec: str, tmp_path: Path) -> None:
    """The loader hands over what is stored; the step decodes the media of a micro-batch."""
    features = make(tmp_path / "set", {"patches": entry(36, 40, codec=codec, grid=[6, 6])})
    adapter = SimpleNamespace(features=FeatureShape("patches", 36, 40, (6, 6)), tokens=36, soft_tokens=0)
    prompt = SimpleNamespace(segments=lambda turns, media, **_: [Segment(slot=name) for name in media])
    encoded = TextFeatureDataset(features, prompt, adapter)
    texts = [SimpleNamespace(media=(key,), turns=(), id=key, request="") for key in features.keys]
    steps = TrainingSteps(encoded, TextIndex(texts, [3] * 12, [2] * 12, range(12), [1] * 12, [False] * 12), 6, seed=7)
    batch = steps[0]
    assert isinstance(batch.rows, CodedFeatures) == (codec != "fp16")
    plain = dict(zip(batch.keys, features.read_many(batch.keys, "patches"), strict=True))
    for part in [batch, *batch.cut(4)]:
        there = part.features_on(torch.device("cpu"))
        assert list(there) == [text[0].slot for text in part.texts]
        assert all(torch.equal(there[key], plain[key]) for key in there)
    assert all(torch.equal(row, plain[key]) for key, row in batch.features.items()) and len(batch.features) == 6
    both = Batch.join([batch, steps[1]])
    (last,) = list(both.cut(5))[2:]
    assert list(last.features_on(torch.device("cpu"))) == batch.keys[:0] + steps[1].keys[4:]
    assert torch.equal(steps.first_rows(), features.read_many(batch.keys, "patches"))
    assert encoded.batch([], coded=True).features == {} and features.read_many([], "patches").shape == (0, 36, 40)


def test_views_are_of_pictures(tmp_path: Path) -> None:
    from periscope.precompute.encoders import Encoder
    from periscope.precompute.pipeline.job import Job, precompute
    from periscope.precompute.sources import Collection

    class Sounds(Encoder):
        modality = "audio"

    with pytest.raises(PrecomputeError, match="--views augments pictures"):
        precompute(Job(Collection("x", {}, [], []), Sounds("sounds"), ["pooled"], tmp_path / "set", views=2))


def test_the_plan_names_what_fits(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = {"pooled": entry(1152), "patches": entry(729, 1152, grid=[27, 27])}
    choices = plan.alternatives(kinds)
    assert list(choices) == [  # 2x2 doesn't divide 27
        "--store fp16", "--kinds patches", "--store int8", "--store int4", "--store fp16 --pool 3x3",
        "--store int8 --pool 3x3", "--store int4 --pool 3x3", "--kinds pooled",
    ]  # fmt: skip
    assert sorted(choices.values(), reverse=True) == list(choices.values())
    each = plan.bytes_each(kinds)

    def error(free: int, items: int = 1000) -> str:
        wanted = plan.DiskPlan(items, 0, each, tmp_path, free, 1.0, choices)
        with pytest.raises(PrecomputeError) as caught:
            wanted.check()
        return str(caught.value)

    for share, flags in ((0.6, "--store int8"), (0.4, "--store int4"), (0.2, "--store fp16 --pool 3x3")):
        message = error(int(share * 1000 * sum(each.values())) + plan.SPARE)
        taken = format_bytes(1000 * (choices[flags] + plan.OVERHEAD))
        assert f"free: {flags} takes {taken}; or" in message and "\n" not in message
    printed = capsys.readouterr().out
    assert "--store int8" in printed and "too much" in printed and "fits" in printed
    assert "free: choose a smaller --limit" in error(plan.SPARE + 1000)
    assert "takes" not in str(plan.DiskPlan(1000, 0, each, tmp_path, 1 << 50, 1.0, choices))

    monkeypatch.setattr("periscope.precompute.pipeline.job.free_bytes", lambda _: plan.SPARE + 40 * 3300)
    with pytest.raises(PrecomputeError, match=r"free: --store int8 takes 1\d\d.\d kB"):
        run(photos(tmp_path / "photos", 40), encoder, tmp_path / "set")
    assert len(run(tmp_path / "photos", encoder, tmp_path / "set", "--store", "int8")) == 40


def test_small_and_doubled_pictures_are_left_out(tmp_path: Path, encoder: Path) -> None:
    data = photos(tmp_path / "photos", 8)
    Image.open(data / "000.png").resize((30, 200)).save(data / "thin.png")
    (data / "thin.txt").write_text("thin")
    for number in (2, 3):
        (data / f"zz copy {number}.png").write_bytes((data / f"{number:03d}.png").read_bytes())
        (data / f"zz copy {number}.txt").write_text(f"copy of {number}")
    flags = ("--min-side", "31", "--duplicates", "drop")
    features = run(data, encoder, tmp_path / "set", *flags)
    rejected = [json.loads(line) for line in (tmp_path / "set/rejected.jsonl").read_text().splitlines()]
    assert [(row["origin"], row["reason"], row["detail"]) for row in rejected] == [
        ("thin.png", "shorter side below 31 pixels", "30 x 200"),
        ("zz copy 2.png", DUPLICATE, "the same as 002.png"),
        ("zz copy 3.png", DUPLICATE, "the same as 003.png"),
    ]
    said = {text.turns[0]["content"]: text.media for text in features.texts()}
    assert len(features) == 8 and said["copy of 2"] == (make_key("002.png"),) and "thin" not in said
    before = (tmp_path / "set/manifest.json").read_bytes()
    run(data, encoder, tmp_path / "set", *flags)
    assert (tmp_path / "set/manifest.json").read_bytes() == before
    assert len(run(data, encoder, tmp_path / "set")) == 11


@pytest.mark.parametrize(
    ("kill", "apart", "layout"), [(False, False, "captions"), (True, False, "LLaVA"), (True, True, "captions")]
)
def test_captions_unlike_their_picture_are_left_out(
    tmp_path: Path, kill: bool, apart: bool, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the demo's encoder, which knows what a red circle is: the one that is stored, or another; and of rows in the
    form of LLaVA-Pretrain as of captions.
    """
    from periscope.precompute.tiny_encoders import transformers_folder

    encoder, judge = Path("demo"), ("--similarity", "0.3")
    if apart:
        encoder = transformers_folder(tmp_path / "dino", "dinov2")
        judge = (*judge, "--similarity-by", "demo")
    from periscope.demo.scenes import make
    from periscope.precompute.pipeline import job, writer

    scenes = make(tmp_path / "scenes", seed=3, train=12, heldout=4, new_pairs=4)
    rows = [json.loads(line) for line in (scenes / "texts.jsonl").read_text().splitlines()]
    captions = [row for row in rows if len(row["turns"]) == 1]
    names = [row["media"][0] for row in captions]
    swapped = {names[0]: captions[5]["turns"], names[1]: captions[9]["turns"]}
    lines = [{**row, "turns": swapped.get(row["media"][0], row["turns"])} for row in captions]
    lines.append({"media": [names[2]], "turns": [{"role": "assistant", "content": "no no no no"}]})
    if layout == "LLaVA":
        request = {"role": "user", "content": "Give a short and clear explanation of the subsequent image.\n<image>"}
        lines = [{**line, "turns": [request, *line["turns"]]} for line in lines]
    (scenes / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    if kill:
        monkeypatch.setattr(job, "samples_per_shard", lambda _: 6)
        replace, left = writer.resolve_splits, [1]

        def stop(*args: object) -> object:
            if left[0]:
                left[0] = 0
                raise KeyboardInterrupt
            return replace(*args)

        monkeypatch.setattr(writer, "resolve_splits", stop)
        with pytest.raises(KeyboardInterrupt):
            run(scenes, encoder, tmp_path / "set", *judge)
    features = run(scenes, encoder, tmp_path / "set", *judge)
    rejected = [json.loads(line) for line in (tmp_path / "set/rejected.jsonl").read_text().splitlines()]
    reasons = {(row["origin"], row["reason"].partition(" (")[0]) for row in rejected}
    assert (names[2], "caption unlike its words") in reasons
    assert {(names[0], "unlike its words"), (names[1], "unlike its words")} <= reasons
    assert len(features) == len(set(names)) - sum(reason == "unlike its words" for _, reason in reasons)
    assert len(features) >= len(set(names)) - 4
    words = [text.turns[-1]["content"] for text in features.texts()]
    assert "no no no no" not in words and captions[7]["turns"][0]["content"] in words
    before = (tmp_path / "set/texts.jsonl").read_bytes()
    run(scenes, encoder, tmp_path / "set", *judge)
    assert (tmp_path / "set/texts.jsonl").read_bytes() == before


def test_similarity_needs_words_and_pooled(tmp_path: Path, encoder: Path) -> None:
    from periscope.precompute.tiny_encoders import transformers_folder

    data = photos(tmp_path / "photos", 2)
    dino = transformers_folder(tmp_path / "dino", "dinov2")
    with pytest.raises(PrecomputeError, match="no text tower here: take one of open_clip"):
        run(data, dino, tmp_path / "set", "--similarity", "0.3")
    with pytest.raises(PrecomputeError, match="add pooled to --kinds, or name an encoder for it with --similarity-by"):
        run(data, Path("demo"), tmp_path / "set", "--similarity", "0.3", "--kinds", "patches")
