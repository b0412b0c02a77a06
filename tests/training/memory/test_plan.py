"""The memory plan: what it counts on shapes alone is what real tensors take."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import save_language_model
from transformers import AutoConfig

from periscope.adapters import model as adapters_model
from periscope.adapters.lm.language_model import unfreeze
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.lm.lora import add_lora, lora_parameters, lora_size
from periscope.adapters.lm.prefix_cache import cache_argument
from periscope.adapters.model import AdaptedModel, Adapter, PassShape
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.segments import Segment
from periscope.adapters.prompting.template import default_template
from periscope.adapters.shared_prefix import SharedPrefixBatch, pack_shared_prefix
from periscope.adapters.splice import length_of
from periscope.training.memory import plan as plans
from periscope.training.memory.model_sizes import skeleton
from periscope.training.memory.plan import (
    GIB,
    MemoryPlan,
    RowForm,
    Tuning,
    choose_checkpointing,
    plan,
    saved_bytes,
    saved_per_token,
    weight_bytes,
)

ROOT = Path(__file__).parents[3]
WORDS = "the quick brown fox jumps over the lazy dog"


def sample_texts(lm, adapter, count: int = 3):
    prompt = Prompt(lm.tokenizer, default_template(lm.tokenizer))
    captions = [WORDS] * (count - 1) + [WORDS[:20]]  # one of them is padded
    texts = [prompt.segments([{"role": "assistant", "content": words}], [f"m{i}"]) for i, words in enumerate(captions)]
    shape = adapter.features
    features = {f"m{i}": torch.randn(shape.tokens, shape.width) for i in range(count)}
    return prompt, texts, features


@pytest.mark.parametrize("before", [0, 30])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "gptj", "gemma2", "qwen3", "mamba"])
def test_a_step_keeps_what_the_plan_counts(family, before, language_model_folder, monkeypatch):
    """Against what autograd saves in a real step, behind a cached prefix too; a model with one layer more or fewer is
    told from this one.
    """
    monkeypatch.setattr(plans, "_estimate", lambda *_: pytest.fail("the family can't be counted"))
    lm = load_language_model(str(language_model_folder(family)))
    adapter = Adapter("mlp", FeatureShape("patches", 36, 32, (6, 6)), lm.hidden_size, lm.embedding_rms)
    prompt, texts, features = sample_texts(lm, adapter)
    if before:
        texts = [[Segment(ids=tuple(range(3, 3 + before))), *text] for text in texts]
    model, length = AdaptedModel(lm, adapter, prompt), length_of(texts[0], 36)
    own = [*lm.model.parameters(), *lm.model.buffers(), *adapter.parameters(), *features.values()]
    saved = saved_bytes(lambda: model.loss(texts, features)[0], own)
    prefix = model.prefix_length(texts)
    assert prefix >= before
    memory = plan(lm, adapter, length, shared=False, prefix=prefix)
    targets = sum(len(s.ids) for text in texts for s in text if s.target)
    logits = 4 * targets * lm.model.config.get_text_config().vocab_size  # their gradient, in their place
    shape = PassShape(len(texts), length - prefix, prefix, 0, len(texts))
    expected = memory.kept(shape) + logits
    assert saved == pytest.approx(expected, rel=0.05)
    layer = (expected - logits - len(texts) * memory.per_medium) / lm.depth
    assert abs(saved - (expected + layer)) > 0.15 * saved < abs(saved - (expected - layer))


@pytest.mark.parametrize(
    "family, precision", [("llama", "auto"), ("llama", "bf16"), ("gpt2", "auto"), ("mamba", "auto")]
)
def test_a_step_with_lora_keeps_what_the_plan_counts(family, precision, language_model_folder, monkeypatch):
    monkeypatch.setattr(plans, "_estimate", lambda *_: pytest.fail("the family can't be counted"))
    lm = load_language_model(str(language_model_folder(family)), precision=precision)
    adapter = Adapter("mlp", FeatureShape("patches", 36, 32, (6, 6)), lm.hidden_size, lm.embedding_rms)
    prompt, texts, features = sample_texts(lm, adapter)
    length = length_of(texts[0], 36)
    plain = plan(lm, adapter, length, shared=False)
    size = lora_size(lm.model, 24)
    add_lora(lm, 24, 24)
    model, memory = AdaptedModel(lm, adapter, prompt), plan(lm, adapter, length, shared=False)
    assert size == sum(p.numel() for p in lora_parameters(lm.model).values())
    assert (memory.lora, memory.adapter) == (size * 16, plain.adapter + size * 16) and memory.weights == plain.weights
    assert memory.checkpoint == plain.checkpoint + size * 12 and "and LoRA" in str(memory)
    own = [*lm.model.parameters(), *lm.model.buffers(), *adapter.parameters(), *features.values()]
    saved = saved_bytes(lambda: model.loss(texts, features)[0], own)
    targets = sum(len(s.ids) for text in texts for s in text if s.target)
    expected = len(texts) * (length * memory.per_token + memory.per_medium)
    expected += lm.dtype.itemsize * targets * lm.model.config.get_text_config().vocab_size
    assert saved == pytest.approx(expected, rel=0.1)
    without = expected - len(texts) * length * (memory.per_token - plain.per_token)
    assert abs(saved - without) > 0.1 * saved


@pytest.mark.parametrize("family, precision", [("gpt_neox", "fp32"), ("mamba", "bf16")])
def test_a_step_that_trains_the_language_model_keeps_what_the_plan_counts(
    family, precision, language_model_folder, monkeypatch
):
    monkeypatch.setattr(plans, "_estimate", lambda *_: pytest.fail("the family can't be counted"))
    lm = load_language_model(str(language_model_folder(family)), precision=precision)
    adapter = Adapter("mlp", FeatureShape("patches", 36, 32, (6, 6)), lm.hidden_size, lm.embedding_rms)
    prompt, texts, features = sample_texts(lm, adapter)
    length, itemsize = length_of(texts[0], 36), lm.dtype.itemsize
    plain = plan(lm, adapter, length, shared=False)
    unfreeze(lm)
    weights = sum(weight.numel() for weight in lm.own_parameters().values())
    model, memory = AdaptedModel(lm, adapter, prompt), plan(lm, adapter, length, shared=False, tuning=Tuning(lm=True))
    assert memory.tuned == 3 * itemsize * weights == memory.adapter - plain.adapter and memory.weights == plain.weights
    assert memory.checkpoint == plain.checkpoint + memory.tuned and "its gradients and AdamW" in str(memory)
    in_8_bits = plan(lm, adapter, length, shared=False, tuning=Tuning("adamw8bit", lm=True))
    assert in_8_bits.tuned == pytest.approx((itemsize + 2) * weights, rel=0.02)
    own = [*lm.model.parameters(), *lm.model.buffers(), *adapter.parameters(), *features.values()]
    saved = saved_bytes(lambda: model.loss(texts, features)[0], own)
    targets = sum(len(s.ids) for text in texts for s in text if s.target)
    expected = len(texts) * (length * memory.per_token + memory.per_medium)
    expected += itemsize * targets * lm.model.config.get_text_config().vocab_size
    assert saved == pytest.approx(expected, rel=0.1)
    assert memory.per_token > 1.05 * plain.per_token


@pytest.mark.parametrize("family", ["llama", "mistral", "opt", "qwen3"])
def test_texts_about_one_medium_keep_a_mask_and_the_plan_counts_it(family, language_model_folder, monkeypatch):
    """And keys and values once for every head, of which these models, but for opt, have fewer."""
    lm = load_language_model(str(language_model_folder(family)))
    adapter = Adapter("mlp", FeatureShape("patches", 36, 32, (6, 6)), lm.hidden_size, lm.embedding_rms)
    prompt, _, features = sample_texts(lm, adapter, 1)
    texts = [prompt.segments([{"role": "assistant", "content": words}], ["m0"]) for words in (WORDS, WORDS[4:])]
    own = [*lm.model.parameters(), *lm.model.buffers(), *adapter.parameters(), *features.values()]
    rows: list[int] = []

    def recording_pack(*inputs: object) -> SharedPrefixBatch:
        packed = pack_shared_prefix(*inputs)
        rows.append(packed.inputs_embeds[..., 0].numel())
        return packed

    monkeypatch.setattr(adapters_model, "pack_shared_prefix", recording_pack)
    saved = saved_bytes(lambda: AdaptedModel(lm, adapter, prompt).loss(texts, features)[0], own)
    (tokens,) = rows
    masked, plain = (plan(lm, adapter, tokens, shared=shared) for shared in (True, False))
    targets = sum(len(s.ids) for text in texts for s in text if s.target)
    rest = masked.per_medium + 4 * targets * lm.model.config.get_text_config().vocab_size
    assert saved == pytest.approx(tokens * masked.per_token + rest, rel=0.05)
    assert saved > 1.04 * (tokens * plain.per_token + rest)


FORMS = {
    "apart": ([["a red circle"], ["a star"], ["the lazy dog"], ["a blue fox"]], 0),
    "behind a prefix": ([["a red circle"], ["a star"], ["the lazy dog jumps over it"], ["a blue fox"]], 24),
    "shared": ([["a red circle", "the fox", "a small blue star over the lazy dog", "red"]], 0),
    "shared and packed": ([["a circle", "a fox", "a big dog"], ["a star"] * 2, ["red", "blue"], ["it"]], 24),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_pass_is_counted_as_the_model_makes_it(family, form, language_model_folder, monkeypatch):
    """Positions, cached keys and logits exactly, and bytes within a tenth: a row for each text, or shared rows."""
    captions, before = FORMS[form]
    lm = load_language_model(str(language_model_folder(family)))
    adapter = Adapter("mlp", FeatureShape("patches", 16, 32, (4, 4)), lm.hidden_size, lm.embedding_rms)
    model = AdaptedModel(lm, adapter, Prompt(lm.tokenizer, default_template(lm.tokenizer)))
    texts = [
        [
            Segment(ids=tuple(range(3, 3 + before))),
            *model.prompt.segments([{"role": "assistant", "content": said}], [m]),
        ]
        for m, group in zip("abcd", captions, strict=False)
        for said in group
    ]
    features = {name: torch.randn(16, 32) for name in "abcd"}
    own = [*lm.model.parameters(), *lm.model.buffers(), *adapter.parameters(), *features.values()]
    model.loss(texts, features)  # computes the prefix
    passes: list[tuple[int, ...]] = []
    forward = lm.model.forward

    def counting(**inputs):
        result = forward(**inputs)
        cached = inputs.get(cache_argument(lm.model))
        rows, length, _ = inputs["inputs_embeds"].shape
        passes.append((rows, length, cached.length if cached else 0, result.logits[..., 0].numel()))
        return result

    monkeypatch.setattr(lm.model, "forward", counting)
    saved, shape = saved_bytes(lambda: model.loss(texts, features)[0], own), model.shape_of(texts)
    assert passes == [shape[:4]] and shape.masked == form.startswith("shared") and shape.media == len(captions)
    assert (shape.rows < len(texts)) == shape.masked and (shape.before >= before > 0) == bool(before)
    memory = plan(lm, adapter, shape.before + shape.length, shared=shape.masked, prefix=shape.before)
    memory = replace(memory, per_target=memory.per_target // 2)  # these families make no copy of the logits
    assert saved == pytest.approx(memory.kept(shape), rel=0.1)
    a_row_each = len(texts) * memory.per_text(shape.before + max(length_of(text, 16) for text in texts) - before)
    assert not shape.masked or a_row_each > 1.3 * saved


def test_the_texts_of_a_pass_are_as_many_as_fit():
    memory = MemoryPlan(10 * GIB, GIB, 1 << 20, 0, 0, 0, 100, 11 * GIB, per_cached=1 << 10)
    passes = lambda count: [PassShape(count, 100, 50, 0, count), PassShape(-(-count // 5), 400, 50, 0, 1)]  # noqa: E731
    most = memory.texts_at_once(500, passes)
    room = 0.8 * 10 * GIB
    assert max(map(memory.kept, passes(most))) <= room < max(map(memory.kept, passes(most + 1)))
    assert memory.texts_at_once(8, passes) == 8 and memory.texts_at_once(1, passes) == 1
    assert memory.texts_at_once(500, lambda count: [PassShape(count, 10**6, 0, 0, 1)]) == 1
    assert MemoryPlan(0, 0, 1, 1, 1, 0, 0, None).texts_at_once(500, passes) == 500


def test_the_plan_changes_nothing_of_the_model(language_model_folder):
    lm = load_language_model(str(language_model_folder("llama")))
    before = lm.model.config.to_dict(), lm.model.config._attn_implementation
    saved_per_token(lm.model.config, torch.float16, 40)
    assert (lm.model.config.to_dict(), lm.model.config._attn_implementation) == before


def test_recomputed_layers_save_their_input(language_model_folder):
    config = AutoConfig.from_pretrained(language_model_folder("opt"))
    config.num_hidden_layers = 14
    whole, half, all_again = (saved_per_token(config, torch.float32, 50, RowForm(every)) for every in (0, 2, 1))
    config.num_hidden_layers = 13
    layer = whole - saved_per_token(config, torch.float32, 50)
    entered = config.hidden_size * 4
    assert all_again == pytest.approx(whole - 14 * (layer - entered) + layer, rel=0.01)
    assert half == pytest.approx(whole - 7 * (layer - entered) + layer, rel=0.01)
    assert all_again < 0.3 * whole


def test_a_family_that_cannot_be_counted_is_estimated(language_model_folder, monkeypatch):
    config = AutoConfig.from_pretrained(language_model_folder("llama"))
    counted = saved_per_token(config, torch.float32, 40)
    monkeypatch.setattr(plans, "_saved_bytes", lambda *_: (_ for _ in ()).throw(RuntimeError("it looks at values")))
    assert saved_per_token(config, torch.float32, 40) == pytest.approx(counted, rel=0.5)


@pytest.mark.parametrize("precision", ["fp32", "8bit", "4bit"])
def test_weights_take_what_bitsandbytes_gives_them(precision, tmp_path):
    folder = save_language_model("llama", tmp_path / "lm", hidden_size=256, head_dim=64)
    model = load_language_model(str(folder), precision=precision).model
    found = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    for parameter in model.parameters():
        if precision == "8bit" and getattr(parameter, "SCB", None) is not None:
            found += parameter.SCB.numel() * 4
        if state := getattr(parameter, "quant_state", None):
            found += state.absmax.numel() * state.absmax.element_size() + state.state2.absmax.numel() * 4
    bare = skeleton(AutoConfig.from_pretrained(folder))
    rest = 4  # on a CPU what isn't packed is fp32
    assert found == pytest.approx(weight_bytes(bare, precision, rest=rest), rel=1e-3)
    assert found != pytest.approx(weight_bytes(bare, precision, keep=(), rest=rest), rel=1e-3) or precision == "fp32"
    assert weight_bytes(bare, "fp16") * 2 == weight_bytes(bare, "fp32")


def test_the_micro_batch_is_what_fits():
    memory = MemoryPlan(10 * GIB, GIB, 1 << 20, 1 << 20, 1 << 28, 0, 100, 11 * GIB)
    each = memory.per_text(300)
    assert each == (300 + 200) * (1 << 20) + (1 << 28)
    fits = memory.micro_batch(64, 300)
    assert fits * each <= 0.8 * 10 * GIB < (fits + 1) * each
    assert memory.micro_batch(4, 300) == 4 and memory.micro_batch(64, 10**6) == 1
    on_a_cpu = MemoryPlan(10 * GIB, GIB, 1 << 20, 1 << 20, 1 << 28, 0, 100, None)
    assert on_a_cpu.micro_batch(64, 300) == 64 and "GPU" not in str(on_a_cpu)


def test_checkpointing_starts_only_where_no_text_would_fit_with_as_few_layers_as_possible(capsys):
    asked = []

    def plan_with(every: int, free: int | None) -> MemoryPlan:
        asked.append(every)
        saved = {0: 40, 8: 30, 4: 20, 2: 10, 1: 5}[every] << 20
        return MemoryPlan(0, 0, saved, 0, 0, 0, 0, free)

    def spared(free: int | None, checkpoint_every: int = 0) -> tuple[int, list[int]]:
        asked.clear()
        memory, every = choose_checkpointing(lambda n: plan_with(n, free), checkpoint_every, 100)
        assert memory == plan_with(every, free)
        return every, asked[:-1]

    room = {saved: round(saved * 100 / 0.8) + 1 << 20 for saved in (40, 20, 4)}
    assert spared(None) == spared(room[40]) == (0, [0])
    assert spared(room[20], checkpoint_every=2) == (2, [2]) and not capsys.readouterr().out
    assert spared(room[20]) == (4, [0, 8, 4])
    assert "--gradient-checkpointing 4" in capsys.readouterr().out
    assert spared(room[4]) == (1, [0, 8, 4, 2, 1]) and "--gradient-checkpointing 1" in capsys.readouterr().out
