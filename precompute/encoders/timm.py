"""Vision transformers and convolutional networks through timm, by tag or folder.

https://github.com/huggingface/pytorch-image-models (Apache-2.0)
"""

import difflib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from periscope.errors import PrecomputeError
from periscope.precompute.encoders.base import Encoder, last_map_only, tokens_of
from periscope.precompute.encoders.folders import find_folder, portable
from periscope.precompute.encoders.framing import NORMALS, WITH_CLS, Framing
from periscope.precompute.encoders.hub import reach
from periscope.precompute.encoders.registry import register

WEIGHTS = ("model.safetensors", "open_clip_model.safetensors")


@register("timm")
class Timm(Encoder):
    """identifier: `ARCHITECTURE.TAG` (the tag may be left out when there is only one), or a folder with timm's
    config.json and model.safetensors; with `@384` at that image size, the position embedding interpolated.

    pooled: the input of timm's classifier (the CLS after the final norm, an attention head's output, or a convolutional
    network's pooled vector) · patches: after block `patch_layer`, no norm, no CLS, no registers; of a convolutional
    network its last feature map · layers: the CLS after each of the last blocks, each through the final norm.
    """

    takes = WITH_CLS

    def __init__(self, identifier: str = "", **choices: Any):
        super().__init__(identifier, **choices)
        import timm.data

        name, _, side = identifier.partition("@")
        if side and not side.isdigit():
            raise PrecomputeError(f"--encoder timm:{identifier}: behind @ stands the side in pixels, as in NAME@384")
        name = _with_tag(name)
        model, self.revision = _create(name, int(side) if side else None)
        model.eval().requires_grad_(False)
        self.id = f"{portable(name)}@{side}" if side else portable(name)
        size = (3, int(side), int(side)) if side else None
        facts: dict[str, Any] = timm.data.resolve_data_config({"input_size": size} if size else {}, model=model)
        if normal := self.choices.get("normalise"):
            facts["mean"], facts["std"] = NORMALS[normal]
        self._transform = timm.data.create_transform(**facts, is_training=False)
        self.preprocessing = {"library": "timm", "backend": "pil", **json.loads(json.dumps(facts))}
        if resize := self.choices.get("resize"):
            self._transform = Framing(
                resize, facts["input_size"][1:], facts["interpolation"], tuple(facts["mean"]), tuple(facts["std"])
            )
            self.preprocessing = self._transform.describe()
        self.config = {"architecture": model.pretrained_cfg.get("architecture"), "class": type(model).__name__}
        self.note_weights(model)
        pixels = self.preprocess(Image.new("RGB", (64, 64)))[None]
        last_map = feature_map(model, pixels)
        self.convolutional = last_map is not None
        maps = grid_maps(model, pixels, identifier) if last_map is None else [last_map]
        rows, columns = maps[0].shape[2:]
        self.depth, self.grid, self.width = len(maps), (rows, columns), maps[0].shape[1]
        self.image_size = facts["input_size"][-1]
        self.patch_size = facts["input_size"][-1] // columns
        has_cls = getattr(model, "cls_token", None) is not None
        self.kinds = frozenset({"pooled", "patches", "layers"} if has_cls else {"pooled", "patches"})
        self._with_cls = self.keep_cls(has_cls)
        if self.convolutional:
            self.patch_layer = last_map_only(identifier, choices.get("patch_layer"))
        self.blocks = min(self.blocks, self.depth)
        if not -self.depth <= self.patch_layer <= -1:
            raise PrecomputeError(f"{identifier} has {self.depth} blocks: patch_layer is from {-self.depth} to -1")
        self.model = model.to(self.device, self.dtype)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        return self._transform(image)

    def forward(self, pixels: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        if self.convolutional:
            last = self.model.forward_features(pixels)
            return {"pooled": self.model.forward_head(last, pre_logits=True), "patches": tokens_of(last)}
        wanted = {self.depth + self.patch_layer} if "patches" in kinds else set()
        if "layers" in kinds:
            wanted |= set(range(self.depth - self.blocks, self.depth))
        indices = sorted(wanted) or [self.depth - 1]
        states = self.model.forward_intermediates(
            pixels,
            indices=indices,
            return_prefix_tokens=True,
            norm=False,
            output_fmt="NLC",
            stop_early="pooled" not in kinds,
            intermediates_only="pooled" not in kinds,
        )
        given = {}
        if "pooled" in kinds:
            final, states = states
            given["pooled"] = self.model.forward_head(final, pre_logits=True)
        if "patches" in kinds:
            state = states[indices.index(self.depth + self.patch_layer)]
            given["patches"] = torch.cat([state[1][:, :1], state[0]], 1) if self._with_cls else _tokens(state)
        if "layers" in kinds:
            given["layers"] = final_norm(self.model)(torch.stack([s[1][:, 0] for s in states[-self.blocks :]], 1))
        return given


def final_norm(trunk: Any) -> torch.nn.Module:
    """A vision transformer's final LayerNorm; in some, timm places it after the pooling."""
    return trunk.fc_norm if isinstance(trunk.norm, torch.nn.Identity) else trunk.norm


def feature_map(model: Any, pixels: torch.Tensor) -> torch.Tensor | None:
    """A convolutional network's last feature map, `(1, width, rows, columns)`; None for any other architecture."""
    if hasattr(model, "patch_embed") or getattr(model, "output_fmt", "NCHW") != "NCHW":
        return None  # a transformer, plain or in stages
    if not any(isinstance(module, torch.nn.Conv2d) and module.kernel_size[0] > 1 for module in model.modules()):
        return None
    with torch.no_grad():
        found = model.forward_features(pixels)
    return found if isinstance(found, torch.Tensor) and found.ndim == 4 else None


def grid_maps(model: Any, pixels: torch.Tensor, identifier: str) -> list[torch.Tensor]:
    """Every block's output for one image: `(1, width, rows, columns)` each.

    Raises PrecomputeError for what isn't a plain vision transformer.
    """
    maps = []
    if hasattr(model, "forward_intermediates") and hasattr(model, "blocks"):
        try:
            with torch.no_grad():
                maps = model.forward_intermediates(pixels, norm=False, output_fmt="NCHW", intermediates_only=True)
        except AssertionError as error:
            raise PrecomputeError(f"--encoder {identifier} can't take pictures of this size ({error})") from error
    if not maps or any(m.ndim != 4 or m.shape[1:] != maps[0].shape[1:] for m in maps):
        raise PrecomputeError(
            f"--encoder {identifier}: only plain vision transformers give patches and a CLS, and convolutional "
            "networks a feature map"
        )
    return maps


def _tokens(state: Any) -> torch.Tensor:
    return state[0] if isinstance(state, tuple) else state


def _with_tag(name: str) -> str:
    """The name of a pretrained model, with its tag where there is only one."""
    import timm

    if "." in name or find_folder(name) is not None or not timm.is_model(name):
        return name
    tagged = timm.list_pretrained(f"{name}.*")
    return tagged[0] if len(tagged) == 1 else name


def _create(name: str, side: int | None) -> tuple[Any, str | None]:
    """(the model with its pretrained weights in float32, without classifier; its revision on the Hub)."""
    import timm

    folder, revision = find_folder(name), None
    size: dict[str, Any] = {"img_size": side} if side else {}
    if folder is not None:
        if not (Path(folder) / "model.safetensors").is_file():
            raise PrecomputeError(
                f"--encoder {name}: the folder holds no model.safetensors (pickled weights aren't read)"
            )
        known = f"local-dir:{folder.resolve()}"
    else:
        known = name
        if not timm.is_model(name.partition(".")[0]) or name not in timm.list_pretrained():
            tags = timm.list_pretrained(f"{name.partition('.')[0]}*")
            near = difflib.get_close_matches(name, tags or timm.list_pretrained(), 3, 0.3) or tags[:3]
            raise PrecomputeError(f"no pretrained timm model is called {name!r}; nearest: {', '.join(near) or 'none'}")
        weights: Any = timm.get_pretrained_cfg(name)
        _, revision = reach(weights.hf_hub_id, WEIGHTS)
    try:
        try:
            model: Any = timm.create_model(known, pretrained=True, **size)
        except TypeError as error:  # a convolutional network takes any size
            if "img_size" not in str(error):
                raise
            model = timm.create_model(known, pretrained=True)
        model.reset_classifier(0)  # afterwards: asked for no classes, timm would overlook missing weights
        return model, revision
    except Exception as error:  # the library raises RuntimeError, TypeError, OSError and its downloader's own
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise PrecomputeError(f"--encoder {name}: timm can't load it ({line})") from error
