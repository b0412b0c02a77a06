"""Image encoders through open_clip: any architecture and tag, and folders in its format.

https://github.com/mlfoundations/open_clip (MIT)
"""

import dataclasses
import difflib
import json
import warnings
from collections.abc import Collection
from typing import Any

import torch
from PIL import Image

from periscope.errors import PrecomputeError
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.encoders.folders import find_folder
from periscope.precompute.encoders.framing import NORMALS, WITH_CLS, Framing
from periscope.precompute.encoders.hub import no_remote_code, reach
from periscope.precompute.encoders.registry import register
from periscope.precompute.encoders.timm import final_norm

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")


@register("open_clip")
class OpenClip(Encoder):
    """identifier: `ARCHITECTURE/TAG`, `hf-hub:OWNER/REPO`, or a folder with open_clip_config.json.

    pooled: the tower's output before L2 normalisation (projected) · patches: after block `patch_layer`, no norm, no
    CLS · layers: the CLS after each of the last blocks, each through the tower's final LayerNorm.
    """

    takes = WITH_CLS

    def __init__(self, identifier: str = "", **choices: Any):
        super().__init__(identifier, **choices)
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        model, config, self.revision = create(open_clip, identifier)
        tower = self.model = model.visual.eval().requires_grad_(False)
        if not hasattr(tower, "forward_intermediates") or "ModifiedResNet" in type(tower).__name__:
            raise PrecomputeError(f"--encoder {identifier}: only vision transformers give patches and a CLS")
        preprocessing = PreprocessCfg(**tower.preprocess_cfg)
        if normal := self.choices.get("normalise"):
            mean, std = NORMALS[normal]
            preprocessing = dataclasses.replace(preprocessing, mean=mean, std=std)
        self._transform = image_transform_v2(preprocessing, is_train=False)
        self.preprocessing = {"library": "open_clip", "backend": "pil", **_plain(dataclasses.asdict(preprocessing))}
        if resize := self.choices.get("resize"):
            facts, side = preprocessing, preprocessing.size
            shape = (side, side) if isinstance(side, int) else tuple(side)
            self._transform = Framing(resize, shape, facts.interpolation, tuple(facts.mean), tuple(facts.std))
            self.preprocessing = self._transform.describe()
        self.config = {"model": _plain(config), "class": type(tower).__name__}
        self.note_weights(tower)
        self._trunk = getattr(tower, "trunk", None)
        pixels = self.preprocess(Image.new("RGB", (64, 64)))[None]
        with torch.no_grad():
            found = tower.forward_intermediates(pixels, indices=None, output_fmt="NCHW", output_extra_tokens=True)
        maps = found["image_intermediates"]
        if any(m.ndim != 4 or m.shape[1:] != maps[0].shape[1:] for m in maps):
            raise PrecomputeError(f"--encoder {identifier}: only plain vision transformers give patches and a CLS")
        self.depth = len(maps)
        rows, columns = maps[0].shape[2:]
        self.grid = (rows, columns)
        self.width, self.image_size = maps[0].shape[1], pixels.shape[-1]
        self.patch_size = pixels.shape[-1] // columns
        if self._trunk is None:  # CoCa's attention pooling leaves the CLS without a final norm of its own
            normed_cls = tower.attn_pool is None
        else:
            normed_cls = getattr(self._trunk, "cls_token", None) is not None
        self._with_cls = self.keep_cls(self._trunk is None or normed_cls)
        self.kinds = frozenset({"pooled", "patches", "layers"} if normed_cls else {"pooled", "patches"})
        self.blocks = min(self.blocks, self.depth)
        if not -self.depth <= self.patch_layer <= -1:
            raise PrecomputeError(f"{identifier} has {self.depth} blocks: patch_layer is from {-self.depth} to -1")
        self.model = tower.to(self.device, self.dtype)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        return self._transform(image)

    def _final_norm(self) -> torch.nn.Module:
        if self._trunk is None:
            return self.model.ln_post
        return final_norm(self._trunk)

    def forward(self, pixels: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        wanted = {self.depth + self.patch_layer} if "patches" in kinds else set()
        if "layers" in kinds:
            wanted |= set(range(self.depth - self.blocks, self.depth))
        indices = sorted(wanted) or [self.depth - 1]
        found = self.model.forward_intermediates(
            pixels,
            indices=indices,
            output_fmt="NLC",
            output_extra_tokens=True,
            stop_early="pooled" not in kinds,
            intermediates_only="pooled" not in kinds,
        )
        given = {}
        if "pooled" in kinds:
            given["pooled"] = found["image_features"]
        if "patches" in kinds:
            place = indices.index(self.depth + self.patch_layer)
            given["patches"] = found["image_intermediates"][place]
            if self._with_cls:
                given["patches"] = torch.cat([found["image_intermediates_prefix"][place][:, :1], given["patches"]], 1)
        if "layers" in kinds:
            last = found["image_intermediates_prefix"][-self.blocks :]
            given["layers"] = self._final_norm()(torch.stack([prefix[:, 0] for prefix in last], 1))
        return given


def create(open_clip: Any, identifier: str) -> tuple[Any, dict, str | None]:
    """(the model with its pretrained weights in float32, its config, its Hub revision). Raises PrecomputeError."""
    folder, revision = find_folder(identifier), None
    if folder is not None:
        name, tag = f"local-dir:{folder.resolve()}", None
        try:
            config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
        except (OSError, ValueError, KeyError) as error:
            raise PrecomputeError(f"--encoder {identifier}: no usable open_clip_config.json there ({error})") from error
        if not any((folder / file).is_file() for file in WEIGHTS):
            raise PrecomputeError(
                f"--encoder {identifier}: the folder holds no {WEIGHTS[0]} (pickled weights aren't read)"
            )
    elif identifier.startswith("hf-hub:"):
        name, tag, config = identifier, None, {"name": identifier}
        _, revision = reach(identifier.removeprefix("hf-hub:"), WEIGHTS)
    else:
        name, _, tag = identifier.partition("/")
        config = open_clip.get_model_config(name)
        if config is None:
            raise PrecomputeError(_unknown(name, open_clip.list_models(), "architecture of open_clip"))
        tags = open_clip.list_pretrained_tags_by_model(name)
        if tag not in tags:
            raise PrecomputeError(
                _unknown(f"{name}/{tag}", [f"{name}/{known}" for known in tags], "pretrained open_clip model")
            )
        where = open_clip.get_pretrained_cfg(name, tag)
        if bool(where.get("quick_gelu")) != bool(config.get("quick_gelu")):
            better = f"{name}-quickgelu" if where.get("quick_gelu") else name.removesuffix("-quickgelu")
            raise PrecomputeError(
                f"{name}/{tag} would run with the wrong activation (open_clip only warns of it); use {better}/{tag}"
            )
        if where.get("hf_hub"):
            _, revision = reach(where["hf_hub"].rstrip("/"), WEIGHTS)
    with warnings.catch_warnings(), no_remote_code():
        warnings.simplefilter("ignore")
        try:
            return open_clip.create_model(name, pretrained=tag, require_pretrained=True), config, revision
        except Exception as error:  # the library raises RuntimeError, ValueError, OSError and its downloader's own
            raise PrecomputeError(
                f"--encoder {identifier}: open_clip can't load it ({' '.join(str(error).split())[:200]})"
            ) from error


def _unknown(name: str, known: list[str], what: str) -> str:
    near = difflib.get_close_matches(name, known, 3, 0.3) or known[:3]
    return f"no {what} is called {name!r}; nearest: {', '.join(near) or 'none'}"


def _plain(value: object) -> dict:
    return json.loads(json.dumps(value, default=str))
