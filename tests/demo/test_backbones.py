"""The committed backbones load through the libraries' own loaders and can do what the demo rests on."""

import json
import random

import pytest
import torch

from periscope.demo.scenes import draw_questions, draw_scenes
from periscope.evaluation.tasks.scenes import ATTRIBUTES, COLOURS, PLACES, SHAPES, SIZES
from studies import probe
from studies.corpus import CLOSE, MEDIA, build_tokenizer, prompt_of
from studies.pretrain import begin_with, language_table, save

SAME = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "place": PLACES}


@pytest.fixture(scope="module")
def language():
    return probe.load_language_model()


@pytest.fixture(scope="module")
def encoder():
    return probe.load_clip()


@pytest.mark.parametrize("name", MEDIA)
def test_language_model_answers_from_descriptions(language, name):
    model, tokenizer = language
    assert type(model).__name__ == "LlamaForCausalLM" and not model.config.tie_word_embeddings
    rng, medium = random.Random(4242), MEDIA[name]
    drawn = [medium.draw(rng, "heldout") for _ in range(25)]
    assert probe.answer_scores(model, tokenizer, drawn, questions=5, medium=medium)["qa_accuracy"] >= 0.95
    assert probe.caption_scores(model, tokenizer, drawn, medium=medium)[medium.task.whole] >= 0.95


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
                ids = tokenizer(f"Scene: {words}{CLOSE}{prompt_of(wording)}", return_tensors="pt").input_ids
                with torch.no_grad():
                    said = model(ids).logits[0, -1].argmax()
                right += tokenizer.decode(said).strip() == truth.split()[0]
                n += 1
    assert n > 40 and right / n < 0.4


@pytest.mark.slow
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


def test_committed_tokenizers_are_the_corpus_own(language):
    model, tokenizer = language
    built = build_tokenizer()
    assert model.config.vocab_size == len(tokenizer)
    text = "Scene: red star\nSound: a low bell\nQuestion: Where is it? Answer: top-left"
    assert built.get_vocab() == tokenizer.get_vocab() and built.encode(text) == tokenizer.encode(text)
    import open_clip

    words = open_clip.get_tokenizer(f"local-dir:{probe.BACKBONES / 'clip'}")
    row = words(["A red star."])[0].tolist()
    assert row[0] == tokenizer.bos_token_id and tokenizer.eos_token_id in row and len(row) == 48


def test_a_grown_table_begins_with_the_rows_it_had(tmp_path):
    """Words that are added don't move what is known of the others; what has another width isn't copied."""
    old, new = torch.nn.Embedding(5, 4), torch.nn.Embedding(7, 4)
    save({"weight": old.weight.detach()}, tmp_path / "old.safetensors")
    added = new.weight[5:].detach().clone()
    assert begin_with(new, tmp_path / "old.safetensors") == 1
    assert torch.equal(new.weight[:5], old.weight) and torch.equal(new.weight[5:], added)
    for other in (torch.nn.Embedding(7, 3), torch.nn.Embedding(4, 4)):
        before = other.weight.detach().clone()
        assert begin_with(other, tmp_path / "old.safetensors") == 0 and torch.equal(other.weight, before)
    scale = torch.nn.ParameterDict({"scale": torch.tensor(1.0)})
    save({"scale": torch.tensor(3.0)}, tmp_path / "scale.safetensors")
    assert begin_with(scale, tmp_path / "scale.safetensors") == 1 and scale["scale"] == 3


def test_the_cards_table_has_a_column_for_each_split():
    scores = {"audio": {"heldout": {"qa_accuracy": 1.0}, "new_pairs": {"qa_accuracy": 0.25}}}
    assert language_table(scores)[2:] == ["| audio | qa_accuracy | 1.0000 | 0.2500 |"]


@pytest.mark.parametrize("name", ["clip", "lm", "mamba"])
def test_cards_and_sizes(name):
    folder = probe.BACKBONES / name
    card = (folder / "README.md").read_text()
    assert "seed" in card and "Probe" in card and "/home" not in card and "/tmp" not in card
    assert sum(p.stat().st_size for p in folder.iterdir()) < 9e6
    for path in folder.glob("*.json"):
        assert json.loads(path.read_text()) is not None


def test_the_mamba_sister_takes_the_language_models_place():
    """The same tokenizer, no refusal, and answers from descriptions in words that beat luck by far."""
    from periscope.adapters.lm.load import load_language_model
    from studies.probe import answer_scores

    lm, sister = (load_language_model(str(probe.BACKBONES / name)) for name in ("lm", "mamba"))
    assert sister.identity().tokenizer == lm.identity().tokenizer and sister.family.recurrent
    rng = random.Random("sister")
    drawn = [MEDIA["image"].draw(rng, "heldout") for _ in range(15)]
    assert answer_scores(sister.model, sister.tokenizer, drawn, 0, medium=MEDIA["image"])["qa_accuracy"] > 0.6
