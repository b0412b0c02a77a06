"""The demo language model's documents and its tokenizer."""

import random
import re
from collections import Counter

import pytest

from periscope.demo import clips, scenes, sounds
from periscope.evaluation.tasks.clips import named_movers
from periscope.evaluation.tasks.scenes import COLOURS, NUMBERS, SHAPES, SIZES, named_objects
from periscope.evaluation.tasks.sounds import named_sounds
from studies.corpus import (
    CLOSE,
    MEDIA,
    PIECE,
    Corpus,
    Row,
    asked,
    build_tokenizer,
    describe,
    existence,
    listing,
    prompt_of,
)

ROOM = {"image": scenes, "audio": sounds, "video": clips}
# Ids of the tokenizer that the language model began with, before it knew of sounds and clips.
OLD_IDS = {"<pad>": 0, "<s>": 1, "</s>": 2, "Question": 279, "Scene": 345, "Ġred": 374, "Ġtop-left": 396, "Ġyes": 438}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def drawn(name, split, n, seed=11):
    rng = random.Random(f"{name}/{split}/{seed}")
    return [MEDIA[name].draw(rng, split) for _ in range(n)]


def test_words_that_came_later_have_the_highest_ids(tokenizer):
    """Weights that were trained before go on with their own rows."""
    vocabulary = tokenizer.get_vocab()
    assert OLD_IDS.items() <= vocabulary.items() and sorted(vocabulary.values()) == list(range(len(vocabulary)))
    for word in ("bell", "drum", "siren", "first", "loud", "slow", "nowhere", "still"):
        assert vocabulary["Ġ" + word] >= 461
    for word in (*COLOURS, *SHAPES, *SIZES, *scenes.PLACES, *NUMBERS[:4], "yes", "no"):
        assert vocabulary["Ġ" + word] < 461


@pytest.mark.parametrize("name", MEDIA)
def test_every_word_is_one_token(tokenizer, name):
    medium, rng = MEDIA[name], random.Random(3)
    corpus = Corpus(tokenizer, 0)
    for split in ("train", "heldout", "new_pairs"):
        for things in drawn(name, split, 150):
            texts = [medium.opening + describe(medium, things, rng) + CLOSE, medium.words.caption(things, rng)]
            texts += ["".join(pair) for pair in (*asked(medium, things, rng, 8), listing(medium, things, rng))]
            for text in texts:
                ids = tokenizer.encode(text, add_special_tokens=False)
                assert len(ids) == len(re.findall(PIECE, text)) and ids == corpus.encode(text), text
                assert tokenizer.decode(ids) == text


def test_segments_encoded_alone_give_the_ids_of_the_whole(tokenizer):
    rng = random.Random(1)
    corpus = Corpus(tokenizer, 0)

    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False)

    for name, medium in MEDIA.items():
        for things in drawn(name, "heldout", 30):
            _, wording, truth = medium.words.draw_questions(things, 1, rng)[0]
            for parts in (
                (medium.opening, " red star", CLOSE, medium.words.caption(things, rng)),
                (medium.opening, CLOSE, prompt_of(wording), " " + truth),
            ):
                whole = ids("".join(parts))
                assert whole == [i for part in parts for i in ids(part)] == corpus.encode("".join(parts))
                assert tokenizer.decode(whole) == "".join(parts)
    assert tokenizer.encode("x")[0] == tokenizer.bos_token_id
    odd = "Zoë's 3 кошки\tsaid: 你好 \U0001f600\n"
    assert tokenizer.decode(ids(odd)) == odd


@pytest.mark.parametrize("name", MEDIA)
def test_descriptions_tell_every_attribute(name):
    rng = random.Random(3)
    for things in drawn(name, "train", 60):
        for easy in (False, True):
            text = describe(MEDIA[name], things, rng, easy)
            told = Counter(re.sub("[^a-z-]", " ", text.replace(" and", ",")).split())
            assert text.startswith(" ") and told == Counter(value for thing in things for value in thing.values())


@pytest.mark.parametrize("name", MEDIA)
def test_existence_is_true_about_half_the_time(name):
    rng = random.Random(4)
    answers = Counter(existence(MEDIA[name], things, rng)[1] for things in drawn(name, "train", 400))
    assert set(answers) == {" yes", " no"} and 140 < answers[" yes"] < 260


@pytest.mark.parametrize("name", MEDIA)
def test_a_mixture_tells_every_thing_and_is_strongest_at_its_own_positions(tokenizer, name):
    corpus, medium = Corpus(tokenizer, 1), MEDIA[name]
    for things in drawn(name, "train", 60):
        row = Row()
        corpus.mix(row, medium, things, easy=True)
        assert row.words == [0.0] * len(row.ids) and len(row.ids) >= len(things)
        for thing in things:
            heard = {
                name: {at: share for at, word, share in row.blends if word == corpus.encode(" " + thing[name])[0]}
                for name in medium.task.attributes
                if name != "place"  # any place may be said faintly between things
            }
            alone = [name for name in heard if sum(o[name] == thing[name] for o in things) == 1]
            peaks = {max(heard[name], key=heard[name].get) for name in alone}
            assert all(heard.values()) and len(peaks) <= 1, (thing, heard)


def documents(tokenizer, shares, rows=30):
    """Of each document of a batch what stands before its continuations, and these."""
    batch = Corpus(tokenizer, 5, shares).batch(rows)
    for ids in batch.ids.tolist():
        opening, _, told = tokenizer.decode([i for i in ids if i != tokenizer.pad_token_id]).rpartition("\n")
        yield opening, told.split("</s>")[:-1]


@pytest.mark.parametrize("name", MEDIA)
def test_the_corpus_tells_of_training_media_only(tokenizer, name):
    for opening, (told, *_) in documents(tokenizer, {(name,): 1}):
        assert opening.startswith("<s>" + MEDIA[name].opening)
        if name == "audio":
            things = [
                {"pitch": pitch, "sound": sound, "place": place}
                for (pitch, sound), place in zip(named_sounds(told), sounds.PLACES, strict=False)
            ]
        else:
            named = named_objects(told) if name == "image" else named_movers(told)
            things = [{"colour": colour, "shape": shape} for colour, shape, *_ in named.elements()]
        assert things and ROOM[name].split_of(things) == "train", told


def test_a_document_of_two_media_tells_of_both_and_asks_about_both(tokenizer):
    for opening, (told, *rest) in documents(tokenizer, {("audio", "image"): 1}):
        assert re.match("<s>Sound:.*\nScene:", opening, re.DOTALL)
        assert named_sounds(told) and named_objects(told)
        asked = " ".join(rest)
        assert re.search("circle|square|triangle|star|cross|ring|heart|moon", asked)
        assert re.search("bell|drum|whistle|buzz|click|siren|chirp|hiss", asked)


def test_a_batch_is_all_of_one_medium_or_all_of_several(tokenizer):
    corpus = Corpus(tokenizer, 2)
    lengths = [corpus.batch(4).ids.shape[1] for _ in range(60)]
    assert max(lengths) > 190 and sorted(lengths)[30] < 175
    for shares, media in (({("image",): 1, ("video",): 1}, 1), ({("audio", "image"): 1, ("image", "audio"): 1}, 2)):
        for opening, _ in documents(tokenizer, shares, 8):
            assert len(re.findall("Scene:|Sound:|Clip:", opening)) == media
