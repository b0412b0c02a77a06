"""Prompts as vectors: the language model alone gives the adapter's answers from them."""

import base64
import io
import json
from itertools import product

import pytest
import torch
from export_models import pictures, save_patch_adapter

import periscope
from periscope.adapters.generation.decoding import greedy
from periscope.errors import AdapterError
from periscope.exports.__main__ import embeds
from periscope.exports.embeds import completion_request, prompt_vectors


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("embeds")
    save_patch_adapter(home / "adapter", home, spec="window2", soft_prompt=3, output_norm=True)
    pictures()[0].save(home / "cat.png")
    return home


@pytest.fixture(scope="module")
def model(home):
    return periscope.load(home / "adapter", device="cpu")


def answered(model, request: dict) -> str:
    """What a server makes of a request, token by token, from the vectors alone."""
    vectors = torch.load(io.BytesIO(base64.b64decode(request["prompt_embeds"])), weights_only=True)
    assert vectors.shape[1] == model.model.lm.hidden_size
    ids: list[int] = []
    words = model.model.lm.model.get_input_embeddings()
    while len(ids) < request["max_tokens"] and not set(ids) & set(request["stop_token_ids"]):
        said = words(torch.tensor(ids, dtype=torch.long))
        with torch.no_grad():
            logits = model.model.lm.model(inputs_embeds=torch.cat([vectors, said])[None]).logits[:, -1]
        ids.append(int(greedy(logits)))
    return model.model._decode([token for token in ids if token not in request["stop_token_ids"]])


@pytest.mark.parametrize("question", [None, "What is it?", "Is it <image> or not?"])
def test_the_answer_is_that_of_the_adapter(model, home, question):
    request = completion_request(model, home / "cat.png", question, max_tokens=5)
    here = model.caption(home / "cat.png", 5) if question is None else model.ask(home / "cat.png", question, 5)
    assert answered(model, request) == here
    assert request["model"] == model.model.lm.name and request["temperature"] == 0


KINDS: dict[str, dict] = {
    **{spec: {"spec": spec} for spec in ("mlp", "linear", "group2", "window2", "shuffle2", "perceiver4")},
    **{spec: {"spec": spec} for spec in ("ldp", "ldpv2", "fusedmlp", "fusedldp", "mapl4", "mapl-post4")},
    **{spec: {"spec": spec} for spec in ("mlp3", "linear3", "clipcap3", "clipcap-transformer3")},
    "mlp, hidden width 20": {"inner": 20},
    "mlp, hidden width 48": {"inner": 48},
    "mlp, output norm": {"output_norm": True},
    "mlp, soft prompt": {"soft_prompt": 3},
    "mlp, LoRA": {"lora": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_answers_loss_is_the_adapters(home, tmp_path, kind):
    """From the vectors of the request alone, with every kind of adapter."""
    save_patch_adapter(tmp_path / "adapter", tmp_path, **KINDS[kind])
    model, worst = periscope.load(tmp_path / "adapter", device="cpu", precision="fp32"), 0.0
    lm, adapted = model.model.lm, model.model.models["image"]
    for picture, question, said in product(pictures(), (None, "What is it?"), ("a red star", "the quick brown fox")):
        turns = [] if question is None else [{"role": "user", "content": question}]
        (encoded,) = model.encode(picture)
        turns.append({"role": "assistant", "content": said})
        text = adapted.prompt.segments(turns, ["image:0"], soft_prompt=adapted.adapter.soft_prompt is not None)
        ((loss, count),) = adapted.text_losses([text], {"image:0": encoded.features})
        request = completion_request(model, picture, question)
        vectors = torch.load(io.BytesIO(base64.b64decode(request["prompt_embeds"])), weights_only=True)
        ids = torch.tensor([token for part in text if part.target for token in part.ids])
        with torch.no_grad():
            logits = lm.model(inputs_embeds=torch.cat([vectors, lm.embed(ids)])[None]).logits[0, len(vectors) - 1 : -1]
        there = torch.nn.functional.cross_entropy(logits.float(), ids).item()
        assert len(ids) == count
        worst = max(worst, abs(there - loss / count))
    print(f"{kind}: largest difference of an answer's loss {worst:.2g}")
    assert worst < 1e-4


def test_a_near_miss_is_another_prompt(model):
    first, second = (prompt_vectors(model, picture, "What is it?") for picture in pictures()[:2])
    assert first.shape == second.shape
    differ = (first != second).any(1)
    assert 0 < differ.sum() == model.model.models["image"].adapter.tokens


def test_the_command_writes_a_request(home, model, capsys):
    embeds(home / "adapter", (home / "cat.png",), out=home / "request.json", question="What is it?", model="mine")
    written = json.loads((home / "request.json").read_text())
    assert written == completion_request(model, home / "cat.png", "What is it?", "mine")
    assert "--data @" in capsys.readouterr().out
    with pytest.raises(AdapterError, match="nothing is overwritten"):
        embeds(home / "adapter", (home / "cat.png",), out=home / "request.json")


def test_injection_has_no_vectors_among_the_words(model, monkeypatch):
    monkeypatch.setattr(model.model.models["image"].adapter, "injects", True)
    with pytest.raises(AdapterError, match="injects into inner layers"):
        prompt_vectors(model, pictures()[0])
