"""A medium given to inner layers: which layers, what the words see, and that generation sees the same."""

from dataclasses import replace

import pytest
import torch
from tiny import FAMILIES
from transformers import AutoModelForCausalLM

from periscope.adapters.io.checkpoint import load_adapter, save_adapter
from periscope.adapters.lm.gradient_checkpointing import checkpoint_layers
from periscope.adapters.lm.injection import Injection, decoder_layers, injection_into, map_layers
from periscope.adapters.lm.language_model import LanguageModel, freeze
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape, build_projector
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import Template
from periscope.errors import AdapterError

BLOCKS, WIDTH = 3, 12
LAYERS = FeatureShape("layers", BLOCKS, WIDTH)
TEXTS = [
    [{"role": "user", "content": "What colour is the star?"}, {"role": "assistant", "content": "blue"}],
    [{"role": "assistant", "content": "a red circle and a small blue star"}],
]


def deep(family: str) -> LanguageModel:
    """A tiny random model of 8 layers."""
    make_config, make_tokenizer = FAMILIES[family]
    tokenizer = make_tokenizer()
    config = make_config(len(tokenizer))
    given = {name: value for name, value in config.to_dict().items() if name not in ("layer_types", "no_rope_layers")}
    config = type(config)(**given | {"num_hidden_layers": 8, "pad_token_id": None})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return freeze(family, model, tokenizer)


def adapted(family: str, spec: str = "epalm", compat: bool = False, soft_prompt: int = 0) -> AdaptedModel:
    lm = deep(family)
    where = injection_into(lm, BLOCKS, compat=compat)
    torch.manual_seed(1)
    adapter = Adapter(spec, LAYERS, lm.hidden_size, lm.embedding_rms, soft_prompt=soft_prompt, injection=where)
    with torch.no_grad():  # as strong as what the layers themselves say
        for parameter in adapter.projector.parameters():
            parameter.mul_(3)
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, Template(delimiters=("", ""))))


def segments(model: AdaptedModel, turns: list[dict], medium: str, answer: bool = True) -> list:
    return model.prompt.segments(turns, [medium], answer=answer, soft_prompt=model.adapter.soft_prompt is not None)


def features(*names: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return {name: torch.randn(BLOCKS, WIDTH) for name in names}


def test_layers_follow_the_papers_rule():
    assert [map_layers(32, 6).block_of(layer) for layer in range(18, 32)] == [
        *(None, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, None)
    ]
    assert [map_layers(24, 6).block_of(layer) for layer in (10, 11, 12, 22, 23)] == [None, 0, 0, 5, None]
    assert [map_layers(4, 6).block_of(layer) for layer in range(4)] == [None, 0, 3, None]
    assert [map_layers(2, 6).block_of(layer) for layer in range(2)] == [0, None]
    with pytest.raises(AdapterError, match="don't lie in a model of 8"):
        map_layers(8, 3, 5, 9)


@pytest.mark.parametrize(
    "hidden, width, shared, parameters",
    [(2560, 768, False, 11_811_840), (4096, 1024, True, 4_198_400), (1024, 768, False, 4_724_736)],
)
def test_published_counts_of_the_linears(hidden, width, shared, parameters):
    with torch.device("meta"):
        module = build_projector("epalm-shared" if shared else "epalm", FeatureShape("layers", 6, width), hidden)
    assert sum(p.numel() for p in module.parameters()) == parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_sees_what_it_should(family):
    """Below the first injected layer the words' states are those of the text alone; at each injected layer the row
    holds that layer's vector; what the model says depends on it.
    """
    model = adapted(family)
    given = features("a", "b")
    texts = [segments(model, turns, name) for turns, name in zip(TEXTS, given, strict=True)]
    bare = [[part for part in text if part.slot is None] for text in texts]
    states, layers = {}, decoder_layers(model.lm.model)
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, x, y, n=n: states.setdefault(n, []).append(x[0] if x else y["hidden_states"]), with_kwargs=True
        )
        for n, layer in enumerate(layers)
    ]
    for text in bare:
        ids = torch.tensor([[token for part in text for token in part.ids]])
        with torch.no_grad():
            model.lm.model(inputs_embeds=model.lm.embed(ids))
    alone = {n: list(rows) for n, rows in states.items()}
    states.clear()
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        vectors = model.slots(texts, given)
    for row, (text, name) in enumerate(zip(texts, given, strict=True)):
        seen = {}
        slot = next(i for i, part in enumerate(text) if part.slot == name)
        place = sum(len(part.ids) for part in text[:slot])
        batch, injected = model._splice([text], {name: vectors[name]})
        with injected:
            hooks = [
                layer.register_forward_pre_hook(
                    lambda _, x, y, n=n, seen=seen: seen.update({n: x[0] if x else y["hidden_states"]}),
                    with_kwargs=True,
                )
                for n, layer in enumerate(layers)
            ]
            positions = {"position_ids": batch.position_ids} if model._takes_positions else {}
            with torch.no_grad():
                logits = model.lm.model(
                    inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask, **positions
                ).logits
            for hook in hooks:
                hook.remove()
        inserts = model._injector.inserts
        assert logits.shape[1] == len(alone[0][row][0]) + (0 if inserts else 1)
        where = model._injector.map
        for n in range(len(layers)):
            words = seen[n][0]
            if n < where.start:
                if not inserts:
                    words = torch.cat([words[:place], words[place + 1 :]])
                assert torch.allclose(words, alone[n][row][0], atol=1e-5), (n, "the words alone")
            elif (block := where.block_of(n)) is not None:
                assert torch.allclose(words[place], vectors[name][block], atol=1e-6), n
            else:
                assert not torch.allclose(words[place], vectors[name][-1], atol=1e-3), n
        assert not torch.allclose(words[place + 2 :], alone[len(layers) - 1][row][0][place + 1 :], atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_and_caches_change_nothing(family):
    model = adapted(family, soft_prompt=2)
    given = features("a", "b")
    texts = [segments(model, turns, name) for turns, name in zip(TEXTS, given, strict=True)]
    together = [loss for loss, _ in model.text_losses(texts, given)]
    single = [model.text_losses([text], given)[0][0] for text in texts]
    assert together == pytest.approx(single, abs=2e-4)
    other = {"a": given["b"], "b": given["a"]}
    moved = abs(model.text_losses(texts, other)[0][0] - together[0])
    assert moved > (1e-5 if family == "mamba" else 1e-3), "the medium must matter"
    prompts = [segments(model, turns, name, answer=False) for turns, name in zip(TEXTS, given, strict=True)]
    said = model.generate(prompts, given, max_new_tokens=8)
    assert said == [model.generate([prompt], given, max_new_tokens=8)[0] for prompt in prompts]
    assert said == model.generate(prompts, given, max_new_tokens=8, use_cache=False)
    assert len(model.generate(prompts, given, max_new_tokens=4, num_beams=2)) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_said_later_changes_nothing_before_it(family):
    """Logits, not lengths: with `compat` later words do change what is said before, which is the original's leak."""
    for compat in (False, True):
        if compat and deep(family).family.recurrent:
            with pytest.raises(AdapterError, match="for attention models"):
                adapted(family, compat=True)
            continue
        model = adapted(family, compat=compat)
        given = features("a")
        text = segments(model, TEXTS[1], "a")
        last = text[-1]
        other = [*text[:-1], last._replace(ids=(*last.ids[:-3], *last.ids[:3]))]
        logits = []
        for written in (text, other):
            batch, injected = model._splice([written], model.slots([written], given))
            positions = {"position_ids": batch.position_ids} if model._takes_positions else {}
            with injected, torch.no_grad():
                out = model.lm.model(
                    inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask, **positions
                )
            logits.append(out.logits[0, -len(last.ids) : -3])
        assert torch.equal(*logits) != compat
        moved = (logits[0] - logits[1]).abs().max().item()
        assert moved > 1e-4 * logits[0].std() if compat else moved == 0, (compat, moved)


@pytest.mark.parametrize("family", ["llama", "opt", "mamba"])
def test_gradients_reach_every_linear_and_nothing_else(family):
    model = adapted(family)
    given = features("a", "b")
    texts = [segments(model, turns, name) for turns, name in zip(TEXTS, given, strict=True)]
    loss, count = model.loss(texts, given)
    (loss / count).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.adapter.projector.parameters())
    assert all(p.grad is None for p in model.lm.model.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
def test_layers_that_run_again_are_given_the_same(family):
    """Activation checkpointing of the frozen model, before the injection is made and after."""
    gradients = []
    for when in ("never", "before", "after"):
        model = adapted(family)
        if when != "never":
            checkpoint_layers(model.lm)
        if when == "before":
            model = AdaptedModel(model.lm, model.adapter, model.prompt)
        given = features("a", "b")
        texts = [segments(model, turns, name) for turns, name in zip(TEXTS, given, strict=True)]
        model.loss(texts, given)[0].backward()
        gradients.append([parameter.grad for parameter in model.adapter.projector.parameters()])
    for found in gradients[1:]:
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients[0], found, strict=True))


@pytest.mark.parametrize(
    "hidden, embedded, width, spec, mlp, parameters",
    [
        (2560, 2560, 768, "epalm", True, 24_949_760),  # OPT-2.7B
        (4096, 4096, 1024, "epalm-shared", False, 4_239_360),  # OPT-6.7B, eP-ALM_pt-L
        (1024, 512, 768, "epalm", True, 5_255_168),  # OPT-350M, whose word embeddings are narrower
    ],
)
def test_published_counts_of_all_that_is_trained(hidden, embedded, width, spec, mlp, parameters):
    where = Injection(hidden, 19, 31, compat=False)
    shape = FeatureShape("layers", 6, width)
    with torch.device("meta"):
        adapter = Adapter(spec, shape, embedded, 0.01, soft_prompt=10, injection=where, soft_prompt_mlp=mlp)
    assert sum(p.numel() for p in adapter.parameters()) == parameters


def test_a_soft_prompts_mlp_folds_into_plain_vectors(tmp_path):
    model = adapted("opt")
    torch.manual_seed(0)
    where = model.adapter.injection
    adapter = Adapter("epalm", LAYERS, 32, 0.02, soft_prompt=4, injection=where, soft_prompt_mlp=True)
    language_model = {"name": "l", "identity": {}}
    about = {"encoder": {"name": "e"}, "language_model": language_model, "template": Template(), "training": {}}
    save_adapter(tmp_path / "a", adapter, about)
    again, config = load_adapter(tmp_path / "a")
    prompt = adapter.soft_prompt()
    assert config.soft_prompt_mlp and torch.equal(again.soft_prompt(), prompt) and again.injection == where
    again.soft_prompt.fold()
    assert again.soft_prompt.mlp is None and torch.allclose(again.soft_prompt(), prompt, atol=1e-6)
    with pytest.raises(AdapterError, match="needs a --soft-prompt"):
        Adapter("mlp2", FeatureShape("pooled", 1, 6), 32, 0.02, soft_prompt_mlp=True)


def test_every_vector_of_a_divided_soft_prompt_is_read():
    model = adapted("llama", soft_prompt=3)
    model.prompt.template = replace(model.prompt.template, soft_prompt="around")
    given = features("a")
    loss, _ = model.loss([segments(model, TEXTS[0], "a")], given)
    loss.backward()
    assert (model.adapter.soft_prompt.vectors.grad.abs().sum(1) > 0).all()
    assert model.generate([segments(model, TEXTS[0], "a", answer=False)], given, max_new_tokens=3)
