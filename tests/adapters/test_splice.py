"""Segments laid out by position: what stands where, what the mask shows, what is a label."""

import pytest
import tiny
import torch

from periscope.adapters.prompting.segments import Segment
from periscope.adapters.splice import IGNORED, embed_at, length_of, positions_of, splice
from periscope.errors import AdapterError


@pytest.fixture(scope="module")
def lm(language_model_folder):
    return tiny.load_language_model(str(language_model_folder("llama")))


@pytest.fixture
def slots(lm):
    torch.manual_seed(0)
    return {name: torch.randn(tokens, lm.hidden_size) for name, tokens in (("cat", 3), ("dog", 2), ("soft", 1))}


SHORT = [Segment(ids=(7, 8)), Segment(slot="cat"), Segment(ids=(9, 10), target=True)]
LONG = [
    Segment(slot="soft"),
    Segment(ids=(11,)),
    Segment(slot="dog"),
    Segment(ids=(12, 13)),
    Segment(slot="cat"),
    Segment(ids=(14,), target=True),
    Segment(ids=(15,)),
    Segment(ids=(16, 17), target=True),
]


def words(lm, *ids):
    return lm.embed(torch.tensor(ids))


def test_words_and_vectors_stand_in_the_order_of_the_segments(lm, slots):
    batch = splice(lm, [LONG], slots)
    expected = [slots["soft"], words(lm, 11), slots["dog"], words(lm, 12, 13), slots["cat"], words(lm, 14, 15, 16, 17)]
    assert torch.equal(batch.inputs_embeds[0], torch.cat(expected))
    assert batch.slots == [("soft", 0, 0), ("dog", 0, 2), ("cat", 0, 6)]
    swapped = [LONG[0], LONG[1], LONG[4], LONG[3], LONG[2], *LONG[5:]]
    other = splice(lm, [swapped], slots)
    assert torch.equal(other.inputs_embeds[0, 2:5], slots["cat"]) and torch.equal(
        other.inputs_embeds[0, 7:9], slots["dog"]
    )


def test_an_image_that_two_texts_name_stands_in_both(lm, slots):
    batch = splice(lm, [SHORT, LONG], slots)
    assert torch.equal(batch.inputs_embeds[0, 2:5], slots["cat"])
    assert torch.equal(batch.inputs_embeds[1, 6:9], slots["cat"])
    assert batch.slots == [("cat", 0, 2), ("soft", 1, 0), ("dog", 1, 2), ("cat", 1, 6)]


@pytest.mark.parametrize("side", ["right", "left"])
def test_mask_positions_and_labels_count_the_text_alone(lm, slots, side):
    batch = splice(lm, [SHORT, LONG], slots, side=side)
    short, long = length_of(SHORT, {"cat": 3}), 13
    assert (short, batch.inputs_embeds.shape) == (7, (2, long, lm.hidden_size))
    at = slice(0, short) if side == "right" else slice(long - short, long)
    padding = torch.ones(long, dtype=torch.bool)
    padding[at] = False
    assert batch.attention_mask[0, at].tolist() == [1] * short and not batch.attention_mask[0, padding].any()
    assert batch.position_ids[0, at].tolist() == list(range(short))
    assert batch.position_ids[1].tolist() == list(range(long))
    assert not batch.inputs_embeds[0, padding].any() and (batch.labels[0, padding] == IGNORED).all()
    assert batch.labels[0, at].tolist() == [IGNORED] * 5 + [9, 10]
    assert batch.labels[1].tolist() == [IGNORED] * 9 + [14, IGNORED, 16, 17]
    assert batch.targets == 5
    alone = splice(lm, [SHORT], slots)
    assert torch.equal(batch.inputs_embeds[0, at], alone.inputs_embeds[0])


def test_ids_equal_to_special_tokens_are_not_placeholders(lm, slots):
    """Media are spliced by position: no id is looked for."""
    special = lm.tokenizer.all_special_ids
    text = [Segment(ids=tuple(special)), Segment(slot="dog"), Segment(ids=tuple(special), target=True)]
    batch = splice(lm, [text], slots)
    count = len(special)
    assert torch.equal(batch.inputs_embeds[0, count : count + 2], slots["dog"])
    assert torch.equal(batch.inputs_embeds[0, :count], words(lm, *special))
    assert batch.labels[0, count + 2 :].tolist() == special


def test_vectors_take_the_models_dtype_and_pass_gradients(language_model_folder):
    half = tiny.load_language_model(str(language_model_folder("llama")), precision="bf16")
    vectors = torch.randn(3, half.hidden_size, requires_grad=True)
    batch = splice(half, [SHORT], {"cat": vectors})
    assert batch.inputs_embeds.dtype == torch.bfloat16
    batch.inputs_embeds[0, 3].float().sum().backward()
    assert vectors.grad[1].eq(1).all() and not vectors.grad[[0, 2]].any()


def test_a_prompt_needs_no_target_and_a_training_text_does(lm, slots):
    prompt = SHORT[:2]
    assert splice(lm, [prompt], slots, side="left", train=False).targets == 0
    with pytest.raises(AdapterError, match="no words to learn"):
        splice(lm, [LONG, prompt], slots)


def test_rows_of_an_image_are_cut_from_its_vectors(lm, slots):
    rows = [Segment(slot="cat", part=(k, 3)) for k in (2, 0, 1)]
    embeds = embed_at(lm, [(row, place) for place, row in enumerate(rows)], slots, 4)
    assert torch.equal(embeds[:3], slots["cat"][[2, 0, 1]]) and not embeds[3].any()
    assert length_of(rows, slots["cat"].shape[0]) == 3
    with pytest.raises(AdapterError, match="2 tokens of a medium can't be laid out in 3 rows"):
        embed_at(lm, [(Segment(slot="dog", part=(0, 3)), 0)], slots, 4)


def test_positions_count_what_the_mask_shows():
    mask = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0]])
    assert positions_of(mask).tolist() == [[0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 2]]
