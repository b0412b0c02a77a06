"""Encoders as transformers' `CLIPVisionModel` and `SiglipVisionModel`, whatever library they come from."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from periscope.errors import AdapterError
from periscope.precompute.encoders.base import Encoder

VisionTower = CLIPVisionModel | SiglipVisionModel
State = dict[str, torch.Tensor]


def vision_tower(encoder: Encoder) -> VisionTower:
    """The tower of an encoder of images in fp32 on the CPU, whose `hidden_states` are those the encoder reads patches
    from. With a class token it is a `CLIPVisionModel`, without one a `SiglipVisionModel`.

    Raises AdapterError for a tower that neither class can hold.
    """
    model = encoder.model
    assert model is not None
    name = type(model).__name__
    if name in ("CLIPVisionModel", "CLIPVisionModelWithProjection"):
        return _same(model, CLIPVisionModel)
    if name == "SiglipVisionModel":
        return _same(model, SiglipVisionModel)
    trunk = getattr(model, "trunk", model)
    if hasattr(trunk, "blocks"):
        return _from_timm(trunk, encoder)
    return _from_open_clip(model, encoder)


def has_class_token(tower: VisionTower) -> bool:
    """Whether the first of the tower's tokens is a class token."""
    return isinstance(tower, CLIPVisionModel)


def _same(model: Any, kind: type[CLIPVisionModel] | type[SiglipVisionModel]) -> VisionTower:
    values = model.config.to_dict()
    config = (CLIPVisionConfig if kind is CLIPVisionModel else SiglipVisionConfig)(**values)
    if isinstance(config, SiglipVisionConfig):
        config.vision_use_head = False  # pools, which no export needs
    inner = getattr(model, "vision_model", model)
    return _filled(
        kind, config, {key: value for key, value in inner.state_dict().items() if key.split(".")[0] != "head"}
    )


def _from_open_clip(model: Any, encoder: Encoder) -> VisionTower:
    """open_clip's VisionTransformer: attention's three maps are one matrix there, `ln_pre` may be missing."""
    blocks = getattr(getattr(model, "transformer", None), "resblocks", None)
    if blocks is None or type(blocks[0]).__name__ != "ResidualAttentionBlock" or isinstance(model.ln_pre, nn.Identity):
        raise AdapterError(f"encoder {encoder.name} is no plain CLIP tower, which is all that can be exported")
    first = blocks[0]
    state: State = {
        "embeddings.class_embedding": model.class_embedding,
        "embeddings.patch_embedding.weight": model.conv1.weight,
        "embeddings.position_embedding.weight": model.positional_embedding,
        **_linear("pre_layrnorm", model.ln_pre),
    }
    for k, block in enumerate(blocks):
        place = f"encoder.layers.{k}."
        state |= _attention(place, block.attn.in_proj_weight, block.attn.in_proj_bias, block.attn.out_proj, block.ls_1)
        state |= _linear(place + "layer_norm1", block.ln_1) | _linear(place + "layer_norm2", block.ln_2)
        state |= _linear(place + "mlp.fc1", block.mlp.c_fc) | _linear(place + "mlp.fc2", block.mlp.c_proj, block.ls_2)
    width = state["embeddings.class_embedding"].shape[0]
    state |= {"post_layernorm.weight": torch.ones(width), "post_layernorm.bias": torch.zeros(width)}  # not used
    config = CLIPVisionConfig(
        **_sizes(encoder, width, first.mlp.c_fc.out_features, len(blocks), first.attn.num_heads),
        hidden_act=_activation(first.mlp.gelu, encoder),
        layer_norm_eps=first.ln_1.eps,
    )
    return _filled(CLIPVisionModel, config, state)


def _from_timm(trunk: Any, encoder: Encoder) -> VisionTower:
    """timm's VisionTransformer without a class token or registers, as its SigLIP is."""
    blocks = trunk.blocks
    first = blocks[0]
    # What SigLIP has nothing of: the class must be timm's plain block, and these must be absent.
    parts = (first.attn.q_norm, getattr(first.attn, "norm", nn.Identity()), trunk.norm_pre)
    more = [part for part in parts if not isinstance(part, nn.Identity)]
    if (
        type(first).__name__ != "Block"
        or type(first.attn).__name__ != "Attention"
        or getattr(first.attn, "gate", None) is not None
        or trunk.num_prefix_tokens
        or trunk.pos_embed is None
        or more
        or not all(isinstance(norm, nn.LayerNorm) for norm in (first.norm1, first.norm2))
    ):
        raise AdapterError(
            f"encoder {encoder.name} is no plain SigLIP tower, which is all that can be exported of timm"
        )
    state: State = {
        "embeddings.patch_embedding.weight": trunk.patch_embed.proj.weight,
        "embeddings.patch_embedding.bias": trunk.patch_embed.proj.bias,
        "embeddings.position_embedding.weight": trunk.pos_embed[0],
    }
    for k, block in enumerate(blocks):
        place = f"encoder.layers.{k}."
        state |= _attention(place, block.attn.qkv.weight, block.attn.qkv.bias, block.attn.proj, block.ls1)
        state |= _linear(place + "layer_norm1", block.norm1) | _linear(place + "layer_norm2", block.norm2)
        state |= _linear(place + "mlp.fc1", block.mlp.fc1) | _linear(place + "mlp.fc2", block.mlp.fc2, block.ls2)
    width = first.norm1.weight.shape[0]
    state |= {"post_layernorm.weight": torch.ones(width), "post_layernorm.bias": torch.zeros(width)}  # not used
    config = SiglipVisionConfig(
        **_sizes(encoder, width, first.mlp.fc1.out_features, len(blocks), first.attn.num_heads),
        hidden_act=_activation(first.mlp.act, encoder),
        layer_norm_eps=first.norm1.eps,
        vision_use_head=False,
    )
    return _filled(SiglipVisionModel, config, state)


def _sizes(encoder: Encoder, width: int, middle: int, depth: int, heads: int) -> dict[str, Any]:
    assert encoder.image_size and encoder.patch_size
    return {
        "hidden_size": width,
        "intermediate_size": middle,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "image_size": encoder.image_size,
        "patch_size": encoder.patch_size,
    }


def _activation(module: nn.Module, encoder: Encoder) -> str:
    """transformers' name of an activation. Raises AdapterError for one that exports don't know."""
    name = type(module).__name__
    if name == "QuickGELU":
        return "quick_gelu"
    if isinstance(module, nn.GELU) or name == "GELU":
        return "gelu_pytorch_tanh" if getattr(module, "approximate", "none") == "tanh" else "gelu"
    if name == "GELUTanh":
        return "gelu_pytorch_tanh"
    raise AdapterError(f"encoder {encoder.name} computes with {name}, which can't be exported")


def _scale(module: nn.Module | None) -> Any:
    """What a block's branch is multiplied by at its end: layer scale, or 1."""
    gamma = getattr(module, "gamma", None)
    return 1.0 if gamma is None else gamma


def _linear(name: str, layer: Any, after: nn.Module | None = None) -> State:
    """A linear map's or a norm's tensors under `name`, with the layer scale that comes after it folded in."""
    scale = _scale(after)
    weight = layer.weight * (scale[:, None] if isinstance(scale, torch.Tensor) else scale)
    bias = layer.bias if layer.bias is not None else torch.zeros(len(weight))
    return {f"{name}.weight": weight, f"{name}.bias": bias * scale}


def _attention(place: str, weight: torch.Tensor, bias: torch.Tensor | None, out: nn.Module, after: nn.Module) -> State:
    """One matrix of queries, keys and values becomes three."""
    state = _linear(place + "self_attn.out_proj", out, after)
    biases = bias.chunk(3) if bias is not None else [torch.zeros(len(weight) // 3)] * 3
    for name, part, its_bias in zip("qkv", weight.chunk(3), biases, strict=True):
        state |= {f"{place}self_attn.{name}_proj.weight": part, f"{place}self_attn.{name}_proj.bias": its_bias}
    return state


def _filled(
    kind: type, config: CLIPVisionConfig | SiglipVisionConfig, state: Mapping[str, torch.Tensor]
) -> VisionTower:
    tower = kind(config)
    tower.load_state_dict({key: value.detach().float().cpu().clone() for key, value in state.items()}, strict=True)
    return tower.eval().requires_grad_(False)
