"""Image encoders through transformers: CLIP, SigLIP and SigLIP 2 of fixed resolution, DINOv2, DINOv3, ViT."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from periscope.errors import PrecomputeError
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.encoders.framing import CHOICES, NORMALS, WITH_CLS, Framing, framing_of
from periscope.precompute.encoders.transformers.loading import Place, config_of, described, load, load_processor


@dataclass(frozen=True)
class Tower:
    """How one family's vision tower is read.

    loader: transformers' class · pooled: where its output vector is · norm: path of the final LayerNorm · cls: whether
    it has a CLS token · why: a remark on what is unusual.
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
    "clip_vision_model": UNPROJECTED,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
    "dinov2": Tower("Dinov2Model", "cls", "layernorm"),
    "dinov2_with_registers": Tower("Dinov2WithRegistersModel", "cls", "layernorm"),
    "dinov3_vit": Tower("DINOv3ViTModel", "cls", "norm"),
    "vit": Tower("ViTModel", "cls", "layernorm", why="classifiers are saved without a pooler, which would be random"),
}


class PreparedImages(Encoder):
    """Base class of encoders whose images an image processor of transformers prepares, or a `Framing`."""

    library = "transformers"
    takes = CHOICES

    def _prepare(self, place: Place) -> None:
        self._framing: Framing | None = None
        options: dict[str, Any] = {}
        if normal := self.choices.get("normalise"):
            options = dict(zip(("image_mean", "image_std"), NORMALS[normal], strict=True))
        processor = self._processor = load_processor(place, "AutoImageProcessor", backend="pil", **options)
        self.preprocessing = described(processor)
        if resize := self.choices.get("resize"):
            height, width = self.preprocess(self.example()).shape[-2:]
            self._framing = framing_of(processor, resize, (height, width))
            self.preprocessing = self._framing.describe()

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        if self._framing:
            return self._framing(image)
        # channels_last is given, or an image three pixels high would be taken for channels first
        return self._processor(images=image, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]


class Transformers(PreparedImages):
    """pooled: the tower's output vector (CLIP: projected; SigLIP: its attention head's; DINO, ViT: the CLS after the
    final norm) · patches: hidden_states[patch_layer] without CLS, registers or norm · layers: the CLS of the last
    blocks' hidden states, each through the final LayerNorm.
    """

    takes = WITH_CLS

    def __init__(self, place: Place, **choices: Any):
        super().__init__(place.identifier, **choices)
        self.revision = place.revision
        self._tower, model = _load(place)
        config = model.config
        self.note_weights(model)
        self.config = config_of(model)
        self._prepare(place)
        self.width, self.patch_size = config.hidden_size, config.patch_size
        self.depth = config.num_hidden_layers
        self.blocks = min(self.blocks, self.depth)
        self._prefix = int(self._tower.cls) + getattr(config, "num_register_tokens", 0)
        shapes = {tuple(self.preprocess(Image.new("RGB", size)).shape) for size in ((64, 64), (96, 64), (64, 96))}
        if len(shapes) > 1:
            raise PrecomputeError(
                f"--encoder {place.identifier}: its preprocessing gives pictures of several sizes: {shapes}"
            )
        height, width = shapes.pop()[1:]
        self.image_size = width
        self.grid = (height // self.patch_size, width // self.patch_size)
        self._with_cls = self.keep_cls(self._tower.cls)
        kinds = {"patches"}
        if self._tower.cls:
            kinds.add("layers")
        if getattr(config, "vision_use_head", True):
            kinds.add("pooled")
        self.kinds = frozenset(kinds)
        if not -self.depth - 1 <= self.patch_layer <= -1:
            raise PrecomputeError(f"{self.id} has {self.depth} blocks: patch_layer is from {-self.depth - 1} to -1")
        self.model = model.to(self.device, self.dtype)

    def forward(self, pixels: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        deep = "patches" in kinds or "layers" in kinds
        out = self.model(pixel_values=pixels, output_hidden_states=deep)
        given = {}
        if "pooled" in kinds:
            given["pooled"] = out.last_hidden_state[:, 0] if self._tower.pooled == "cls" else out[self._tower.pooled]
        if "patches" in kinds:
            state = out.hidden_states[self.patch_layer]
            given["patches"] = state[:, self._prefix :]
            if self._with_cls:
                given["patches"] = torch.cat([state[:, :1], given["patches"]], 1)
        if "layers" in kinds:
            last = torch.stack([state[:, 0] for state in out.hidden_states[-self.blocks :]], 1)
            given["layers"] = self.model.get_submodule(self._tower.norm)(last)
        return given


def _load(place: Place) -> tuple[Tower, Any]:
    config, extra = place.config, dict[str, Any]()
    tower = TOWERS[config.model_type]
    if config.model_type == "clip_vision_model" and "CLIPVisionModelWithProjection" in (config.architectures or ()):
        tower = PROJECTED
    if config.model_type == "clip":  # the projection's width stands beside the vision config, not always in it
        extra["config"] = config.vision_config
        extra["config"].projection_dim = config.projection_dim
    if config.model_type == "vit":
        extra["add_pooling_layer"] = False
    return tower, load(place, tower.loader, **extra)
