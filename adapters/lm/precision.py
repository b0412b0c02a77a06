"""How the frozen weights are held and computed: fp32, fp16, bf16, or 8 and 4 bits by bitsandbytes."""

import importlib.util
import logging
from typing import Any

import torch
from transformers import AttentionInterface, BitsAndBytesConfig, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from periscope.device import computes_in_bf16, cpu_multiplies_bf16, rules_of
from periscope.errors import AdapterError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS = ("auto", *DTYPES, "8bit", "4bit")


def choose_precision(
    requested: str, device: torch.device, trained_in: torch.dtype | None, overflows: bool = False
) -> tuple[str, str]:
    """Choose how the frozen weights are held, and say why: fp16 on a GPU, on a CPU bf16 if it has instructions for that
    and fp32 otherwise.

    bf16 is chosen where the GPU computes in it and the model was trained in it, since fp16 can overflow there, or
    belongs to a family that `overflows` in fp16. Raises AdapterError for an unknown precision, or one that this machine
    doesn't have.
    """
    if requested not in PRECISIONS:
        raise AdapterError(f"unknown precision {requested!r}; choose from {', '.join(PRECISIONS)}")
    rules, has_bf16 = rules_of(device), computes_in_bf16(device)
    if requested == "bf16" and not has_bf16:
        raise AdapterError(f"--precision bf16: {rules.no_bf16}; use fp16{', 8bit or 4bit' if rules.quantizes else ''}")
    if requested in ("8bit", "4bit"):
        refuse_quantized(f"--precision {requested}", device)
    if requested == "fp16" and overflows:
        return requested, "asked for, though this family's activations can overflow in it"
    if requested != "auto":
        return requested, "asked for"
    if not rules.half:
        if cpu_multiplies_bf16():
            return "bf16", "this CPU has instructions for it"
        return "fp32", "the fastest exact choice on a CPU"
    if (trained_in == torch.bfloat16 or overflows) and has_bf16:
        return "bf16", f"the model was trained in bf16 and {rules.name} computes in it"
    if overflows:
        return "fp32", f"this family's activations overflow in fp16, and {rules.no_bf16}"
    return "fp16", "half the memory of fp32 at the GPU's full speed"


def refuse_quantized(what: str, device: torch.device) -> None:
    """Raise AdapterError where the device can't hold weights in 8 or 4 bits, or bitsandbytes isn't installed."""
    rules = rules_of(device)
    if not rules.quantizes:
        raise AdapterError(f"{what}: bitsandbytes isn't used on {rules.name}; use fp16 or bf16, or --device cpu")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise AdapterError(f"{what} needs bitsandbytes: pip install bitsandbytes")


def trained_precision(requested: str, device: torch.device) -> tuple[str, torch.dtype | None]:
    """How weights that are trained are held, and the dtype that they are computed in, None for their own.

    "mixed" holds fp32 and computes in bf16; "auto" is that on an NVIDIA GPU that has bf16, and fp32 elsewhere. Raises
    AdapterError for "mixed" and "bf16" on a GPU without it.
    """
    rules, has_bf16 = rules_of(device), computes_in_bf16(device)
    if requested in ("mixed", "bf16") and not has_bf16:
        raise AdapterError(f"--precision {requested}: {rules.no_bf16}; use fp32")
    mixed = requested == "mixed" or (requested == "auto" and rules.mixed and has_bf16)
    return "bf16" if requested == "bf16" else "fp32", torch.bfloat16 if mixed else None


def sdpa_in_fp32_on_cpu(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' "sdpa", in fp32 where a CPU trains through a model in 16 bits.

    torch's backward pass for those leaves the products of short rows to slow loops: with the forward pass, 24 rows of
    48 positions take 37 ms in bf16, 11 in fp32, and 9 in bf16 through fp32 (torch 2.14, a core with AVX512-BF16).

    query `(batch, heads, tokens, width)`, key and value `(batch, key heads, positions, width)` ->
    `(batch, tokens, heads, width)` in the query's dtype.
    """
    dtype = query.dtype
    if query.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16) and query.requires_grad:
        query, key, value = query.float(), key.float(), value.float()
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
    attended, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return attended.to(dtype), weights


def use_fp32_attention_on_cpu() -> None:
    """Let models whose attention is called "sdpa" take it from here on."""
    AttentionInterface.register("sdpa", sdpa_in_fp32_on_cpu)


def stored_precision(config: PretrainedConfig) -> str | None:
    """How quantized weights are stored: "4bit", "8bit" or another method's name; None for weights in full precision."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    bits = {"load_in_4bit": "4bit", "load_in_8bit": "8bit"}
    return next((bits[key] for key in bits if stored.get(key)), str(stored.get("quant_method", "fewer bits")))


def quantization(precision: str, compute_dtype: torch.dtype, unquantized: tuple[str, ...] = ()) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantize to "8bit" (LLM.int8) or "4bit" (NF4, double quantization).

    `unquantized` names the layers to leave alone besides bitsandbytes' own choice.
    """
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_8bit=precision == "8bit",
            load_in_4bit=precision == "4bit",
            llm_int8_skip_modules=list(unquantized) or None,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
        )
    }


def silence_bitsandbytes() -> None:
    """Hide its warnings that inputs are cast, which is what was asked for, and that CPUs have faster kernels."""
    for module in ("autograd._functions", "backends.cpu.ops"):
        logging.getLogger(f"bitsandbytes.{module}").setLevel(logging.ERROR)
