"""Loading models of transformers from the Hub or a folder, completely or not at all."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from periscope.errors import PrecomputeError, first_line
from periscope.precompute.encoders.folders import find_folder
from periscope.precompute.encoders.hub import reach
from periscope.quiet import quiet_transformers

CACHED = (
    ("config.json",),
    ("preprocessor_config.json", "processor_config.json"),
    ("model.safetensors", "model.safetensors.index.json"),
)
VOLATILE = ("_name_or_path", "transformers_version", "dtype", "architectures", "torch_dtype")


@dataclass(frozen=True)
class Place:
    """Where a model lies. identifier: as typed · path, where: for `from_pretrained` · revision: on the Hub."""

    identifier: str
    path: str
    where: dict
    revision: str | None
    config: Any


def find(identifier: str) -> Place:
    """Find a model in a folder or on the Hub. Raises PrecomputeError when it isn't available."""
    from transformers import AutoConfig

    folder, cached, revision = find_folder(identifier), True, None
    if folder is None:
        cached, revision = reach(identifier, *CACHED)
    path, where = str(folder or identifier), {"local_files_only": cached, "trust_remote_code": False}
    with _plainly(identifier):
        config = AutoConfig.from_pretrained(path, **where)
    return Place(identifier, path, where, revision, config)


def load(place: Place, loader: str, **extra: Any) -> Any:
    """Load a frozen model in float32. loader: name of the transformers class. Raises PrecomputeError when weights are
    missing, which transformers would initialise at random.
    """
    import transformers

    with _plainly(place.identifier):
        model, report = getattr(transformers, loader).from_pretrained(
            place.path, dtype=torch.float32, output_loading_info=True, use_safetensors=True, **extra, **place.where
        )
    if missing := sorted(report["missing_keys"]):
        raise PrecomputeError(
            f"--encoder {place.identifier}: {len(missing)} weights of {loader} aren't in it ({missing[0]}) "
            "and would be random"
        )
    return model.eval().requires_grad_(False)


def load_processor(place: Place, auto: str, **options: Any) -> Any:
    """Load a model's processor. auto: name of a transformers Auto class. Raises PrecomputeError."""
    import transformers

    with _plainly(place.identifier):
        return getattr(transformers, auto).from_pretrained(place.path, **options, **place.where)


def described(processor: Any) -> dict:
    """An image or video processor, for the manifest; some exist with torchvision's resizing only."""
    backend = "pil" if type(processor).__name__.endswith("Pil") else "torchvision"
    return {"library": "transformers", "backend": backend, **plain(processor.to_dict())}


def config_of(model: Any) -> dict:
    """The part of a model's config that defines its features."""
    return {key: value for key, value in plain(model.config.to_dict()).items() if key not in VOLATILE}


def plain(value: dict) -> dict:
    """The same dict with JSON types only."""
    return json.loads(json.dumps(value, default=str))


@contextmanager
def _plainly(identifier: str) -> Iterator[None]:
    """Silence the library's warnings and progress bars, and turn its errors into one sentence."""
    try:
        with quiet_transformers(warnings=False):  # full CLIP checkpoints list their text tower as "unexpected"
            yield
    except PrecomputeError:
        raise
    except Exception as error:  # OSError, ValueError, KeyError, safetensors' and the downloader's own
        raise PrecomputeError(f"--encoder {identifier}: transformers can't load it ({first_line(error)})") from error
