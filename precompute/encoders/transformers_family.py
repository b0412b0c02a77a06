"""Encoders through transformers: CLIP, SigLIP and SigLIP 2 of fixed resolution, DINOv2, ViT, by Hub id or folder."""

import json
from collections.abc import Collection
from dataclasses import dataclass

import torch
from PIL import Image

from .. import PrecomputeError
from . import Encoder, find_folder, register
from .hub import reach

CACHED = (
    ("config.json",),
    ("preprocessor_config.json", "processor_config.json"),
    ("model.safetensors", "model.safetensors.index.json"),
)
VOLATILE = ("_name_or_path", "transformers_version", "dtype", "architectures", "torch_dtype")


@dataclass(frozen=True)
class Tower:
    """How one family's tower is read.

    loader: transformers' class · pooled: where its output vector is · norm: the final LayerNorm's path · cls: has it
    a CLS token · why: the reason for what isn't plain.
    """

    loader: str
    pooled: str
    norm: str
    cls: bool = True
    why: str = ""


PROJECTED = Tower("CLIPVisionModelWithProjection", "image_embeds", "vision_model.post_layernorm")
UNPROJECTED = Tower("CLIPVisionModel", "pooler_output", "post_layernorm", why="saved without CLIP's projection")
SIGLIP = Tower("SiglipVisionModel", "pooler_output", "post_layernorm", cls=False, why="pools by an attention head")
TOWERS = {
    "clip": PROJECTED,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
    "dinov2": Tower("Dinov2Model", "cls", "layernorm"),
    "dinov2_with_registers": Tower("Dinov2WithRegistersModel", "cls", "layernorm"),
    "vit": Tower("ViTModel", "cls", "layernorm", why="classifiers are saved without a pooler, which would be random"),
}


@register("transformers")
class Transformers(Encoder):
    """identifier: a Hub id or a folder with config.json, weights and preprocessor_config.json.

    pooled: the tower's output vector (CLIP: projected; SigLIP: its attention head's; DINOv2, ViT: the CLS after the
    final norm) · patches: hidden_states[patch_layer] without CLS, registers or norm · layers: the CLS of the last
    blocks' hidden states, each through the final LayerNorm.
    """

    def __init__(self, identifier: str = "", **choices: object):
        super().__init__(identifier, **choices)
        from transformers import AutoConfig, AutoImageProcessor
        from transformers.utils import logging

        folder = find_folder(identifier)
        cached = True
        if folder is None:
            cached, self.revision = reach(identifier, *CACHED)
        where = {"local_files_only": cached, "trust_remote_code": False}
        place = str(folder) if folder else identifier
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # full CLIP checkpoints name their text tower as "unexpected" at length
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            config = AutoConfig.from_pretrained(place, **where)
            self._tower, model = _load(identifier, place, config, where)
            self._processor = AutoImageProcessor.from_pretrained(place, backend="pil", **where)
        except PrecomputeError:
            raise
        except Exception as error:  # OSError, ValueError, KeyError, safetensors' and the downloader's own
            raise PrecomputeError(
                f"--encoder {identifier}: transformers can't load it ({_first_line(error)})"
            ) from error
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
        model.eval().requires_grad_(False)
        config = model.config
        self.note_weights(model)
        self.config = _without(config.to_dict(), VOLATILE)
        self.preprocessing = {"library": "transformers", "backend": "pil", **_plain(self._processor.to_dict())}
        self.width, self.patch_size = config.hidden_size, config.patch_size
        self.depth = config.num_hidden_layers
        self.blocks = min(self.blocks, self.depth)
        self._prefix = int(self._tower.cls) + getattr(config, "num_register_tokens", 0)
        shapes = {tuple(self.preprocess(Image.new("RGB", size)).shape) for size in ((64, 64), (96, 64), (64, 96))}
        if len(shapes) > 1:
            raise PrecomputeError(
                f"--encoder {identifier}: its preprocessing gives pictures of several sizes: {shapes}"
            )
        height, width = shapes.pop()[1:]
        self.image_size = width
        self.grid = (height // self.patch_size, width // self.patch_size)
        kinds = {"patches"}
        if self._tower.cls:
            kinds.add("layers")
        if getattr(config, "vision_use_head", True):
            kinds.add("pooled")
        self.kinds = frozenset(kinds)
        if not -self.depth - 1 <= self.patch_layer <= -1:
            raise PrecomputeError(f"{identifier} has {self.depth} blocks: patch_layer is from {-self.depth - 1} to -1")
        self.model = model.to(self.device, self.dtype)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        # the channels are named because a picture three pixels high would be taken for one with its channels first
        return self._processor(images=image, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]

    def forward(self, pixels: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        deep = "patches" in kinds or "layers" in kinds
        out = self.model(pixel_values=pixels, output_hidden_states=deep)
        given = {}
        if "pooled" in kinds:
            given["pooled"] = out.last_hidden_state[:, 0] if self._tower.pooled == "cls" else out[self._tower.pooled]
        if "patches" in kinds:
            given["patches"] = out.hidden_states[self.patch_layer][:, self._prefix :]
        if "layers" in kinds:
            last = torch.stack([state[:, 0] for state in out.hidden_states[-self.blocks :]], 1)
            given["layers"] = self.model.get_submodule(self._tower.norm)(last)
        return given


def _load(identifier: str, place: str, config: object, where: dict) -> tuple[Tower, torch.nn.Module]:
    import transformers

    kind = config.model_type
    if kind == "clip_vision_model":
        tower = PROJECTED if "CLIPVisionModelWithProjection" in (config.architectures or ()) else UNPROJECTED
    elif kind in TOWERS:
        tower = TOWERS[kind]
    else:
        flexible = " (its NaFlex form has no fixed resolution; take a fixed one)" if kind == "siglip2" else ""
        raise PrecomputeError(f"--encoder {identifier} is a {kind!r} model{flexible}; known here: {', '.join(TOWERS)}")
    extra = {}
    if kind == "clip":  # the projection's width stands beside the vision config, not always in it
        extra["config"] = config.vision_config
        extra["config"].projection_dim = config.projection_dim
    if kind == "vit":
        extra["add_pooling_layer"] = False
    loader = getattr(transformers, tower.loader)
    model, report = loader.from_pretrained(
        place, dtype=torch.float32, output_loading_info=True, use_safetensors=True, **extra, **where
    )
    if missing := sorted(report["missing_keys"]):
        raise PrecomputeError(
            f"--encoder {identifier}: {len(missing)} weights of {tower.loader} aren't in it ({missing[0]}) "
            "and would be random"
        )
    return tower, model


def _without(config: dict, names: tuple[str, ...]) -> dict:
    return {key: value for key, value in _plain(config).items() if key not in names}


def _plain(value: dict) -> dict:
    return json.loads(json.dumps(value, default=str))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
