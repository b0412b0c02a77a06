"""Whisper's weights from CTranslate2's file format to a transformers folder.

No package with weights in transformers' own format was found in a registry, but one with those that CTranslate2 reads
(https://github.com/OpenNMT/CTranslate2, `ModelSpec._serialize`): the version, the model's name and revision, and then
each tensor with its name, shape, type and bytes. It joins query, key and value to one matrix, or, where a decoder looks
at the encoder, key and value.
"""

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

VERSION = 6
TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # by their numbers in the file


def read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a CTranslate2 file by name, without its aliases. Raises ValueError for another version."""
    with open(path, "rb") as file:
        (version,) = _numbers(file, "I")
        if version != VERSION:
            raise ValueError(f"{path.name} has version {version} of CTranslate2's format, not {VERSION}")
        _text(file)
        _, count = _numbers(file, "II")
        tensors = {}
        for _ in range(count):
            name = _text(file)
            (rank,) = _numbers(file, "B")
            shape = _numbers(file, "I" * rank)
            kind, size = _numbers(file, "BI")
            tensors[name] = np.frombuffer(file.read(size), TYPES[kind]).reshape(shape)
    return tensors


def _numbers(file: BinaryIO, form: str) -> tuple[int, ...]:
    """Little-endian numbers without gaps, as struct names them."""
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))


def _text(file: BinaryIO) -> str:
    (length,) = _numbers(file, "H")
    return file.read(length)[:-1].decode()  # without the zero at its end


def whisper_state(tensors: dict[str, np.ndarray], layers: int) -> dict[str, torch.Tensor]:
    """transformers' names for the tensors of a Whisper of so many layers on each side."""
    state: dict[str, torch.Tensor] = {}

    def both(name: str, weight: torch.Tensor, bias: torch.Tensor) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = weight, bias

    def norm(name: str, theirs: str) -> None:
        both(name, tensor(f"{theirs}/gamma"), tensor(f"{theirs}/beta"))

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(tensors[name].astype(np.float32))

    def linear(theirs: str, parts: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
        weights, biases = tensor(f"{theirs}/weight").chunk(parts), tensor(f"{theirs}/bias").chunk(parts)
        return list(zip(weights, biases, strict=True))

    def attention(name: str, theirs: str, joined: tuple[int, ...]) -> None:
        parts = [part for number, count in enumerate(joined) for part in linear(f"{theirs}/linear_{number}", count)]
        for one, (weight, bias) in zip(("q_proj", "k_proj", "v_proj", "out_proj"), parts, strict=True):
            both(f"{name}.{one}", weight, bias)
        if state.pop(f"{name}.k_proj.bias").any():
            raise ValueError(f"{theirs}: the keys have biases, which Whisper's don't")

    for side in ("encoder", "decoder"):
        for number in range(layers):
            name, theirs = f"model.{side}.layers.{number}", f"{side}/layer_{number}"
            attention(f"{name}.self_attn", f"{theirs}/self_attention", (3, 1))
            norm(f"{name}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
            if side == "decoder":
                attention(f"{name}.encoder_attn", f"{theirs}/attention", (1, 2, 1))
                norm(f"{name}.encoder_attn_layer_norm", f"{theirs}/attention/layer_norm")
            both(f"{name}.fc1", *linear(f"{theirs}/ffn/linear_0")[0])
            both(f"{name}.fc2", *linear(f"{theirs}/ffn/linear_1")[0])
            norm(f"{name}.final_layer_norm", f"{theirs}/ffn/layer_norm")
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        state[f"model.{side}.embed_positions.weight"] = tensor(f"{side}/position_encodings/encodings")
    for one in ("conv1", "conv2"):
        both(f"model.encoder.{one}", *linear(f"encoder/{one}")[0])
    state["model.decoder.embed_tokens.weight"] = state["proj_out.weight"] = tensor("decoder/embeddings/weight")
    return state


def write_whisper_base(file: Path, out: Path) -> None:
    """Write Whisper base from a CTranslate2 file as a transformers folder in float16, with its feature extractor."""
    config = WhisperConfig(
        d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8, decoder_attention_heads=8,
        encoder_ffn_dim=2048, decoder_ffn_dim=2048,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(whisper_state(read_ctranslate2(file), config.encoder_layers))
    model.half().save_pretrained(out)
    WhisperFeatureExtractor().save_pretrained(out)
