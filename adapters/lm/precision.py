"""How the frozen weights are held: fp32, fp16, bf16, or 8 and 4 bits by bitsandbytes."""

import importlib.util
import logging
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig

from periscope.errors import AdapterError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS = ("auto", *DTYPES, "8bit", "4bit")
TRAINABLE = ("auto", "mixed", "bf16", "fp32")  # precisions of --train-lm


def choose_precision(
    requested: str, device: torch.device, trained_in: torch.dtype | None, overflows: bool = False
) -> tuple[str, str]:
    """Choose how the frozen weights are held, and say why: fp32 on a CPU, fp16 on a GPU.

    bf16 is chosen where the card computes in it and the model was trained in it, since fp16 can overflow there, or
    belongs to a family that `overflows` in fp16. Raises AdapterError for an unknown precision, or one that this machine
    doesn't have.
    """
    if requested not in PRECISIONS:
        raise AdapterError(f"unknown precision {requested!r}; choose from {', '.join(PRECISIONS)}")
    on_gpu = device.type == "cuda"
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if requested == "bf16" and on_gpu and not has_bf16:
        raise AdapterError("--precision bf16: this card doesn't compute in bf16; use fp16, 8bit or 4bit")
    if requested in ("8bit", "4bit") and importlib.util.find_spec("bitsandbytes") is None:
        raise AdapterError(f"--precision {requested} needs bitsandbytes: pip install bitsandbytes")
    if requested == "fp16" and overflows:
        return requested, "asked for, though this family's activations can overflow in it"
    if requested != "auto":
        return requested, "asked for"
    if device.type == "cpu":
        return "fp32", "the fastest exact choice on a CPU"
    if (trained_in == torch.bfloat16 or overflows) and has_bf16:
        return "bf16", "the model was trained in bf16 and this card computes in it"
    if overflows:
        return "fp32", "this family's activations overflow in fp16, and this card doesn't compute in bf16"
    return "fp16", "half the memory of fp32 at the card's full speed"


def trained_precision(requested: str, device: torch.device) -> tuple[str, torch.dtype | None]:
    """How weights that are trained are held, and the dtype that they are computed in, None for their own.

    "mixed" holds fp32 and computes in bf16; "auto" is that on a GPU that has bf16, and fp32 elsewhere. Raises
    AdapterError for "mixed" and "bf16" on a GPU without it.
    """
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if requested in ("mixed", "bf16") and not has_bf16:
        raise AdapterError(f"--precision {requested}: this card doesn't compute in bf16; use fp32")
    mixed = requested == "mixed" or (requested == "auto" and device.type == "cuda" and has_bf16)
    return "bf16" if requested == "bf16" else "fp32", torch.bfloat16 if mixed else None


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
