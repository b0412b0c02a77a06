"""The committed backbones load through the libraries' own loaders and can do what the demo rests on."""

import json
import random

import pytest
import torch

from demo import probe
from demo.corpus import CLOSE, OPEN, Corpus, Row, build_tokenizer, prompt_of
from demo.scenes import caption, draw_questions, draw_scenes
from scoring.tasks.scenes import ATTRIBUTES, COLOURS, NUMBERS, PLACES, SHAPES, SIZES

SAME = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "place": PLACES}


@pytest.fixture(scope="module")
def language():
    return probe.load_language_model()


@pytest.fixture(scope="module")
def encoder():
    return probe.load_clip()


def test_language_model_answers_from_descriptions(language):
    model, tokenizer = language
    assert type(model).__name__ == "LlamaForCausalLM" and not model.config.tie_word_embeddings
    drawn = draw_scenes(4242, 25, "heldout")
    assert probe.answer_scores(model, tokenizer, drawn, questions=5)["qa_accuracy"] >= 0.95
    assert probe.caption_scores(model, tokenizer, drawn)["caption_scene"] >= 0.95


def test_language_model_is_told_apart_by_its_context(language):
    """The probe can fail: with another scene's description most answers are wrong."""
    model, tokenizer = language
    drawn = draw_scenes(4242, 25, "heldout")
    moved = {name: dict(zip(values, values[1:] + values[:1], strict=True)) for name, values in SAME.items()}
    others = [[{name: moved[name][o[name]] for name in ATTRIBUTES} for o in objects] for objects in drawn]
    rng, right, n = random.Random(0), 0, 0
    for objects, other in zip(drawn, others, strict=True):
        words = " ".join(" ".join(o[name] for name in ATTRIBUTES) for o in other)
        for ask, wording, truth in draw_questions(objects, 5, rng):
            if ask["kind"] in ("colour", "shape", "place"):
                ids = tokenizer(f"{OPEN} {words}{CLOSE}{prompt_of(wording)}", return_tensors="pt").input_ids
                with torch.no_grad():
                    said = model(ids).logits[0, -1].argmax()
                right += tokenizer.decode(said).strip() == truth.split()[0]
                n += 1
    assert n > 40 and right / n < 0.4


def test_encoder_names_new_scenes(encoder):
    model, transform = encoder
    scores = probe.encoder_scores(model, transform, seed=7, train=1600, test=100)
    assert scores["pooled_heldout"] >= 0.95 and scores["patches_heldout"] >= 0.95, scores


def test_encoder_gives_pooled_and_patches(encoder):
    model, _ = encoder
    pixels = torch.randn(2, 3, 96, 96)
    found = model.visual.forward_intermediates(pixels, indices=6, normalize_intermediates=False, output_fmt="NLC")
    assert found["image_features"].shape == (2, 288)
    assert [f.shape for f in found["image_intermediates"]] == [(2, 36, 192)] * 6
    assert torch.allclose(found["image_features"], model.visual(pixels), atol=1e-5)


def test_segments_encoded_alone_give_the_ids_of_the_whole(language):
    _, tokenizer = language
    rng = random.Random(1)
    corpus = Corpus(tokenizer, 0)

    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False)

    for objects in draw_scenes(5, 50, "heldout"):
        _, wording, truth = draw_questions(objects, 1, rng)[0]
        for parts in (
            (OPEN, " red star", CLOSE, caption(objects, rng)),
            (OPEN, CLOSE, prompt_of(wording), " " + truth),
        ):
            whole = ids("".join(parts))
            assert whole == [i for part in parts for i in ids(part)] == corpus.encode("".join(parts))
            assert tokenizer.decode(whole) == "".join(parts)
    assert tokenizer.encode("x")[0] == tokenizer.bos_token_id
    odd = "Zoë's 3 кошки\tsaid: 你好 \U0001f600\n"
    assert tokenizer.decode(ids(odd)) == odd
    for word in (*COLOURS, *SHAPES, *SIZES, *PLACES, *NUMBERS[:4], "yes", "no"):
        assert len(ids(" " + word)) == 1, word


def test_a_mixture_tells_every_object_and_is_strongest_at_its_own_positions(language):
    _, tokenizer = language
    corpus = Corpus(tokenizer, 1)
    for objects in draw_scenes(6, 60, "train"):
        row = Row()
        corpus.mix(row, objects, easy=True)
        assert row.words == [0.0] * len(row.ids) and len(row.ids) >= len(objects)
        for thing in objects:
            heard = {
                name: {at: share for at, word, share in row.blends if word == corpus.encode(" " + thing[name])[0]}
                for name in ("colour", "shape", "size")
            }
            alone = [name for name in heard if sum(o[name] == thing[name] for o in objects) == 1]
            peaks = {max(heard[name], key=heard[name].get) for name in alone}
            assert all(heard.values()) and len(peaks) <= 1, (thing, heard)


def test_committed_tokenizers_are_the_corpus_own(language):
    _, tokenizer = language
    built = build_tokenizer()
    text = "Scene: red star\nQuestion: Where is it? Answer: top-left"
    assert built.get_vocab() == tokenizer.get_vocab() and built.encode(text) == tokenizer.encode(text)
    import open_clip

    words = open_clip.get_tokenizer(f"local-dir:{probe.BACKBONES / 'clip'}")
    row = words(["A red star."])[0].tolist()
    assert row[0] == tokenizer.bos_token_id and tokenizer.eos_token_id in row and len(row) == 48


@pytest.mark.parametrize("name", ["clip", "lm"])
def test_cards_and_sizes(name):
    folder = probe.BACKBONES / name
    card = (folder / "README.md").read_text()
    assert "seed" in card and "Probe" in card and "/home" not in card and "/tmp" not in card
    assert sum(p.stat().st_size for p in folder.iterdir()) < 9e6
    for path in folder.glob("*.json"):
        assert json.loads(path.read_text()) is not None
