"""Captions of pictures by another model: a tiny LLaVA of transformers, stopped and gone on with."""

import json

import pytest
import tiny
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from periscope.adapters.generation.decoding import Decoding
from periscope.errors import PrecomputeError, RunError
from periscope.evaluation.recaptioning import Captioner, recaption

ABOUT = {"with": "vlm", "prompt": "Describe the image."}
CHAT = "{% for m in messages %}USER: {% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }}{% endfor %} A:{% endfor %}"  # noqa: E501


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, and five pictures of which one is damaged."""
    place = tmp_path_factory.mktemp("recaption")
    words = tiny.sentencepiece_like()
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **sizes),
        text_config=LlamaConfig(vocab_size=len(words), **sizes),
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(place / "vlm")
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    LlavaProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default", chat_template=CHAT,
        num_additional_image_tokens=1,
    ).save_pretrained(place / "vlm")  # fmt: skip
    (place / "photos").mkdir()
    for i in range(4):
        noise = torch.randint(0, 256, (20, 30, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(place / "photos" / f"{i}.png")
    (place / "photos" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return place


@pytest.fixture(scope="module")
def captioner(home):
    return Captioner(str(home / "vlm"), "Describe the image.", Decoding(6), "cpu")


def said_in(path) -> dict[str, str]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["media"][0]: line["turns"][0]["content"] for line in lines}


def test_captions_are_those_of_the_model_by_itself(home, captioner, tmp_path, capsys):
    assert recaption(captioner, home / "photos", tmp_path / "new" / "all.jsonl", 3, ABOUT) == (4, 0)
    found = said_in(tmp_path / "new" / "all.jsonl")
    assert list(found) == ["0.png", "1.png", "2.png", "3.png"] and len(set(found.values())) > 1
    assert "1 media can't be read and have no caption (bad.png" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["all.jsonl"]
    model, processor = captioner.model, captioner.processor
    for name, words in found.items():
        picture = Image.open(home / "photos" / name).convert("RGB")
        inputs = processor(images=picture, text="USER: <image>Describe the image. A:", return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(ids, skip_special_tokens=True).strip() == words


def test_a_stopped_captioning_goes_on_and_never_overwrites(home, captioner, tmp_path, monkeypatch):
    whole = tmp_path / "whole.jsonl"
    recaption(captioner, home / "photos", whole, 1, ABOUT)
    seen, ask = [], captioner.captions

    def stops(pictures):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(pictures)
        return ask(pictures)

    monkeypatch.setattr(captioner, "captions", stops)
    out = tmp_path / "pieces.jsonl"
    with pytest.raises(KeyboardInterrupt):
        recaption(captioner, home / "photos", out, 1, ABOUT)
    assert not out.exists()
    unfinished = tmp_path / "pieces.jsonl.partial"
    unfinished.write_bytes(unfinished.read_bytes() + b'{"id": "2.png-sa')  # as a kill in the middle of a line leaves it
    with pytest.raises(RunError, match=r'was begun with prompt "Describe the image.", not "What\?"'):
        recaption(captioner, home / "photos", out, 1, ABOUT | {"prompt": "What?"})
    asked = []
    monkeypatch.setattr(captioner, "captions", lambda pictures: (asked.append(pictures), ask(pictures))[1])
    assert recaption(captioner, home / "photos", out, 1, ABOUT) == (4, 2)
    assert len(asked) == 2 and out.read_bytes() == whole.read_bytes() and not unfinished.exists()


def test_what_cannot_be_captioned_is_one_sentence(home, captioner, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "bad.png").write_bytes(b"nothing")
    with pytest.raises(PrecomputeError, match="holds no image that can be read"):
        recaption(captioner, tmp_path / "none", tmp_path / "x.jsonl", 2, ABOUT)
    assert not list(tmp_path.glob("x.jsonl*"))
    tiny.save_language_model("llama", tmp_path / "lm")
    with pytest.raises(RunError, match="isn't an image-text-to-text model"):
        Captioner(str(tmp_path / "lm"), "What?", Decoding(6), "cpu")
