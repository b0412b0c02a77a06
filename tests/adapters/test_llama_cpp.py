"""llama.cpp itself (llama-cpp-python) against PyTorch: logits behind words and vectors, and what it keeps of them."""

import json

import pytest
import tiny
import torch
from gguf_models import REAL, write_gguf
from mixed_texts import ADAPTERS, MORE, QUESTIONS, features_of, logits_of, model_of, texts_of
from PIL import Image

import periscope
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.lm.runtimes import llama_cpp
from periscope.adapters.lm.runtimes.load import load_quantized
from periscope.adapters.lm.runtimes.sequence import VECTOR, MixedSequence
from periscope.adapters.splice import mix
from periscope.errors import AdapterError

pytest.importorskip("llama_cpp", reason="llama-cpp-python isn't installed: pip install 'periscope-adapters[llamacpp]'")
EXACT = 1e-2  # of a log probability, with weights in fp32; keys and values are kept in fp16


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("llama.cpp")


@pytest.fixture(scope="module")
def small(home):
    """A tiny model in PyTorch and in llama.cpp, both from one file in fp32."""
    folder = tiny.save_language_model("smollm", home / "lm", max_position_embeddings=4096)
    (file,) = write_gguf(folder, home / "small.gguf")
    return load_language_model(str(file)), load_quantized(str(file))


def mixed(lm, places: str, seed: int = 0) -> MixedSequence:
    """Words (w) and vectors (v) in the order of `places`, at random."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(places.count("v"), lm.hidden_size, generator=generator) * lm.embedding_rms
    ids = torch.randint(7, len(lm.tokenizer), (len(places),), generator=generator).tolist()
    return MixedSequence(tuple(VECTOR if c == "v" else i for c, i in zip(places, ids, strict=True)), vectors)


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference of a log probability."""
    return (found.log_softmax(-1) - wanted.log_softmax(-1)).abs().max().item()


@pytest.mark.parametrize("places", ["w", "v", "wwwvvvvww", "vvw", "wvwvwvwv"])
def test_logits_behind_words_and_vectors(small, places):
    there, here = small
    sequence = mixed(there, places)
    wanted = logits_of(there, sequence)
    assert difference(here.runtime.logits(sequence, range(len(places))), wanted) < EXACT
    assert difference(here.runtime.logits(sequence, [len(places) - 1]), wanted[-1:]) < EXACT


def test_a_sequence_longer_than_a_batch_and_than_the_first_context(small):
    there, here = small
    sequence = mixed(there, ("w" * 30 + "v" * 700) * 2)
    wanted = logits_of(there, sequence)
    chosen = [0, 31, 600, 731, 1459]
    assert difference(here.runtime.logits(sequence, chosen), wanted[chosen]) < EXACT
    assert difference(here.runtime.logits(sequence.first(40), [39]), wanted[39:40]) < EXACT


def test_what_was_read_is_kept(small, monkeypatch):
    """The next token, another answer, and a conversation's next turn cost only what is new."""
    there, here = small
    read, piecewise = [], here.runtime._read
    monkeypatch.setattr(
        here.runtime,
        "_read",
        lambda place, piece, wanted: read.append((place, len(piece))) or piecewise(place, piece, wanted),
    )
    prompt = mixed(there, "wwvvvww", seed=5)

    def reads(sequence: MixedSequence, positions: list[int]) -> list[tuple[int, int]]:
        read.clear()
        assert difference(here.runtime.logits(sequence, positions), logits_of(there, sequence)[positions]) < EXACT
        return list(read)

    assert reads(prompt, [6]) == [(0, 2), (2, 3), (5, 2)]
    assert reads(prompt.followed_by([9]), [7]) == [(7, 1)]
    assert reads(prompt.followed_by([9, 8]), [8]) == [(8, 1)]
    assert reads(prompt.followed_by([4, 5]), [8]) == [(7, 2)]
    again = MixedSequence(prompt.ids, prompt.vectors * (1 + 1e-6))
    assert reads(again.followed_by([4, 5, 11, 12]), [10]) == [(9, 2)]
    assert reads(prompt, [3]) == [(3, 1)]
    other = prompt.vectors.clone()
    other[1] += 1
    assert reads(MixedSequence(prompt.ids, other), [6]) == [(3, 2), (5, 2)]
    assert reads(mixed(there, "wv", seed=9), [1]) == [(0, 1), (1, 1)]


@pytest.mark.parametrize("name", [*ADAPTERS, *MORE])
def test_answers_and_losses_are_those_of_pytorch(small, name):
    there, here = (model_of(lm, name) for lm in small)
    features, worst = features_of(there, "abc"), 0.0
    asked, answered = texts_of(there, answer=False), texts_of(there, answer=True)
    for text in answered:
        sequence = mix(there.lm, text, there.slots([text], features))
        wanted = logits_of(there.lm, sequence)
        found = here.lm.runtime.logits(sequence, range(len(sequence)))
        chosen = wanted.gather(-1, found.argmax(-1, keepdim=True))[:, 0]
        assert (wanted.amax(-1) - chosen).max() < EXACT, "the likeliest word, or one as likely"
        worst = max(worst, difference(found, wanted))
    print(f"{name}: largest difference of a log probability {worst:.2g}")
    assert worst < EXACT
    for model in (there, here):
        assert len(model.generate(asked, features, 8)) == len(QUESTIONS)
    assert here.generate(asked, features, 8) == there.generate(asked, features, 8)
    want, found = (model.text_losses(answered, features) for model in (there, here))
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in want], rel=2e-3)


def test_an_adapter_answers_and_chats_on_quantized_weights(home, capsys):
    """Trained on a model in fp32; on a copy of it in 8 bits."""
    tiny.save_tiny_adapter(home / "eyes", home / "eyes-home", {}, soft_prompt=2, family="smollm")
    (file,) = write_gguf(home / "eyes-home/lm", home / "small.Q8_0.gguf", kind="Q8_0")
    config = json.loads((home / "eyes/adapter.json").read_text())
    tokens = load_quantized(str(file)).identity().digest.tokenizer  # they differ in <|endoftext|>, which nothing prints
    config["language_model"]["identity"]["digest"]["tokenizer"] = tokens
    (home / "eyes/adapter.json").write_text(json.dumps(config))
    picture = home / "picture.png"
    Image.new("RGB", (40, 30), "blue").save(picture)
    model = periscope.load(home / "eyes", device="cpu", lm=str(file), runtime="llama.cpp")
    assert repr(model).endswith("small.Q8_0.gguf, Q8_0 on cpu)")
    assert "is taken for a copy of it in Q8_0: it makes the same tokens" in capsys.readouterr().out
    chat = model.chat(picture, max_new_tokens=6)
    first = chat.send("What is it?")
    held = len(model.model.lm.runtime._held)
    assert first == model.ask(picture, "What is it?", 6) == "".join(model.ask(picture, "What is it?", 6, stream=True))
    read, piecewise = [], model.model.lm.runtime._read
    model.model.lm.runtime._read = lambda place, *rest: read.append(place) or piecewise(place, *rest)
    chat.send("What colour?")
    assert min(read) >= held - 2, "what was said before isn't read again"
    with pytest.raises(AdapterError, match="is loaded in Q8_0 and can't be moved"):
        model.to("cpu")


def test_a_file_that_llama_cpp_cannot_read_is_one_sentence(small, home):
    data = (home / "small.gguf").read_bytes()
    (home / "odd.gguf").write_bytes(data.replace(b"blk.1.ffn_norm.weight", b"blk.1.ffn_morn.weight"))
    with pytest.raises(AdapterError, match=r"odd\.gguf: llama\.cpp can't read it \(.*ffn_norm"):
        load_quantized(str(home / "odd.gguf"))
    with pytest.raises(AdapterError, match=r"llama\.cpp reads vectors of width 32, not of 33"):
        llama_cpp.LlamaCpp(home / "small.gguf", 33, 256)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="python -m studies.real.assets --only smollm2 makes the file")
def test_a_real_quantized_model_expects_what_its_dequantized_weights_do():
    """Words and vectors of three adapters. llama.cpp also rounds activations to 8 bits, which PyTorch doesn't.

    The folder of the file has its weights dequantized, in fp16.
    """
    there, here = load_language_model(str(REAL.parent), precision="fp32"), load_quantized(str(REAL))
    for name in ("pooled", "perceiver", "patches and a soft prompt"):
        ours = model_of(there, name)
        features, sequences = features_of(ours, "abc"), []
        for text in texts_of(ours, answer=True):
            sequences.append(mix(there, text, ours.slots([text], features)))
        wanted = torch.cat([logits_of(there, sequence)[-12:] for sequence in sequences])
        found = torch.cat([here.runtime.logits(s, range(len(s) - 12, len(s))) for s in sequences])
        same = (found.argmax(-1) == wanted.argmax(-1)).float().mean().item()
        likeness = torch.corrcoef(torch.stack([found.flatten(), wanted.flatten()]))[0, 1].item()
        likely = wanted.log_softmax(-1)
        moved = (likely.exp() * (likely - found.log_softmax(-1))).sum(-1)  # Kullback-Leibler divergence, in nats
        print(f"{name}: {same:.3f} of likeliest words, correlation {likeness:.4f}, divergence {moved.mean():.4f} nats")
        assert same > 0.9 and likeness > 0.998 and moved.mean() < 0.01
