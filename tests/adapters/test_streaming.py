"""Answers in pieces: joined they are the answer, no character is broken, and who stops listening ends them."""

import threading

import pytest
import tiny
import torch

from periscope.adapters.generation.streaming import TextPieces, stream_text
from periscope.errors import AdapterError

SAID = [
    "a red circle and a small blue star",
    "  naïve café — 日本語のテスト 🙂👩‍👩‍👧 नमस्ते  two  spaces \n\n and lines \n",
    "<0xF0>? \ufffd, said the fox",
    "",
]
TOKENIZERS = {"byte-level": tiny.byte_level, "leading space": tiny.sentencepiece_like}


@pytest.mark.parametrize("words", SAID)
@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_pieces_are_the_answer_and_no_character_is_broken(make, words):
    tokenizer = make()
    ids = tokenizer(words, add_special_tokens=False).input_ids
    stop = tokenizer.eos_token_id

    def decode(some):
        return tokenizer.decode(some).strip()

    pieces = TextPieces(decode, [stop])
    said = [pieces.add([token]) for token in [*ids, stop, *ids]]
    assert pieces.ended and not any(said[len(ids) + 1 :])
    assert "".join([*said, pieces.rest()]) == decode(ids)
    if "\ufffd" not in words:
        assert decode(ids) == words.strip() and not any("\ufffd" in piece for piece in said)
    if words == SAID[0]:
        assert sum(map(bool, said)) > 4, "it is given as it comes"


def test_half_a_character_at_the_end_is_said_at_the_end():
    tokenizer = tiny.byte_level()
    ids = tokenizer("a 🙂", add_special_tokens=False).input_ids[:-1]
    pieces = TextPieces(lambda some: tokenizer.decode(some).strip(), [])
    assert "".join(pieces.add([token]) for token in ids) == "a"
    assert "a" + pieces.rest() == tokenizer.decode(ids)


def test_an_error_of_the_generation_is_raised_where_it_is_waited_for():
    def fails(queue):
        queue.put(torch.tensor([1]))
        raise AdapterError("no")

    stream = stream_text(fails, TextPieces(lambda ids: "x" * len(ids), []))
    assert next(stream) == "x"
    with pytest.raises(AdapterError, match="no"):
        next(stream)


def test_who_leaves_ends_the_generation():
    made = []

    def endless(queue):
        while True:
            made.append(1)
            queue.put(torch.tensor([1]))

    stream = stream_text(endless, TextPieces(lambda ids: "x" * len(ids), []))
    next(stream)
    stream.close()
    count = len(made)
    assert all(thread.name != "generate" for thread in threading.enumerate()) and len(made) == count


@pytest.mark.parametrize("family", ["llama", "smollm", "mamba"])
def test_a_stream_says_what_generate_says(family, language_model_folder):
    model = tiny.adapted(language_model_folder(family), soft_prompt=2)
    features = {"a": torch.randn(12, generator=torch.Generator().manual_seed(0))}
    text = model.prompt.segments([{"role": "user", "content": "what?"}], ["a"], answer=False, soft_prompt=True)
    for how in ({}, {"do_sample": True, "temperature": 1.5, "top_k": 0}):
        torch.manual_seed(4)
        (whole,) = model.generate([text], features, 24, **how)
        torch.manual_seed(4)
        pieces = list(model.stream(text, features, 24, **how))
        assert "".join(pieces) == whole and all(pieces) and len(pieces) > 1
    with pytest.raises(AdapterError, match="with 3 beams the answer is known only at its end"):
        model.stream(text, features, 24, num_beams=3)
