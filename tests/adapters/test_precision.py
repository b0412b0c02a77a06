"""The frozen model in fewer bits: the adapter's gradients stay near those of fp32, and the adapter is good for all."""

import importlib.util
from dataclasses import replace

import pytest
import tiny
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from periscope.adapters.lm.families import MODEL_FAMILIES
from periscope.adapters.lm.identity import precisions_differ, same_language_model, weights_sha256
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.lm.precision import choose_precision, sdpa_in_fp32_on_cpu
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import default_template
from periscope.errors import AdapterError
from periscope.training.data.dataset import Batch
from periscope.training.step import take_step

# (least cosine, largest relative difference of the norm) of the adapter's gradient against fp32's. On random weights
# 4 bits change the model itself: what is asked of them is asked against the same weights unpacked, too.
BOUNDS = {"bf16": (0.99, 0.05), "fp16": (0.999, 0.01), "8bit": (0.95, 0.1), "4bit": (0.3, 0.6)}
WIDE = {
    "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 512, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 32,
}  # fmt: skip
TRAINED = "demo/backbones/lm"
WIDTH = 12
CAPTIONS = ["A large red circle at the top left.", "A small blue star in the centre.", "A green square and a star."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, language_model_folder):
    made = {}

    def find(name: str) -> str:
        if name == "wide llama" and name not in made:
            made[name] = tiny.save_language_model("llama", tmp_path_factory.mktemp("lm") / "wide", **WIDE)
        if name == "the demo's, trained":
            return TRAINED
        return str(made.get(name) or language_model_folder(name))

    return find


def adapter_for(lm, spec="mlp4") -> Adapter:
    torch.manual_seed(1)
    return Adapter(spec, FeatureShape("pooled", 1, WIDTH), lm.hidden_size, lm.embedding_rms)


def adapted(lm, adapter) -> AdaptedModel:
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, default_template(lm.tokenizer)))


def batch(model) -> Batch:
    texts = [
        model.prompt.segments([{"role": "assistant", "content": caption}], [f"m{i}"])
        for i, caption in enumerate(CAPTIONS)
    ]
    rows = torch.randn(len(texts), WIDTH, generator=torch.Generator().manual_seed(2)).half()
    targets = sum(len(segment.ids) for text in texts for segment in text if segment.target)
    return Batch(texts, [f"m{i}" for i in range(len(texts))], rows, targets)


def loss_of(model) -> torch.Tensor:
    given = batch(model)
    total, count = model.loss(given.texts, given.features)
    return total / count


def gradient(lm, adapter) -> torch.Tensor:
    grads = torch.autograd.grad(loss_of(adapted(lm, adapter)), list(adapter.parameters()))
    assert all(grad.dtype == torch.float32 for grad in grads)
    return torch.cat([grad.flatten() for grad in grads])


def compare(found: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """The cosine, and by how much the norm differs."""
    return torch.cosine_similarity(found, wanted, 0).item(), abs((found.norm() / wanted.norm()).item() - 1)


@pytest.mark.parametrize("name", [*tiny.FAMILIES, "wide llama", "the demo's, trained"])
def test_gradients_in_fewer_bits_are_near_those_of_fp32(name, folder):
    exact = load_language_model(folder(name))
    adapter = adapter_for(exact)
    wanted = gradient(exact, adapter)
    for precision, (cosine, norm) in BOUNDS.items():
        lm = load_language_model(folder(name), precision=precision)
        found = compare(gradient(lm, adapter), wanted)
        assert found[0] > cosine and found[1] < norm, (precision, found)


@pytest.mark.parametrize("name", ["llama", "mamba", "mamba2", "wide llama", "the demo's, trained"])
def test_4_bits_compute_with_the_weights_that_they_hold(name, folder):
    packed = load_language_model(folder(name), precision="4bit")
    adapter = adapter_for(packed)
    found = gradient(packed, adapter)
    packed.model = packed.model.dequantize()
    assert not any("4bit" in type(part).__name__ for part in packed.model.modules())
    cosine, norm = compare(found, gradient(packed, adapter))
    assert cosine > 0.9999 and norm < 1e-3


def test_mambas_scan_needs_some_layers_whole(folder, monkeypatch):
    lm = load_language_model(folder("mamba"), precision="4bit")
    packed = {name.rpartition(".")[2] for name, part in lm.model.named_modules() if type(part).__name__ == "Linear4bit"}
    assert packed == {"in_proj"}
    monkeypatch.setitem(MODEL_FAMILIES, "mamba", replace(MODEL_FAMILIES["mamba"], unquantized=()))
    with pytest.raises(RuntimeError):
        loss_of(adapted(load_language_model(folder("mamba"), precision="4bit"), adapter_for(lm)))


def test_fp16_needs_its_loss_scaled(folder):
    """A micro-batch of a large step: its share of the loss is small, and so are gradients inside a model in fp16."""
    exact, half = (load_language_model(folder("wide llama"), precision=kind) for kind in ("fp32", "fp16"))
    adapter = adapter_for(exact)
    found = {}
    for name, lm, scaled in (("fp32", exact, False), ("scaled", half, True), ("plain", half, False)):
        model = adapted(lm, adapter)
        given = batch(model)
        given.targets = 3_000_000
        loss, norm, _ = take_step(
            model,
            torch.optim.SGD(adapter.parameters(), lr=0.0),
            torch.amp.GradScaler("cpu", enabled=scaled),
            given,
            micro=3,
            clip=0.0,
        )
        assert loss > 0
        found[name] = torch.cat([parameter.grad.flatten() for parameter in adapter.parameters()])
        assert norm == pytest.approx(found[name].norm().item(), rel=1e-4)
    cosine, norm = compare(found["scaled"], found["fp32"])
    assert cosine > BOUNDS["fp16"][0] and norm < BOUNDS["fp16"][1]
    cosine, norm = compare(found["plain"], found["fp32"])
    assert cosine < 0.9 or norm > 0.1


def test_an_overflow_in_fp16_skips_the_step_and_halves_the_scale(folder):
    lm = load_language_model(folder("llama"), precision="fp16")
    model = adapted(lm, adapter_for(lm))
    before = [parameter.clone() for parameter in model.adapter.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    scale = scaler.get_scale()
    take_step(model, torch.optim.SGD(model.adapter.parameters(), lr=1.0), scaler, batch(model), micro=3, clip=1.0)
    assert scaler.get_scale() == scale / 2
    assert all(torch.equal(a, b) for a, b in zip(before, model.adapter.parameters(), strict=True))


@pytest.mark.parametrize("precision, kept", [("8bit", 0.98), ("4bit", 0.85)])
def test_an_adapter_trained_in_fewer_bits_serves_the_whole_model(precision, kept):
    """AnyMAL's way, on a trained model: most of what the loss fell by stays (4 bits: 0.97 when this was written)."""
    few, whole = load_language_model(TRAINED, precision=precision), load_language_model(TRAINED)
    assert same_language_model(few.identity(), whole.identity()) is None
    assert precisions_differ(few.identity(), whole.identity()) == f"trained with {precision} weights, here in fp32"
    assert precisions_differ(whole.identity(), whole.identity()) is None
    adapter = adapter_for(few)
    learner, reader = adapted(few, adapter), adapted(whole, adapter)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=3e-3)
    with torch.no_grad():
        began = loss_of(reader).item()
    for _ in range(25):
        loss = loss_of(learner)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        fell, fell_whole = began - loss_of(learner).item(), began - loss_of(reader).item()
    assert fell > 2 and fell_whole > kept * fell


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_identity_survives_precision_and_names_a_difference(family, language_model_folder, tmp_path):
    lm = load_language_model(str(language_model_folder(family)))
    for precision in ("fp16", "bf16", "8bit", "4bit"):
        other = load_language_model(str(language_model_folder(family)), precision=precision)
        assert same_language_model(lm.identity(), other.identity()) is None
    another = load_language_model(str(tiny.save_language_model(family, tmp_path / "other", seed=9)), precision="4bit")
    assert same_language_model(lm.identity(), another.identity()) == "its weights differ"
    third = load_language_model(str(language_model_folder("opt")))
    assert "model type" in same_language_model(lm.identity(), third.identity())
    old = replace(lm.identity(), precision=None)
    assert precisions_differ(old, lm.identity()) is None


def test_a_model_stored_in_4_bits_is_taken_as_it_is(language_model_folder, tmp_path):
    whole = load_language_model(str(language_model_folder("llama")))
    packed = load_language_model(str(language_model_folder("llama")), precision="4bit")
    packed.model.save_pretrained(tmp_path)
    packed.tokenizer.save_pretrained(tmp_path)
    lm = load_language_model(str(tmp_path))
    assert (lm.precision, lm.reason) == ("4bit", "as its weights are stored")
    assert same_language_model(whole.identity(), lm.identity()) is None
    adapter = adapter_for(whole)
    assert torch.equal(loss_of(adapted(lm, adapter)), loss_of(adapted(packed, adapter)))
    with pytest.raises(AdapterError, match="stored in 4bit, and --precision fp16"):
        load_language_model(str(tmp_path), precision="fp16")


def test_answering_leaves_4_bit_weights_as_they_are(language_model_folder):
    """On some CPUs bitsandbytes repacks them in place at the first answer, if it may."""
    lm = load_language_model(str(language_model_folder("llama")), precision="4bit")
    before = weights_sha256(lm.model)
    with torch.no_grad():
        lm.model(torch.arange(8)[None])
        lm.model.generate(torch.arange(8)[None], max_new_tokens=2, do_sample=False)
    assert weights_sha256(lm.model) == before


def test_precision_is_chosen_with_a_reason(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    bf16 = torch.bfloat16

    def card(computes_in_bf16: bool):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: computes_in_bf16)

    card(False)
    assert choose_precision("auto", cpu, bf16)[0] == "fp32"
    assert choose_precision("4bit", gpu, None) == ("4bit", "asked for")
    assert choose_precision("auto", gpu, bf16)[0] == "fp16"
    assert choose_precision("auto", gpu, bf16, overflows=True)[0] == "fp32"
    assert "can overflow" in choose_precision("fp16", gpu, bf16, overflows=True)[1]
    card(True)
    assert choose_precision("auto", gpu, bf16)[0] == "bf16"
    assert choose_precision("auto", gpu, None)[0] == "fp16"
    assert choose_precision("auto", gpu, torch.float32, overflows=True)[0] == "bf16"


@pytest.mark.parametrize(
    ("instructions", "limit", "precision"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "DEFAULT", "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "all", "bf16"),
        ({"avx512_bf16": True}, "AVX2", "fp32"),
        ({"avx2": True}, "DEFAULT", "fp32"),
    ],
)
def test_a_cpu_computes_in_bf16_if_it_has_instructions_for_it(monkeypatch, instructions, limit, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert choose_precision("auto", torch.device("cpu"), torch.float32)[0] == precision
    assert choose_precision("fp32", torch.device("cpu"), torch.float32) == ("fp32", "asked for")


def test_a_torch_that_doesnt_tell_a_cpus_instructions_computes_in_fp32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert choose_precision("auto", torch.device("cpu"), torch.bfloat16)[0] == "fp32"


@pytest.mark.parametrize("masked", [False, True])
def test_16_bits_on_a_cpu_are_trained_through_attention_in_fp32(masked):
    """Beside transformers' own in fp32: the output is that one rounded, and the gradients are those."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, heads, 5, 8).bfloat16().requires_grad_() for heads in (4, 2, 2)]
    mask = torch.full((5, 5), float("-inf")).triu(1)[None, None].bfloat16() if masked else None
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    attended, _ = sdpa_in_fp32_on_cpu(module, *inputs, mask, scaling=0.3)
    exact = [values.detach().float().requires_grad_() for values in inputs]
    expected, _ = sdpa_attention_forward(module, *exact, None if mask is None else mask.float(), scaling=0.3)
    assert attended.dtype == torch.bfloat16
    assert torch.equal(attended, expected.bfloat16())
    attended.sum().backward()
    expected.sum().backward()
    for ours, theirs in zip(inputs, exact, strict=True):
        assert torch.equal(ours.grad, theirs.grad.bfloat16())
    plain = [values.detach() for values in inputs]
    as_ever, _ = sdpa_attention_forward(module, *plain, mask, scaling=0.3)
    assert torch.equal(sdpa_in_fp32_on_cpu(module, *plain, mask, scaling=0.3)[0], as_ever)


def test_a_precision_that_cant_be_had_here_gets_a_sentence(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    with pytest.raises(AdapterError, match="unknown precision 'fp8'"):
        choose_precision("fp8", cpu, None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(AdapterError, match="bf16: this card doesn't compute in bf16; use fp16"):
        choose_precision("bf16", gpu, torch.bfloat16)
    assert choose_precision("bf16", cpu, None)[0] == "bf16"
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    for precision in ("8bit", "4bit"):
        with pytest.raises(AdapterError, match=f"{precision} needs bitsandbytes: pip install bitsandbytes"):
            choose_precision(precision, cpu, None)
