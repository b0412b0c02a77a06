"""Loss drops: wrong captions rank lowest, and what is left or written anew can be trained on."""

import json
import random
from dataclasses import replace

import pytest
import torch
from toy_scenes import prepared, scene_texts

from periscope.adapters.generation.decoding import Decoding
from periscope.errors import RunError
from periscope.evaluation.captioning import captions_of_set, write_lines
from periscope.evaluation.loss_drop import LossDrop, jsonl_lines, rank_texts, without, worst
from periscope.shards.texts import Text
from periscope.training.data.steps import TrainingSteps

PLANTED = 6


class Set:
    """What `captioning` asks of a feature set beside its features."""

    def __init__(self, features):
        self.features, self.path, self.keys = features, "features/scenes", [f"m{i}" for i in range(64)]
        self.manifest = features.manifest

    def __len__(self):
        return len(self.keys)

    def row(self, key):
        return self.keys.index(key)

    def read_many(self, keys, kind, **how):
        return self.features.read_many(keys, kind, **how) if keys else torch.zeros(0, 24)

    def info(self, key):
        return {"origin": f"{key}.jpg", "sha256": str(int(key[1:]) % 16)}  # every sixteenth shows the same


@pytest.fixture(scope="module")
def trained(language_model_folder):
    """An adapter trained on 64 captions of which 6 are about another scene, and the texts."""
    texts = scene_texts()
    bad = random.Random(0).sample(range(len(texts)), PLANTED)
    said = {i: texts[(i + 5) % 64].turns for i in bad}  # another colour and another shape
    texts = [replace(text, turns=said.get(i, text.turns)) for i, text in enumerate(texts)]
    model, encoded = prepared(language_model_folder)
    steps = TrainingSteps(encoded, encoded.keep(texts, 256), 16, seed=0)
    model.adapter.match_scale(steps[0].rows)
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=3e-3)
    for step in range(120):
        loss, count = model.loss(steps[step].texts, steps[step].features)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, Set(encoded.features), texts, {texts[i].id for i in bad}


def test_planted_wrong_captions_rank_at_the_bottom(trained):
    model, features, texts, bad = trained
    found = rank_texts(model, features, texts, batch=8)
    assert {one.text.id for one in found[:PLANTED]} == bad
    assert worst(found, PLANTED / 64) == bad and len(worst(found, 0.5)) == 32
    assert worst(found, 0) == {one.text.id for one in found if one.drop < 0} <= bad
    assert [one.drop for one in found] == sorted(one.drop for one in found)
    assert found[-1].drop > 0.5 and all(one.drop == min(one.shuffled, one.none) - one.real for one in found)
    assert [one.drop for one in rank_texts(model, features, texts, batch=64)] == pytest.approx(
        [one.drop for one in found], abs=1e-4
    )
    line = next(jsonl_lines(found, features))
    assert line["id"] == found[0].text.id and line["origin"] == [f"m{line['id'][1:]}.jpg"]
    assert line["gain"] == pytest.approx(found[0].drop, abs=1e-4)


def test_what_is_left_can_be_read_back(trained, tmp_path):
    _, _, texts, bad = trained
    out = tmp_path / "new" / "good.jsonl"
    assert write_lines(without(texts, bad), out) == 64 - PLANTED
    from periscope.shards.texts import parse_text

    rows = [parse_text(line, "here", "") for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [text.id for text in texts if text.id not in bad]
    assert rows[0]["turns"] == list(texts[0].turns) and rows[0]["split"] == "train"


def test_gains_without_a_stand_in_and_of_nothing(trained):
    one = LossDrop(Text("a", ("m1",), (), "train"), 1.0, None, 1.5)
    assert one.drop == 0.5
    model, features, texts, _ = trained
    with pytest.raises(RunError, match="holds no such text about a medium that could be learnt from"):
        rank_texts(model, features, [], 8)
    same = [text for text in texts if int(text.media[0][1:]) % 16 == 3]
    assert all(found.shuffled is None for found in rank_texts(model, features, same, 8))
    assert json.loads(json.dumps(next(jsonl_lines([one], features))))["shuffled"] is None


def test_new_captions_are_what_the_model_says_of_each_medium(trained):
    model, features, _, _ = trained
    rows = {row["media"][0]: row for row in captions_of_set(model, features, 24, Decoding(6))}
    assert set(rows) == set(features.keys)
    segments = model.prompt.segments([], ["m5"], answer=False)
    (alone,) = model.generate([segments], {"m5": features.read_many(["m5"], "pooled")[0]}, 6)
    assert rows["m5"] == {
        "id": "m5-said", "media": ["m5"], "turns": [{"role": "assistant", "content": alone}]
    }, "no split: what the set holds out stays so"  # fmt: skip
    assert len({row["turns"][0]["content"] for row in rows.values()}) > 4, "they depend on the medium"
