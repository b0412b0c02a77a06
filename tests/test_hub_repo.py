"""Names of the Hub and what can be wrong with them, in one sentence: adapters and feature sets alike."""

from pathlib import Path

import hub
import pytest
import toy_sets
from huggingface_hub import file_download

from periscope import train
from periscope.adapters.io.checkpoint import WEIGHTS
from periscope.adapters.io.hub import fetch_adapter
from periscope.errors import AdapterError, FeatureSetError, UserError
from periscope.evaluation.config import EvalConfig, check_places
from periscope.evaluation.sharing import PushRequest, share
from periscope.hub_repo import hub_reachable
from periscope.inference import adapter_folders
from periscope.places import check_run
from periscope.shards.sharing.fetch import fetch
from periscope.shards.sharing.names import hub_set
from periscope.shards.sharing.push import SetPush, push_set
from periscope.shards.verify import verify
from periscope.training.config import Request, check_paths

SET, ADAPTER = "datasets/user/photos", "user/eyes"


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """The stand-in with a feature set, user/photos, and the files of an adapter, user/eyes; the folder of both."""
    home = tmp_path_factory.mktemp("hub")
    made = toy_sets.make(home / "photos", range(20))
    (home / "eyes").mkdir()
    (home / "eyes" / "adapter.json").write_text("{}")
    (home / "eyes" / WEIGHTS).write_bytes(bytes(10_000))
    stand_in = hub.Hub()
    with stand_in.serving() as address, pytest.MonkeyPatch.context() as patch:
        hub.point_to(patch, address, home)
        push_set(SetPush(made.path, "user/photos"), lambda _: True)
        files = {path.name: path.read_bytes() for path in (home / "eyes").iterdir() if path.is_file()}
        stand_in.repos[ADAPTER], stand_in.commits[ADAPTER], stand_in.private[ADAPTER] = files, "1" * 40, False
        yield stand_in, home


@pytest.fixture(autouse=True)
def elsewhere(stand_in, tmp_path, monkeypatch):
    """An empty current folder and cache, and a stand-in that does what it should."""
    stand, _ = stand_in
    monkeypatch.chdir(tmp_path)
    hub.point_to(monkeypatch, hub_endpoint(), tmp_path)
    yield
    for spoilt in (stand.gated, stand.cut, stand.half_sent, stand.lost):
        spoilt.clear()


def hub_endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def said(what, *arguments) -> str:
    """The sentence that a call is refused with."""
    with pytest.raises(UserError) as refused:
        what(*arguments)
    sentence = str(refused.value)
    assert "\n" not in sentence and "Traceback" not in sentence
    return sentence


def fetched(name: str) -> Path:
    return fetch(hub_set(name))


def test_the_wrong_kind_of_repository_is_named(stand_in):
    assert said(fetched, "hf://user/eyes") == (
        "user/eyes on the Hub is a model, not a dataset; an adapter is asked: periscope ask user/eyes FILE QUESTION"
    )
    assert said(adapter_folders, "user/photos") == (
        "user/photos on the Hub is a dataset, not an adapter; a feature set is trained on: periscope train --features "
        "hf://user/photos"
    )
    for name, what in (("hf://user/nothing", fetched), ("user/nothing", adapter_folders)):
        assert f"{name} is neither here nor on the Hub (or it is private: hf auth login)" == said(what, name)
    _, home = stand_in
    assert "it is a feature set, to train on: --features" in said(adapter_folders, home / "photos")
    assert "it is a run or an adapter, which periscope push shares" in said(verify, home / "eyes")


@pytest.mark.parametrize(
    "name",
    ["hf://", "hf://user", "hf:///user", "hf://a/b/c", "hf://models/a/b", "hf://a/b@", "hf://a//b",
     "hf://-a/b", "hf://a b/c", "HF://a", "https://huggingface.co/datasets/a/b", "https:/hf.co/a/b"],
)  # fmt: skip
def test_a_malformed_name_of_a_set_says_how_they_are_written(name):
    for what in (check_paths, lambda _: fetched(name)):
        sentence = said(what, Request({"features": name}))
        assert sentence.startswith(f"{name} is no name of a feature set on the Hub: those are written as hf://owner")


def test_names_that_can_only_mean_one_set_are_taken():
    for name in ("hf:user/photos", "hf:///user/photos", "hf://user/photos/", "HF://user/photos"):
        assert str(hub_set(name)) == "hf://user/photos"


@pytest.mark.parametrize("name", ["hf://user/eyes", "hf:user/eyes", "https://huggingface.co/user/eyes/"])
def test_addresses_of_adapters_say_what_their_names_are(name):
    assert said(check_run, name, True).endswith("an adapter on the Hub is named owner/name, here user/eyes")
    assert said(adapter_folders, name).endswith("one on the Hub is named owner/name, here user/eyes")


def test_names_in_the_usual_folders_are_never_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "runs/first is not a run: there is no such folder here; runs/ holds no run" in said(
        check_run, "runs/first", True
    )
    sentence = said(check_paths, Request({"features": "features/photos"}))
    assert sentence == (
        "--features features/photos: there is no such folder; make one first: python precompute.py --data FOLDER"
    )


def test_what_isnt_here_says_how_it_is_had_from_the_hub():
    config = EvalConfig()
    config.scoring.features = Path("user/photos")
    for what, asked in ((check_paths, Request({"features": "user/photos=0.5"})), (check_places, config)):
        assert "there is no such folder; one on the Hub is named hf://user/photos" in said(what, asked)
    assert said(check_paths, Request({"init": "hf://user/eyes"})).endswith("named owner/name, here user/eyes")
    assert "fetch it first: periscope features fetch hf://user/photos" in said(verify, Path("hf://user/photos"))


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub_each_says_what_to_do(offline, monkeypatch, stand_in):
    _, home = stand_in
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if offline else "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    why = "HF_HUB_OFFLINE is set: unset it" if offline else "the Hub (127.0.0.1) can't be reached: connect"
    for name, what in (("hf://user/photos", fetched), (ADAPTER, adapter_folders)):
        sentence = said(what, name)
        assert sentence.startswith(f"{name} is not here, and") and f"{why}; the same command tries again" in sentence
    for sentence in (
        said(push_set, SetPush(home / "photos", "user/x"), lambda _: True),
        said(share, PushRequest(home / "eyes", "user/x"), lambda _: True),
    ):
        assert sentence.startswith("nothing can be pushed to user/x:") and f"{why}, and run the same" in sentence


def test_a_push_without_a_token_or_to_no_place_ends_before_the_work(stand_in, monkeypatch):
    _, home = stand_in
    for to in ("hf://user/x", "hf:user/x", "user", "datasets/user/x", "user/", "user/a b", "user/a--b"):
        sentence = said(push_set, SetPush(home / "nothing", to), lambda _: True)
        assert "owner/name" in sentence and to in sentence
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "nothing")
    for error, request in (
        (FeatureSetError, SetPush(home / "x", "user/x")),
        (AdapterError, PushRequest("x", "user/x")),
    ):
        with pytest.raises(error, match="takes a token of the Hub that may write: hf auth login"):
            (push_set if error is FeatureSetError else share)(request, lambda _: True)


def test_terms_that_werent_accepted_say_so(stand_in):
    stand, _ = stand_in
    stand.gated |= {"user/photos", "user/eyes"}
    for name, what in (("hf://user/photos", fetched), (ADAPTER, adapter_folders)):
        assert said(what, name) == (
            f"{name} on the Hub asks you to accept its terms first, on its page; then log in: hf auth login"
        )


def test_training_starts_from_an_adapter_of_the_hub():
    check_paths(request := Request({"init": ADAPTER}))
    folder = Path(str(train.with_fetched(request).flags["init"]))
    assert (folder / WEIGHTS).is_file() and (folder / "adapter.json").is_file()
    assert "is a dataset, not an adapter" in said(train.with_fetched, Request({"init": "user/photos"}))


def test_half_a_set_isnt_used_and_goes_on(stand_in, monkeypatch):
    stand, _ = stand_in
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # before it asks again
    stand.cut.add("shard-000000.tar")
    sentence = said(fetched, "hf://user/photos")
    assert sentence.startswith("hf://user/photos on the Hub can't be reached: ")
    assert (
        sentence.endswith("; the same command goes on with what is here") and not Path("features/user--photos").exists()
    )
    stand.cut.clear()
    assert "is whole" in verify(fetched("hf://user/photos"))


def test_half_an_adapter_isnt_taken_for_one(stand_in, monkeypatch):
    stand, _ = stand_in
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    stand.cut.add(WEIGHTS)
    assert said(fetch_adapter, ADAPTER).endswith("; the same command tries again")
    with monkeypatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        sentence = said(fetch_adapter, ADAPTER)
        assert sentence.startswith("user/eyes is") and "HF_HUB_OFFLINE is set: unset it" in sentence
    stand.cut.clear()
    assert (fetch_adapter(ADAPTER) / WEIGHTS).stat().st_size == 10_000
    stand.repos["user/bare"] = {"adapter.json": stand.repos[ADAPTER]["adapter.json"]}
    stand.commits["user/bare"], stand.private["user/bare"] = "3" * 40, False
    assert said(fetch_adapter, "user/bare") == f"user/bare on the Hub lacks {WEIGHTS}; tell whoever shared it"


def test_a_proxy_is_what_must_be_reached(monkeypatch):
    """Behind one, the Hub's own address can't be."""
    assert hub_reachable()
    real = hub_endpoint()
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("no_proxy", "")
    assert not hub_reachable()
    monkeypatch.setenv("http_proxy", real)
    assert hub_reachable()
    monkeypatch.setenv("no_proxy", "hub.invalid")
    assert not hub_reachable()
