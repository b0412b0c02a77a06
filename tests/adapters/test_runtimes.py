"""A language model that something else than PyTorch computes: the same losses and answers through the same adapter."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny
import torch
from gguf_models import write_gguf
from mixed_texts import ADAPTERS, features_of, logits_of, model_of, texts_of

from periscope import inference
from periscope.adapters.composed import ComposedModel
from periscope.adapters.generation.ranking import by_first_token, candidates_of, likeliest
from periscope.adapters.lm.identity import no_copy, same_language_model
from periscope.adapters.lm.injection import injection_into
from periscope.adapters.lm.load import load_config, load_language_model
from periscope.adapters.lm.runtimes import choice, llama_cpp, load
from periscope.adapters.lm.runtimes.sequence import VECTOR, MixedSequence
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import default_template
from periscope.errors import AdapterError
from periscope.evaluation.commands import load_models
from periscope.evaluation.config import ModelOptions


class InPyTorch:
    """A runtime that asks transformers. read: positions of each call."""

    name = "pytorch itself"

    def __init__(self, lm):
        self.lm, self.read = lm, []

    def logits(self, sequence, positions):
        self.read.append(list(positions))
        return logits_of(self.lm, sequence)[list(positions)]


@pytest.mark.parametrize("family, name", zip(("smollm", "gemma2", "smollm", "gemma2"), ADAPTERS, strict=True))
def test_losses_and_answers_are_those_of_pytorch(family, name, language_model_folder):
    lm = load_language_model(str(language_model_folder(family)))
    there = model_of(lm, name)
    here = model_of(dataclasses.replace(lm, runtime=InPyTorch(lm)), name)
    features = features_of(there, "abc")
    asked, answered = texts_of(there, answer=False), texts_of(there, answer=True)
    want, found = (model.text_losses(answered, features) for model in (there, here))
    assert [count for _, count in found] == [count for _, count in want]
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in want], rel=1e-4)
    greedy = there.generate(asked, features, 4)
    assert here.generate(asked, features, 4) == greedy
    assert "".join(here.stream(asked[0], features, 4)) == greedy[0]
    candidates = candidates_of(here.prompt, ["yes", "a star", "blue"])
    assert likeliest(here, asked, features, candidates) == likeliest(there, asked, features, candidates)
    probabilities = [by_first_token(model, asked, features, candidates) for model in (there, here)]
    assert torch.allclose(*probabilities, atol=1e-5)


def test_answers_are_searched_and_drawn_as_in_pytorch(language_model_folder):
    lm = load_language_model(str(language_model_folder("smollm")))
    there, here = (model_of(each, "pooled") for each in (lm, dataclasses.replace(lm, runtime=InPyTorch(lm))))
    text, features = texts_of(there, answer=False)[:1], features_of(there, "a")
    assert here.generate(text, features, 4, num_beams=3) == there.generate(text, features, 4, num_beams=3)
    drawn = {"do_sample": True, "temperature": 1.5, "top_p": 0.9, "top_k": 50}
    said = []
    for model in (there, here):
        torch.manual_seed(3)
        said.append(model.generate(text, features, 6, **drawn))
    assert said[0] == said[1] != there.generate(text, features, 6)
    with pytest.raises(AdapterError, match="leave out repetition_penalty"):
        here.generate(text, features, 6, repetition_penalty=1.5)


def test_several_adapters_in_one_prompt(language_model_folder):
    lm = load_language_model(str(language_model_folder("smollm")))
    said = []
    for each in (lm, dataclasses.replace(lm, runtime=InPyTorch(lm))):
        parts = {"image": model_of(each, "patches and a soft prompt"), "audio": model_of(each, "pooled", "audio")}
        both = ComposedModel(parts)
        features = {f"{modality}:a": features_of(part, "a")["a"] for modality, part in parts.items()}
        text = both.prompt.segments([{"role": "user", "content": "What is it?"}], list(features), answer=False)
        said.append([both.generate([text], features, 8), "".join(both.stream(text, features, 8))])
    assert said[0] == said[1]


def test_a_sequence_begins_like_another_in_spite_of_rounding():
    vectors = torch.randn(3, 8)
    one = MixedSequence((5, VECTOR, VECTOR, 6, VECTOR, 7), vectors)
    assert one.begins_like(one.followed_by([8, 9])) == one.followed_by([8]).begins_like(one) == 6
    assert one.begins_like(MixedSequence(one.ids, vectors * (1 + 1e-6))) == 6
    moved = vectors.clone()
    moved[1, 3] += 0.01
    assert one.begins_like(MixedSequence(one.ids, moved)) == 2
    assert one.begins_like(MixedSequence((5, VECTOR, 4), vectors.flip(0))) == 1
    assert one.begins_like(MixedSequence((4,), vectors)) == one.first(0).begins_like(one) == 0


def test_a_sequence_is_read_in_stretches_of_one_kind():
    one = MixedSequence((5, VECTOR, VECTOR, 6, 7, 8, VECTOR), torch.arange(6.0).view(3, 2))

    def pieces(start: int, most: int) -> list:
        stretches = one.stretches(start, most)
        return [
            (place, list(piece) if isinstance(piece, tuple) else piece[:, 0].tolist()) for place, piece in stretches
        ]

    assert pieces(0, 9) == [(0, [5]), (1, [0.0, 2.0]), (3, [6, 7, 8]), (6, [4.0])]
    assert pieces(2, 2) == [(2, [2.0]), (3, [6, 7]), (5, [8]), (6, [4.0])]
    assert pieces(7, 2) == []


class Scaling:
    """A runtime that multiplies what it reads: words by `words`, vectors by `vectors`."""

    name = "scaling"

    def __init__(self, rows: torch.Tensor, words: float, vectors: float):
        self.rows, self.words, self.vectors = rows, words, vectors

    def logits(self, sequence, positions):
        read = (
            self.rows[list(sequence.ids)] * self.words
            if VECTOR not in sequence.ids
            else sequence.vectors * self.vectors
        )
        return read.cumsum(0)[list(positions)]


def test_vectors_are_read_as_words_or_refused():
    """The second as llama.cpp reads Gemma 2, whose words PyTorch's embedding module scales."""
    rows, root = torch.randn(4, 16), 4.0
    assert load.find_scale(Scaling(rows, 1.0, 1.0), [0, 1, 2, 3], rows) == 1.0
    assert load.find_scale(Scaling(rows, root, root), [0, 1, 2, 3], rows * root) == 1 / root
    assert load.find_scale(Scaling(rows, root, 1.0), [0, 1, 2, 3], rows * root) == 1.0
    assert load.find_scale(Scaling(rows, 1.0, 3.0), [0, 1, 2, 3], rows) is None


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """A folder with a tiny model in it, and the same as GGUF in 8 bits."""
    home = tmp_path_factory.mktemp("quantized")
    folder = tiny.save_language_model("smollm", home / "lm")
    (file,) = write_gguf(folder, home / "small.Q8_0.gguf", kind="Q8_0")
    return folder, file


class Unread:
    """In place of llama.cpp: it expects the same whatever it reads."""

    name = llama_cpp.NAME

    def __init__(self, file: Path, hidden_size: int, longest: int, gpu: bool):
        self.made = file, hidden_size, longest, gpu
        self.scale = 0.0

    def logits(self, sequence, positions):
        return torch.arange(8.0).expand(len(positions), -1)


def test_a_file_is_known_without_its_weights(quantized, monkeypatch):
    folder, file = quantized
    monkeypatch.setattr(choice, "check_installed", lambda: None)
    monkeypatch.setattr(load, "LlamaCpp", Unread)
    lm = load.open_language_model("llama.cpp", str(file), "cpu")
    there = load_language_model(str(file))
    assert lm.runtime.made == (file, there.hidden_size, 256, False) and lm.runtime.scale == 1.0
    assert (lm.hidden_size, lm.max_length, lm.precision, str(lm.device)) == (32, 256, "Q8_0", "cpu")
    assert all(parameter.is_meta for parameter in lm.model.parameters())
    ids = torch.tensor([[3, 9], [4, 5]])
    assert torch.equal(lm.embed(ids), there.embed(ids)) and lm.embedding_rms == pytest.approx(there.embedding_rms)
    assert lm.tokenizer.chat_template == there.tokenizer.chat_template
    original, unpacked, here = load_language_model(str(folder)).identity(), there.identity(), lm.identity()
    assert same_language_model(unpacked, here) is None
    # transformers gives every byte-level tokenizer in GGUF an <|endoftext|>
    assert "other tokens" in no_copy(original, here)
    original = dataclasses.replace(
        original, digest=dataclasses.replace(original.digest, tokenizer=here.digest.tokenizer)
    )
    assert same_language_model(original, here) and no_copy(original, here) is None
    other = dataclasses.replace(here, embedding_sample=[-value for value in here.embedding_sample])
    assert no_copy(original, other) == "its word embeddings are others"
    assert "hidden size is 33" in no_copy(original, dataclasses.replace(here, hidden_size=33))
    without = dataclasses.replace(here, digest=None, tokenizer="x")
    assert "other tokens" in no_copy(original, without)


def test_what_cannot_be_run_is_one_sentence(quantized, tmp_path, monkeypatch):
    folder, file = quantized
    for name, precision, why in (
        (str(folder), "auto", "reads GGUF files, and .*lm isn't one; pass one, as --lm model"),
        (str(file), "fp16", "--precision fp16 can't be chosen with --runtime llama.cpp"),
        (str(tmp_path / "none.gguf"), "auto", "there is no such file"),
    ):
        with pytest.raises(AdapterError, match=why):
            load.open_language_model("llama.cpp", name, "cpu", precision)
    with pytest.raises(AdapterError, match="--trust-remote-code does nothing with --runtime llama"):
        load.open_language_model("llama.cpp", str(file), "cpu", trust_remote_code=True)
    with monkeypatch.context() as patched:
        mamba = load_config(str(tiny.save_language_model("mamba", tmp_path / "mamba")))
        patched.setattr(choice, "check_installed", lambda: None)
        patched.setattr(load, "LlamaCpp", Unread)
        patched.setattr(load, "find_scale", lambda *_: None)
        with pytest.raises(AdapterError, match=r"llama\.cpp reads vectors otherwise than words"):
            load.load_quantized(str(file))
        patched.setattr(load, "read_config", lambda *_: mamba)
        with pytest.raises(AdapterError, match=r"\(mamba\) can't be used: its state can't be taken back"):
            load.load_quantized(str(file))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "llama_cpp" else object())
    with pytest.raises(AdapterError, match=r"llama-cpp-python: pip install 'periscope-adapters\[llamacpp\]'"):
        load.load_quantized(str(file))


def test_what_reaches_into_the_language_model_is_refused(language_model_folder, tmp_path):
    lm = load_language_model(str(language_model_folder("smollm")))
    shape = FeatureShape("layers", 2, 6)
    adapter = Adapter("epalm", shape, lm.hidden_size, lm.embedding_rms, injection=injection_into(lm, 2, (0, 2), False))
    prompt = Prompt(lm.tokenizer, default_template(lm.tokenizer))
    with pytest.raises(
        AdapterError, match="epalm injects vectors into inner layers, which pytorch itself gives no access"
    ):
        AdaptedModel(dataclasses.replace(lm, runtime=InPyTorch(lm)), adapter, prompt)
    tiny.save_tiny_adapter(tmp_path / "eyes", tmp_path, {})
    with pytest.raises(AdapterError, match=r"reads GGUF files, and .* isn't one"):
        load_models({None: tmp_path / "eyes"}, ModelOptions(runtime="llama.cpp"), "cpu")
    config = json.loads((tmp_path / "eyes/adapter.json").read_text())
    (tmp_path / "eyes/adapter.json").write_text(json.dumps(config | {"lora": {"r": 2, "alpha": 4.0}}))
    with pytest.raises(AdapterError, match=r"has LoRA weights, and llama\.cpp runs a file as it is: merge them"):
        inference.load_adapted(tmp_path / "eyes", runtime="llama.cpp")
