"""A multimodal projector (`mmproj`) for llama.cpp: the encoder's tower and the projector in one GGUF file.

What llama.cpp computes of it (tools/mtmd, https://github.com/ggml-org/llama.cpp): the picture is resized and padded to
the tower's square (`llama_cpp_resize`), all but the last of the tower's blocks run, then two linear maps with a GELU
between them. `run_mmproj` computes the same in PyTorch from the written file.
"""

import json
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import SiglipVisionModel

from periscope.adapters.io.checkpoint import CONFIG, write_folder
from periscope.adapters.io.schema import AdapterConfig
from periscope.adapters.lm.files.find import check_gguf_package, find_model
from periscope.adapters.lm.load import load_tokenizer
from periscope.adapters.model import Adapter
from periscope.adapters.prompting.prompt import Prompt
from periscope.errors import AdapterError
from periscope.exports.prompt_form import MTMD_MARKER, chat_template, id_differences
from periscope.exports.source import open_adapter
from periscope.exports.towers import has_class_token, vision_tower
from periscope.exports.ways import LLAMA_CPP
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.encoders.framing import llama_cpp_resize
from periscope.precompute.encoders.registry import load_encoder_like

MMPROJ, CHAT_TEMPLATE, README = "mmproj.gguf", "chat_template.jinja", "README.md"
FLOATS = {"f32": np.float32, "f16": np.float16}
# Of each block: GGUF's name -> transformers'.
BLOCK = {
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}


def export_gguf(
    adapter: Path, out: Path, encoder: str | None = None, lm: str | None = None, precision: str = "f16"
) -> list[str]:
    """Write `mmproj.gguf`, `chat_template.jinja` and a README for the adapter in folder `adapter` to `out`, a folder
    that must not exist.

    encoder, lm: where the encoder and the language model (of which only the tokenizer is read) are now, if they have
    moved · precision: of the matrices, "f32" or "f16". Returns what the user should know, as sentences. Raises
    AdapterError where this way out is closed, PrecomputeError where the encoder can't be had.
    """
    trained, config, way = open_adapter(adapter, out, LLAMA_CPP)
    prompt = _prompt(config, lm or config.language_model_in(adapter))
    template = chat_template(prompt, MTMD_MARKER)
    check_gguf_package(f"writing {MMPROJ}")
    seeing = load_encoder_like(config.encoder, moved=encoder)
    differences = id_differences(prompt, template, MTMD_MARKER)
    notes = [*way.notes, *differences]

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        write_mmproj(folder / MMPROJ, trained, seeing, precision)
        (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
        (folder / README).write_text(_readme(config, notes), encoding="utf-8")

    write_folder(out, write)
    return notes


def write_mmproj(file: Path, adapter: Adapter, encoder: Encoder, precision: str = "f16") -> None:
    """Write a tower without a class token, and a `mlp` or `linear` adapter, to `file`.

    Norms, biases and positions are fp32 always. Raises AdapterError for another tower or adapter, and where the package
    `gguf` isn't installed.
    """
    check_gguf_package(f"writing {file.name}")
    import gguf

    if precision not in FLOATS:
        raise AdapterError(f"--precision {precision} isn't one of {', '.join(FLOATS)}")
    tower = vision_tower(encoder)
    if has_class_token(tower):
        raise AdapterError(f"encoder {encoder.name} has a class token, which llama.cpp puts last (since #13321)")
    assert isinstance(tower, SiglipVisionModel)
    config = tower.config
    mean, std = _normalisation(encoder)
    if config.intermediate_size == config.hidden_size:
        raise AdapterError(f"encoder {encoder.name}: llama.cpp takes blocks as wide inside as outside for old files")
    assert encoder.image_size and encoder.patch_size
    gelu = config.hidden_act in ("gelu", "gelu_pytorch_tanh")
    if not gelu and config.hidden_act != "quick_gelu":
        raise AdapterError(f"encoder {encoder.name} computes with {config.hidden_act}, which llama.cpp doesn't")
    tensors = _tower_tensors(tower, encoder.patch_layer) | projector_tensors(adapter)
    blocks = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("v.blk."))
    writer = gguf.GGUFWriter(file, arch="clip")
    writer.add_name(f"{adapter.spec} adapter on {encoder.name}")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if precision == "f32" else gguf.LlamaFileType.MOSTLY_F16)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    if gelu:
        writer.add_vision_use_gelu(True)
    writer.add_vision_image_size(encoder.image_size)
    writer.add_vision_patch_size(encoder.patch_size)
    writer.add_vision_embedding_length(config.hidden_size)
    writer.add_vision_feed_forward_length(config.intermediate_size)
    writer.add_vision_projection_dim(adapter.hidden_size)
    writer.add_vision_block_count(blocks)
    writer.add_vision_head_count(config.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(config.layer_norm_eps)
    writer.add_vision_image_mean(mean)
    writer.add_vision_image_std(std)
    for name, tensor in tensors.items():
        matrix = tensor.dim() > 1 and name != "v.position_embd.weight"
        writer.add_tensor(name, tensor.numpy().astype(FLOATS[precision] if matrix else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tower_tensors(tower: SiglipVisionModel, layer: int) -> dict[str, torch.Tensor]:
    """The tower under GGUF's names, up to the block whose output is `hidden_states[layer]`, and one more: llama.cpp
    loads that one and doesn't run it. It is the tower's own, or zeros where it has none left.
    """
    state = tower.state_dict()
    depth = tower.config.num_hidden_layers
    run = depth + 1 + layer
    if run < 1:
        raise AdapterError(f"layer {layer} of a tower of {depth} blocks is before its first block; llama.cpp runs one")
    tensors = {
        "v.patch_embd.weight": state["embeddings.patch_embedding.weight"],
        "v.patch_embd.bias": state["embeddings.patch_embedding.bias"],
        "v.position_embd.weight": state["embeddings.position_embedding.weight"],
    }
    for k in range(run + 1):
        for name, theirs in BLOCK.items():
            for part in ("weight", "bias"):
                tensor = state[f"encoder.layers.{min(k, depth - 1)}.{theirs}.{part}"]
                tensors[f"v.blk.{k}.{name}.{part}"] = tensor if k < depth else torch.zeros_like(tensor)
    return tensors


@torch.no_grad()
def projector_tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    """A `mlp` or `linear` projector as the two linear maps `mm.0` and `mm.2` with a GELU between them, in fp32.

    A linear map W becomes [W; -W] and [I, -I], since gelu(x) - gelu(-x) = x. Raises AdapterError for another projector.
    """
    last = adapter.projector.last
    if adapter.output_norm or adapter.spec not in ("mlp", "linear"):
        raise AdapterError(f"adapter {adapter.spec}{' with an output norm' * adapter.output_norm} can't be written")
    assert isinstance(last, torch.nn.Linear)
    if adapter.spec == "mlp":
        first = adapter.projector.first
        assert isinstance(first, torch.nn.Linear)
        maps = {
            "mm.0.weight": first.weight,
            "mm.0.bias": first.bias,
            "mm.2.weight": last.weight,
            "mm.2.bias": last.bias,
        }
    else:
        unit = torch.eye(last.out_features)
        maps = {
            "mm.0.weight": torch.cat([last.weight, -last.weight]),
            "mm.0.bias": torch.zeros(2 * last.out_features),
            "mm.2.weight": torch.cat([unit, -unit], 1),
            "mm.2.bias": last.bias,
        }
    return {name: value.detach().float().contiguous() for name, value in maps.items()}


@dataclass(frozen=True)
class Mmproj:
    """A written mmproj, read again: its settings by GGUF's keys, and its tensors in fp32."""

    settings: dict[str, object]
    tensors: dict[str, torch.Tensor]

    def number(self, key: str) -> int:
        """The whole number that `clip.vision.KEY` holds."""
        value = self.settings[f"clip.vision.{key}"]
        assert isinstance(value, int)
        return value


def read_mmproj(file: Path) -> Mmproj:
    """Read a GGUF file's settings and tensors, with the package `gguf`."""
    import gguf

    reader = gguf.GGUFReader(file)
    settings = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        tensor.name: torch.from_numpy(np.array(tensor.data, dtype=np.float32).reshape(tensor.shape[::-1].tolist()))
        for tensor in reader.tensors
    }
    return Mmproj(settings, tensors)


@torch.no_grad()
def run_mmproj(file: Path, image: Image.Image, legacy: bool = False) -> torch.Tensor:
    """What llama.cpp's graph makes of a picture, computed in fp32 from the file alone: (tokens, hidden_size). `legacy`:
    with the filter of `llama_cpp_resize` of that name.

    After `clip_graph_llava::build` and `mtmd_image_preprocessor_fixed_size` (llama.cpp, November 2026).
    """
    mmproj = read_mmproj(file)
    tensors, settings = mmproj.tensors, mmproj.settings
    side, patch, heads = (mmproj.number(key) for key in ("image_size", "patch_size", "attention.head_count"))
    eps = settings["clip.vision.attention.layer_norm_epsilon"]
    assert isinstance(eps, float)
    gelu = bool(settings.get("clip.use_gelu"))

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)

    def activation(x: torch.Tensor) -> torch.Tensor:
        return functional.gelu(x, approximate="tanh") if gelu else x * torch.sigmoid(1.702 * x)

    values = torch.from_numpy(np.asarray(llama_cpp_resize(image, side, legacy), np.float32) / 255)
    mean, std = (torch.tensor(settings[f"clip.vision.image_{name}"]) for name in ("mean", "std"))
    pixels = ((values - mean) / std).permute(2, 0, 1)[None]
    x = functional.conv2d(pixels, tensors["v.patch_embd.weight"], tensors["v.patch_embd.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2)[0] + tensors["v.position_embd.weight"]
    for k in range(mmproj.number("block_count") - 1):  # the last one isn't run
        block = f"v.blk.{k}."
        y = norm(block + "ln1", x)
        q, k_, v = (linear(f"{block}attn_{name}", y).unflatten(1, (heads, -1)).transpose(0, 1) for name in "qkv")
        seen = torch.softmax(q @ k_.transpose(1, 2) / sqrt(q.shape[-1]), -1) @ v
        x = x + linear(block + "attn_out", seen.transpose(0, 1).flatten(1))
        x = x + linear(block + "ffn_down", activation(linear(block + "ffn_up", norm(block + "ln2", x))))
    return linear("mm.2", functional.gelu(linear("mm.0", x), approximate="tanh"))


def _normalisation(encoder: Encoder) -> tuple[list[float], list[float]]:
    """The mean and deviation of an encoder's preprocessing, whatever library it is of."""
    facts = encoder.preprocessing
    mean, std = (facts.get(name, facts.get(f"image_{name}")) for name in ("mean", "std"))
    if not mean or not std or len(mean) != 3 or len(std) != 3:
        raise AdapterError(f"encoder {encoder.name} doesn't say by which mean and deviation it normalises pictures")
    return [float(value) for value in mean], [float(value) for value in std]


def _prompt(config: AdapterConfig, name: str) -> Prompt:
    return Prompt(load_tokenizer(find_model(name), name), config.template, config.modality)


def _readme(config: AdapterConfig, notes: list[str]) -> str:
    name = config.language_model.name
    known = "".join(f"- {note}\n" for note in notes)
    own = " as it was trained with it (`lm/` in the adapter's folder)" if config.language_model.folder else ""
    caption = config.template.caption_prompt
    said = f"the words {json.dumps(caption, ensure_ascii=False)}" if caption else "no words"
    return (
        f"""# mmproj for llama.cpp

`{MMPROJ}` holds the encoder `{config.encoder["name"]}` and an adapter for the language model `{name}`{own}, which must
be had as GGUF too (llama.cpp's `convert_hf_to_gguf.py`).

    llama-server -m LANGUAGE_MODEL.gguf --mmproj {MMPROJ} --jinja --chat-template-file {CHAT_TEMPLATE} --temp 0

Ask for a caption with a picture and {said}. `{CONFIG}` of the adapter says what it was trained on.

{known}""".rstrip()
        + "\n"
    )
