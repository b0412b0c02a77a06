"""LLaVA's conversations mixed with captions, from the JSON file to the step."""

import json
import sys

import torch
from PIL import Image

from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import Template
from periscope.training.data.dataset import TextFeatureDataset


def metrics_of(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: row[name] for name in ("step", "loss", "heldout", "sets") if name in row} for row in rows]


def adapted_model(lm, width=6, modality="image", soft=0):
    torch.manual_seed(width)
    adapter = Adapter("mlp2", FeatureShape("pooled", 1, width), lm.hidden_size, lm.embedding_rms, soft)
    template = Template(delimiters=(f"<{modality}>", "|"))
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, template, modality), token_noise=0.1)


def test_llavas_conversations_are_mixed_with_captions_from_file_to_step(photo_home, monkeypatch, capsys):
    """Turns, marks, several pictures and words alone: what its JSON says is what the language model is given."""
    from periscope.precompute.cli import main as encode
    from periscope.shards.read import FeatureSet

    monkeypatch.chdir(photo_home)
    folder, rows = photo_home / "llava", []
    (folder / "images").mkdir(parents=True)
    for i in range(20):
        Image.effect_noise((40, 40), 10 + i).convert("RGB").save(folder / "images" / f"{i}.png")
        talk = [
            ("human", "<image>\nWhat colour is the star?"),
            ("gpt", "blue"),
            ("human", "and the dog"),
            ("gpt", "lazy"),
        ]
        if i % 4 == 3:
            talk = [("human", "the <image> fox or <image>"), ("gpt", "the quick brown fox")]
        pictures = [f"images/{i}.png", f"images/{i - 1}.png"] if i % 4 == 3 else f"images/{i}.png"
        rows.append(
            {"id": f"{i}", "image": pictures, "conversations": [{"from": who, "value": said} for who, said in talk]}
        )
    words = [{"from": "human", "value": "the lazy dog"}, {"from": "gpt", "value": "jumps over"}]
    rows += [{"id": f"words{i}", "conversations": words} for i in range(4)]
    (folder / "llava.json").write_text(json.dumps(rows))
    encode(args=["--data", "llava", "--encoder", "clip", "--out", "features/llava", "--device", "cpu"])

    lm = load_language_model(str(photo_home / "lm"))
    sets = [FeatureSet(photo_home / "features" / name) for name in ("photos", "llava")]
    width = sets[0].manifest["features"]["pooled"]["shape"][0]
    model = adapted_model(lm, width, soft=2)
    datasets = [TextFeatureDataset(one, model.prompt, model.adapter, f"{i}/") for i, one in enumerate(sets)]
    indexes = [one.keep([t for t in one.features.texts() if t.split == "train"], 256) for one in datasets]
    assert not indexes[1].dropped and sum(not text.media for text in indexes[1].texts) == 4
    told = {text.id: datasets[1].segments(text) for text in indexes[1].texts}
    asked = next(text for text in indexes[1].texts if len(text.turns) == 4)
    said = [lm.tokenizer.decode(s.ids).strip() for s in told[asked.id] if s.target]
    assert [answer.removesuffix("</s>").strip() for answer in said] == ["blue", "lazy"]
    both = next(text for text in indexes[1].texts if len(text.media) == 2)
    assert [s.slot for s in told[both.id] if s.slot and s.slot[0] == "1"] == [f"1/{key}" for key in both.media]
    everything = "".join(lm.tokenizer.decode(s.ids) for text in told.values() for s in text)
    assert "jumps over" in everything and "<image>\n" not in everything

    arguments = ("--features", "features/photos=1", "features/llava=3", "--lm", "lm", "--adapter", "mlp2")
    length = ("--soft-prompt", "2", "--steps", "6", "--batch", "8", "--name", "llava-mix", "--device", "cpu")
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, *length])
    from periscope import train as script

    script.main()
    assert "mix: features/photos 0.250, features/llava 0.750" in capsys.readouterr().out
    (look,) = (row["sets"] for row in metrics_of(photo_home / "runs" / "llava-mix") if "sets" in row)
    assert [one["texts"] for one in look.values()] == [12, 36]
