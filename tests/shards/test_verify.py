"""Every byte of a finished set is covered by a hash: verify sees each change, and the same command mends it."""

import json
import random
from pathlib import Path

import pytest
from toy_sets import ENCODER, FEATURES, caption, contents, digest, make, thumbnail

from periscope.errors import FeatureSetError
from periscope.shards.derive import merge, recode
from periscope.shards.manifest import load_manifest
from periscope.shards.read import FeatureSet
from periscope.shards.split import resolve_splits
from periscope.shards.verify import UNCHECKED, verify
from periscope.shards.write import SetWriter, make_key


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return make(
        tmp_path_factory.mktemp("whole") / "set", range(20), {"pooled": FEATURES["pooled"]}, rejected=("b.jpg",)
    )


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_verify_names_the_file_with_a_flipped_bit(whole: FeatureSet) -> None:
    """Random bits of each file beside the shards; of the manifest all of its last line, with its own hash."""
    assert verify(whole.path).endswith("20 texts")
    thumbnail = min((whole.path / "thumbnails").iterdir())
    generator, unseen, count = random.Random(0), [], 0
    for path in (whole.path / "manifest.json", *(whole.path / f"{n}" for n in ("texts.jsonl", "heldout.txt")),
                 whole.path / "rejected.jsonl", thumbnail):  # fmt: skip
        before = path.read_bytes()
        places = [(generator.randrange(len(before)), generator.randrange(8)) for _ in range(30)]
        if path.name == "manifest.json":
            places += [(place, generator.randrange(8)) for place in range(len(before) - 90, len(before))]
        for place, bit in places:
            flip(path, place, bit)
            count += 1
            try:
                unseen.append((path.name, place, bit, verify(whole.path)))
            except FeatureSetError as error:
                assert path.name in str(error) and "\n" not in str(error), error
            path.write_bytes(before)
    assert not unseen and count == 240 and "is whole" in verify(whole.path)


def test_a_held_out_list_of_training_media_is_seen(whole: FeatureSet) -> None:
    path = whole.path / "heldout.txt"
    before = path.read_text()
    free = [key for key in whole.keys if key not in whole.heldout]
    path.write_text("".join(f"{key}\n" for key in sorted(free)[: len(whole.heldout)]))
    with pytest.raises(FeatureSetError, match=r"heldout.txt was changed"):
        verify(whole.path)
    path.write_text(before)


@pytest.mark.parametrize("name", ["texts.jsonl", "heldout.txt", "rejected.jsonl", "thumbnails", "manifest.json"])
def test_the_same_command_mends_what_was_changed(tmp_path: Path, name: str) -> None:
    features = make(tmp_path / "set", range(20), rejected=("b.jpg",))
    before = contents(features.path)
    path = features.path / name
    path = min(path.iterdir()) if path.is_dir() else path
    flip(path, len(path.read_bytes()) // 2, 0)
    with pytest.raises(FeatureSetError, match=f"{path.name}.*copy it again|{path.name} was changed"):
        verify(features.path)
    if name == "manifest.json":
        flip(path, len(path.read_bytes()) // 2, 0)  # an unreadable one ends every command with that sentence
        path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "other"}))
        with pytest.raises(FeatureSetError, match=r"manifest.json was changed"):
            verify(features.path)
    make_again(features.path)
    assert contents(features.path) == before and "is whole" in verify(features.path)


def make_again(folder: Path) -> None:
    """Run the command that made the set again: its media are there already, everything else is given anew."""
    with SetWriter(folder, "image", ENCODER, FEATURES) as writer:
        keys = {make_key(f"folder/{n}.jpg"): n for n in range(20)}
        writer.settle({key: digest(n) for key, n in keys.items()})
        hashes = {sample.key: sample.sha256 for sample in writer.samples()}
        rows, heldout = resolve_splits(hashes, [caption(key, f"words {n}") for key, n in keys.items()])
        left_out = [{"origin": "b.jpg", "reason": "truncated", "detail": ""}]
        writer.finish(rows, heldout, lambda wanted: ((key, thumbnail(key)) for key in wanted), left_out)


def test_a_set_of_an_earlier_version_is_read_and_gets_its_hashes(tmp_path: Path) -> None:
    features = make(tmp_path / "set", range(20), rejected=("b.jpg",))
    before = contents(features.path)
    path = features.path / "manifest.json"
    manifest = json.loads(path.read_text())
    old = {name: value for name, value in manifest.items() if name not in ("files", "sha256")}
    path.write_text(json.dumps(old, indent=1) + "\n")
    assert verify(features.path).endswith(UNCHECKED)
    assert "files" in recode(features.path, tmp_path / "small", ["int8"]).manifest
    make_again(features.path)
    assert contents(features.path) == before and verify(features.path).endswith("20 texts")
    del manifest["files"]
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    with pytest.raises(FeatureSetError, match=r"manifest.json was changed"):
        verify(features.path)


def test_derived_sets_have_hashes_of_their_own_and_none_of_a_changed_set(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", range(0, 20)), make(tmp_path / "b", range(20, 40))
    for made in (merge(tmp_path / "ab", [a.path, b.path]), recode(a.path, tmp_path / "small", ["int8"])):
        files = load_manifest(made.path)["files"]
        shown = {f"thumbnails/{path.name}" for path in (made.path / "thumbnails").iterdir()}
        assert {*files} == {"texts.jsonl", "heldout.txt", "rejected.jsonl"} | shown and shown
        assert verify(made.path).endswith("texts")
    flip(b.path / "texts.jsonl", 40, 0)
    for work in (lambda: merge(tmp_path / "new", [a.path, b.path]), lambda: recode(b.path, tmp_path / "new", ["int8"])):
        with pytest.raises(FeatureSetError, match=r"texts.jsonl was changed"):
            work()
    assert not (tmp_path / "new").exists()
