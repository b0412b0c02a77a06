"""`periscope.load`: what is named is looked for before torch is imported, which takes seconds."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from periscope.adapters.names import RuntimeName

if TYPE_CHECKING:
    from periscope.inference import LoadedModel


def load(
    path: Path | str | None = None,
    device: str = "auto",
    precision: str = "auto",
    lm: Path | str | None = None,
    anyway: bool = False,
    encoder: Path | str | Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    runtime: RuntimeName = "pytorch",
    **by_modality: Path | str,
) -> "LoadedModel":
    """Load an adapter with the encoder and the language model it was trained with.

    `path` is an adapter folder, a run or a name on the Hub (owner/name). Several adapters on one language model are
    named by modality: `load(image="runs/a", audio="runs/b")`. `device` is "auto" (an NVIDIA GPU if there is one),
    "cpu", "cuda", "cuda:N" or "mps"; `precision` that of the language model. `lm` and `encoder` say where these are
    now, if they have moved; for several adapters `encoder` maps a modality to its encoder. `trust_remote_code` runs
    Python code that the language model brings; without it such a model is refused. `runtime` "llama.cpp" answers on a
    GGUF file's own quantized weights.

    Raises RunError for a run that isn't there, DeviceError for a device that can't be used, and AdapterError or
    PrecomputeError when the encoder or the language model isn't the one that an adapter was trained with, when adapters
    can't be combined, and when one is named as a modality it doesn't read. `anyway` accepts another language model or
    encoder of the same size, with a note.
    """
    from periscope.places import check_models, find_adapters

    lm = None if lm is None else str(lm)
    encoder = str(encoder) if isinstance(encoder, Path) else encoder
    named = by_modality.values() if path is None else [path]
    adapters = [adapter for name in named for adapter in find_adapters(str(name))]
    moved: dict[str | None, str] = {None: encoder} if isinstance(encoder, str) else dict((encoder or {}).items())
    check_models(adapters, lm, runtime, precision, moved)
    from periscope import inference

    return inference.load(path, device, precision, lm, anyway, encoder, trust_remote_code, runtime, **by_modality)
