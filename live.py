"""A photo in, words out: an adapter with its encoder and its language model, loaded once.

    import live

    eyes = live.load("runs/first")
    eyes.caption("cat.jpg")
    eyes.ask("cat.jpg", "What is on the table?")

With `train.py` and `eval.py` this is the one place that joins both halves. What it feeds the adapter is what a shard
holds: the same preprocessing, the same encoder (refused when it is another), the same codec and pooling.
"""

from pathlib import Path

import torch
from PIL import Image

from adapters import AdapterError
from adapters.checkpoint import CONFIG, load_adapter
from adapters.language_model import LanguageModel, load_language_model, precisions_differ, same_language_model
from adapters.model import AdaptedModel
from adapters.prompt import Prompt, Template
from precompute import PrecomputeError
from precompute.encoders import Encoder, load_encoder_like
from precompute.media import read_file
from shards.features import round_trip
from training.run import Run


def adapter_folder(path: Path | str) -> Path:
    """The adapter folder at `path`: itself, or the last checkpoint's when `path` is a run."""
    path = Path(path)
    return path if (path / CONFIG).is_file() else Run.open(path).step_folder() / "adapter"


def load_adapted(
    path: Path | str, device: str = "cpu", precision: str = "auto", lm: str | None = None
) -> tuple[AdaptedModel, dict]:
    """Load an adapter (a folder or a run) on its language model, or on `lm` when that is the same model elsewhere.

    Returns the model and the adapter's config. Raises AdapterError when the language model is another one.
    """
    adapter, config = load_adapter(adapter_folder(path), device)
    try:
        name, identity = config["language_model"]["name"], config["language_model"]["identity"]
        template = Template.from_dict(config["template"])
    except (KeyError, TypeError) as error:
        raise AdapterError(f"{adapter_folder(path) / CONFIG} is damaged: {error!r}") from None
    model: LanguageModel = load_language_model(lm or name, device, precision)
    if difference := same_language_model(identity, model.identity()):
        raise AdapterError(
            f"{path} was trained with {name}, and {model.name} is another language model: {difference}; "
            "pass --lm with the one it was trained with"
        )
    if other := precisions_differ(identity, model.identity()):
        model.reason += f"; {other}"
    return AdaptedModel(model, adapter, Prompt(model.tokenizer, template)), config


class Live:
    """An adapter, its encoder and its language model, ready for pictures. Made by `load`."""

    def __init__(self, model: AdaptedModel, encoder: Encoder, storage: dict | None = None):
        self.model, self.encoder, self.storage = model, encoder, storage
        self._cached: tuple[object, torch.Tensor] | None = None

    def features(self, image: Image.Image | Path | str | bytes) -> torch.Tensor:
        """The features of a picture, or of a sound's or a clip's file if the encoder takes such, as a shard would hold
        them: float16, `(width,)` or `(tokens, width)`.

        Raises PrecomputeError for a file that isn't a whole medium of the encoder's kind.
        """
        if isinstance(image, str | Path):
            image = Path(image)
            stamp = (image, image.stat().st_mtime_ns) if image.exists() else None
            if stamp and self._cached and self._cached[0] == stamp:
                return self._cached[1]
            try:
                inputs = self.encoder.inputs(read_file(image))
            except PrecomputeError as error:
                raise PrecomputeError(f"{image}: {error}") from error
        else:
            stamp = None
            inputs = self.encoder.preprocess(image) if isinstance(image, Image.Image) else self.encoder.inputs(image)
        kind = self.model.adapter.features.kind
        given = self.encoder.encode(inputs[None], [kind])[kind][0]
        found = round_trip(given, self.storage)
        self._cached = (stamp, found)
        return found

    def caption(self, image: Image.Image | Path | str | bytes, max_new_tokens: int = 64) -> str:
        """Describe a picture."""
        return self._say([], image, max_new_tokens)

    def ask(self, image: Image.Image | Path | str | bytes, question: str, max_new_tokens: int = 64) -> str:
        """Answer a question about a picture."""
        return self._say([{"role": "user", "content": question}], image, max_new_tokens)

    def _say(self, turns: list[dict], image, max_new_tokens: int) -> str:
        soft = self.model.adapter.soft_prompt is not None
        segments = self.model.prompt.segments(turns, ["image"], answer=False, soft_prompt=soft)
        return self.model.generate([segments], {"image": self.features(image)}, max_new_tokens)[0]


def load(path: Path | str, device: str = "cpu", precision: str = "auto", lm: str | None = None) -> Live:
    """Load an adapter folder or a run, with the encoder and the language model it names.

    Raises AdapterError or PrecomputeError when one of the two isn't the one the adapter was trained with.
    """
    model, config = load_adapted(path, device, precision, lm)
    return Live(model, load_encoder_like(config["encoder"], device), config.get("storage"))
