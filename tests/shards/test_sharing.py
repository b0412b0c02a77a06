"""Feature sets on the Hub: what leaves is what was shown; what comes is what its manifest says, or isn't used."""

import hashlib
import io
import itertools
import json
import sys
import tarfile
from pathlib import Path

import hub
import pytest
import toy_sets
import yaml
from toy_sets import contents

from periscope import train
from periscope.errors import FeatureSetError
from periscope.precompute.__main__ import main as features_tool
from periscope.shards import verify
from periscope.shards.manifest import save_manifest
from periscope.shards.read import FeatureSet
from periscope.shards.sharing import fetch as fetching
from periscope.shards.sharing.fetch import SOURCE, fetch, fetched_names
from periscope.shards.sharing.names import hub_set, is_hub_set
from periscope.shards.sharing.push import SetPush, push_set
from periscope.training.config import Request

REPO = "datasets/user/photos"


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """The stand-in with a set pushed bare (user/photos) and one with all there is (user/whole); the set; the text shown
    for each."""
    home = tmp_path_factory.mktemp("sharing")
    made = toy_sets.make(home / "photos", range(40), rejected=("bad.jpg",), said="a <b>secret</b> of")
    stand_in, shown = hub.Hub(), []
    with stand_in.serving() as address, pytest.MonkeyPatch.context() as patch:
        hub.point_to(patch, address, home)

        def yes(text: str) -> bool:
            shown.append(text)
            return True

        push_set(SetPush(made.path, "user/photos"), yes)
        whole = SetPush(made.path, "user/whole", True, True, "cc-by-4.0", "my camera, https://x.example", True)
        push_set(whole, yes)
        yield stand_in, made, shown


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, as of somebody else, that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def evil(stand_in):
    """A function that shares a set as user/evil after something was done to its files; fetching it is tried."""
    stand, _, _ = stand_in
    name, commits = "datasets/user/evil", itertools.count(1)

    def share(change) -> None:
        commit = f"{next(commits):040x}"
        stand.repos[name], stand.commits[name], stand.private[name] = dict(stand.repos[REPO]), commit, False
        change(stand.repos[name])

    yield share
    stand.repos.pop(name, None)
    stand.lies.clear()


def test_without_words_nothing_but_features_leaves(stand_in):
    stand, made, shown = stand_in
    files = stand.repos[REPO]
    assert set(files) == {"README.md", "manifest.json", "texts.jsonl", "heldout.txt", "shard-000000.tar"}
    assert files["shard-000000.tar"] == (made.path / "shard-000000.tar").read_bytes() and not files["texts.jsonl"]
    assert not any(b"secret" in data for data in files.values())
    for name, data in files.items():
        assert f"  {name} " in shown[0] and f"{len(data):,} bytes" in shown[0]
    assert "none of the 40 texts (--texts shares them)" in shown[0] and "such as folder/0.jpg" in shown[0]
    assert not stand.private[REPO] and stand.private["datasets/user/whole"]
    assert not list(made.path.parent.glob(".*partial*")), "nothing is left of what was staged"


@pytest.mark.slow
def test_with_words_the_viewer_shows_them_beside_each_sample(stand_in, tmp_path):
    """The viewer reads a repository as `load_dataset` reads a folder: by the card's `configs`."""
    datasets = pytest.importorskip("datasets", reason="datasets isn't installed: pip install datasets")
    stand, made, _ = stand_in
    files = stand.repos["datasets/user/whole"]
    assert any(name.startswith("thumbnails/") for name in files)
    card = files["README.md"].decode()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "cc-by-4.0" and head["configs"][0]["data_files"][0]["path"] == "shard-*.tar"
    assert "my camera, https://x.example" in card and "train --features hf://user/whole --lm" in card
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    rows = list(datasets.load_dataset(str(tmp_path), split="train", streaming=True))
    assert [row["__key__"] for row in rows] == made.keys
    assert [row["json"]["words"] for row in rows] == [f"a <b>secret</b> of {n}" for n in range(40)]
    assert {row["json"]["split"] for row in rows} == {"train", "heldout"}


def test_a_fetched_set_is_the_one_that_was_pushed(stand_in, elsewhere, capsys):
    _, made, _ = stand_in
    folder = fetch(hub_set("hf://user/whole"))
    assert str(folder) == "features/user--whole" and "is whole" in verify.verify(folder)
    fetched = FeatureSet(folder)
    assert fetched.keys == made.keys and fetched.heldout == made.heldout
    assert list(fetched.texts()) == list(made.texts())
    assert all((fetched.read(key, "patches") == made.read(key, "patches")).all() for key in made.keys)
    assert {path.name for path in Path("features").iterdir()} == {"user--whole"}
    before = contents(folder)
    assert fetched_names(["hf://user/whole=0.7", "b=0.3"]) == ["features/user--whole=0.7", "b=0.3"]
    assert contents(folder) == before and "fetched from hf://user/whole before" in capsys.readouterr().out


def test_the_commands_push_and_fetch(stand_in, elsewhere, monkeypatch, capsys):
    _, made, _ = stand_in
    for words in (["push", str(made.path), "user/command", "--texts", "--yes"], ["fetch", "hf://user/command"]):
        monkeypatch.setattr(sys, "argv", ["periscope features", *words])
        features_tool()
    assert "train on it anywhere with: --features hf://user/command" in capsys.readouterr().out
    request = train.with_fetched(Request({"features": ["hf://user/command"], "steps": 3}))
    assert request.flags == {"features": ["features/user--command"], "steps": 3}
    assert train.with_fetched(Request({"features": "a"})).flags == {"features": "a"}


def test_a_push_that_is_refused_or_goes_wrong_says_so(stand_in):
    stand, made, _ = stand_in

    def push(to: str, **more) -> str:
        with pytest.raises(FeatureSetError) as refused:
            push_set(SetPush(made.path, to, **more), lambda text: to != "user/no")
        return str(refused.value)

    assert push("user/no") == "nothing was pushed" and "datasets/user/no" not in stand.repos
    assert "name an owner and a repository" in push("photos")
    assert "--private doesn't change that" in push("user/photos", private=True)
    stand.repos["datasets/user/other"] = {".gitattributes": b"", "train.csv": b"mine"}
    stand.commits["datasets/user/other"], stand.private["datasets/user/other"] = "3" * 40, False
    assert "something else than a feature set (train.csv), and nothing is overwritten" in push("user/other")
    stand.spoilt.add("datasets/user/spoilt")
    assert "README.md is something else there: push it again" in push("user/spoilt")


def test_a_push_removes_what_an_earlier_one_left(stand_in, elsewhere):
    stand, made, _ = stand_in
    shown = []
    for more in (True, False):
        request = SetPush(made.path, "user/fewer", texts=more, thumbnails=more)
        push_set(request, lambda text: shown.append(text) or True)
    files = stand.repos["datasets/user/fewer"]
    assert set(files) == set(stand.repos[REPO]) and not any(b"secret" in data for data in files.values())
    assert "files of an earlier push would be removed: thumbnails/" in shown[1]


def test_a_stopped_fetch_goes_on_and_isnt_used_before(stand_in, elsewhere, capsys):
    stand, _, _ = stand_in
    stand.lost.add("heldout.txt")
    with pytest.raises(FeatureSetError, match=r"refused to read hf://user/photos: 403 .*; ask its owner for access"):
        fetch(hub_set("hf://user/photos"))
    assert not Path("features/user--photos").exists()
    with pytest.raises(FeatureSetError):
        FeatureSet("features/user--photos")
    stand.lost.clear()
    stand.requests.clear()
    fetch(hub_set("hf://user/photos"))
    asked = [request for request in stand.requests if "/resolve/" in request and request.startswith("GET")]
    assert not any("shard-000000.tar" in request for request in asked), "it was there already"
    assert "of 3 files are here already" in capsys.readouterr().out
    assert "is whole" in verify.verify(Path("features/user--photos"))


def test_what_the_user_has_is_never_overwritten(stand_in, elsewhere):
    mine = Path("features/user--photos")
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(FeatureSetError, match="wasn't fetched from hf://user/photos, and nothing is overwritten"):
        fetch(hub_set("hf://user/photos"))
    assert contents(Path("features")) == {"user--photos/notes.txt": b"mine"}
    (mine / SOURCE).write_text(json.dumps({"repo": "user/photos", "revision": "", "commit": "a" * 40}))
    with pytest.raises(FeatureSetError, match="holds commit aaaaaaaa of user/photos"):
        fetch(hub_set("hf://user/photos@bbbb"))
    assert fetch(hub_set("hf://user/photos@aaaa")) == mine


def test_a_second_process_waits_for_the_first(stand_in, elsewhere, monkeypatch, capsys):
    real, tries = fetching.lock_folder, []

    def busy(place):
        tries.append(place)
        if len(tries) < 3:
            raise BlockingIOError
        return real(place)

    monkeypatch.setattr(fetching, "lock_folder", busy)
    monkeypatch.setattr(fetching, "POLL", 0)
    fetch(hub_set("hf://user/photos"))
    assert capsys.readouterr().out.count("another process is fetching") == 1


def resealed(files: dict[str, bytes], folder: Path, change) -> None:
    """Change a manifest as somebody would who can also compute its hash."""
    (folder / "seal").mkdir()
    manifest = json.loads(files["manifest.json"])
    change(manifest)
    save_manifest(folder / "seal", manifest)
    files["manifest.json"] = (folder / "seal" / "manifest.json").read_bytes()


def other_tar(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    return stream.getvalue()


def renamed(name: str):
    return lambda manifest: manifest["shards"][0].update(name=name)


def replaced(data: bytes):
    digest = hashlib.sha256(data).hexdigest()
    return lambda manifest: manifest["shards"][0].update(bytes=len(data), sha256=digest, samples=0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (renamed("../../escaped.tar"), "is damaged"),
        (renamed("/escaped.tar"), "is damaged"),
        (lambda manifest: manifest["files"].update({"../escaped.txt": "0" * 64}), "is damaged"),
        (lambda manifest: manifest["files"].update({"thumbnails/../../x.jpg": "0" * 64}), "is damaged"),
        (lambda manifest: manifest["files"].pop("texts.jsonl"), "without hashes"),
        (lambda manifest: manifest["files"].update({"rejected.jsonl": "0" * 64}), "lacks rejected.jsonl"),
        (lambda manifest: manifest["shards"][0].update(bytes=10**15), r"has [\d,]+ bytes there, which its"),
        (lambda manifest: manifest["shards"][0].update(sha256="0" * 64), "isn't what its manifest.json says"),
        (lambda manifest: manifest["counts"].update(heldout=39), "list of held-out media isn't of this set"),
    ],
)
def test_a_strangers_manifest_is_believed_in_nothing(evil, elsewhere, change, why):
    evil(lambda files: resealed(files, elsewhere, change))
    with pytest.raises(FeatureSetError, match=why):
        fetch(hub_set("hf://user/evil"))
    assert not Path("features/user--evil").exists() and not list(elsewhere.parent.glob("**/escaped*"))


@pytest.mark.parametrize(
    "shard", [other_tar("../escaped.json"), other_tar("a.json", tarfile.SYMTYPE), other_tar("/a.json"), b"no tar"]
)
def test_a_strangers_shard_is_never_unpacked(evil, elsewhere, shard):
    def change(files: dict[str, bytes]) -> None:
        resealed(files, elsewhere, replaced(shard))
        files["shard-000000.tar"] = shard

    evil(change)
    with pytest.raises(FeatureSetError, match=r"doesn't belong in a feature shard|can't be read as a shard"):
        fetch(hub_set("hf://user/evil"))
    assert not Path("features/user--evil").exists() and not list(elsewhere.parent.glob("**/escaped*"))


def test_files_are_as_large_as_said_and_hashed(evil, stand_in, elsewhere):
    stand, _, _ = stand_in
    evil(lambda files: files.update({"heldout.txt": files["heldout.txt"][::-1], "evil.py": b"x"}))
    with pytest.raises(FeatureSetError, match=r"heldout.txt isn't what its manifest.json says"):
        fetch(hub_set("hf://user/evil"))
    evil(lambda files: files.update({"manifest.json": files["manifest.json"].replace(b'"photos"', b'"evil"')}))
    with pytest.raises(FeatureSetError, match="was changed after it was written"):
        fetch(hub_set("hf://user/evil"))
    evil(lambda files: None)
    stand.lies["manifest.json"] = 10**12
    with pytest.raises(FeatureSetError, match=r"has 1,000,000,000,000 bytes, which is too many"):
        fetch(hub_set("hf://user/evil"))
    stand.lies["manifest.json"], stand.lies["texts.jsonl"] = 2000, 10**15
    with pytest.raises(FeatureSetError, match=r"takes 1,000,000.00 GB, and features has"):
        fetch(hub_set("hf://user/evil"))
    assert not any("evil.py" in request for request in stand.requests)
    assert not any(path.name == "evil.py" for path in elsewhere.rglob("*"))


def test_names(elsewhere):
    assert hub_set("hf://datasets/user/a.b@v1").repo == "user/a.b" and hub_set("hf://user/a").revision == ""
    assert is_hub_set(Path("hf://user/a")) and hub_set(Path("hf://user/a")).repo == "user/a"
    assert not is_hub_set("features/hf") and not is_hub_set(None)
    for name in ("hf://a", "hf://../a", "hf://user/..", "hf://a/b/c", "hf://user/a--b", "hf://u/a@../b", "hf://u/a b"):
        with pytest.raises(
            FeatureSetError, match="no name of a feature set on the Hub: those are written as hf://owner/name"
        ):
            hub_set(name)
