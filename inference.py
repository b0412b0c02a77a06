"""A photo in, words out: adapters with their encoders and their language model, loaded once.

    import periscope

    eyes = periscope.load("runs/first")
    eyes.caption("cat.jpg")
    eyes.ask("cat.jpg", "What is on the table?")
    eyes.ask(["cat.jpg", "dog.jpg"], "Which is larger, <image> or <image>?")

    both = periscope.load(image="runs/first", audio="runs/ears")
    both.ask(["cat.jpg", "purr.wav"], "<image> <audio> Is this what the cat sounds like?")

With `train.py` and `eval.py` this is the one place that joins both halves. What it feeds an adapter is what a shard
holds: the same preprocessing, the same encoder (refused when it is another), the same codec and pooling.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from periscope.adapters.composed import ComposedModel
from periscope.adapters.io.card import is_hub_id
from periscope.adapters.io.checkpoint import CONFIG, load_adapter, read_adapter_config
from periscope.adapters.io.hub import fetch_adapter
from periscope.adapters.lm.language_model import (
    LanguageModel,
    load_language_model,
    precisions_differ,
    same_language_model,
)
from periscope.adapters.lm.lora import FOLDER as LORA
from periscope.adapters.lm.lora import load_lora
from periscope.adapters.model import AdaptedModel
from periscope.adapters.prompting.prompt import Prompt, Template
from periscope.errors import AdapterError, PrecomputeError
from periscope.precompute.encoders import Encoder, load_encoder_like
from periscope.precompute.media import modality_of, read_file, suits
from periscope.shards.features import CODECS, round_trip
from periscope.training.run import Run

Medium = Image.Image | Path | str | bytes
Media = Medium | Sequence[Medium] | Mapping[str, Medium | Sequence[Medium]]
REMEMBERED = 16  # files whose features a reader keeps


def adapter_folders(path: Path | str) -> dict[str, Path]:
    """The adapter folders at `path` by modality: itself, or those of the last checkpoint when `path` is a run, or what
    the Hub has of that name (owner/name). Raises AdapterError, and RunError for what is none of these.
    """
    path = fetch_adapter(str(path)) if is_hub_id(str(path)) else Path(path)
    found = [path] if (path / CONFIG).is_file() else Run.open(path).adapter_folders()
    return {read_adapter_config(folder).get("modality", "image"): folder for folder in found}


def adapter_folder(path: Path | str, modality: str | None = None) -> Path:
    """The adapter folder at `path` that reads `modality`, or the only one.

    Raises AdapterError when there is none such, or several and none is named.
    """
    held = adapter_folders(path)
    if modality is None and len(held) > 1:
        raise AdapterError(f"{path} holds adapters of {' and '.join(held)}; name one, as {next(iter(held))}={path}")
    if modality not in (None, *held):
        raise AdapterError(f"{path} is named as {modality}, but reads {' and '.join(held)}")
    return held[modality or next(iter(held))]


def load_adapted(
    path: Path | str,
    device: str = "cpu",
    precision: str = "auto",
    lm: str | None = None,
    modality: str | None = None,
    anyway: bool = False,
) -> tuple[AdaptedModel, dict]:
    """Load an adapter (a folder, a run or a name on the Hub) on its language model, or on `lm` when that is the same
    model elsewhere.

    Returns the model and the adapter's config. Raises AdapterError when the language model is another one, unless
    `anyway` and it is of the same width.
    """
    ((model, config),) = load_several({modality: path}, device, precision, lm, anyway).values()
    return model, config


def load_several(
    paths: Mapping[str | None, Path | str],
    device: str = "cpu",
    precision: str = "auto",
    lm: str | None = None,
    anyway: bool = False,
) -> dict[str, tuple[AdaptedModel, dict]]:
    """Load adapters by modality on one language model, that of the first or `lm`: modality -> model and config.

    Raises AdapterError when their language models differ, or aren't the one here (unless `anyway`).
    """
    loaded = []
    for modality, path in paths.items():
        folder = adapter_folder(path, modality)
        if (folder / "lora").exists() and len(paths) > 1:
            raise AdapterError(
                f"{path} has LoRA weights, which change the language model for every other adapter on it; load it alone"
            )
        adapter, config = load_adapter(folder, device)
        try:
            about = config["language_model"]["name"], config["language_model"]["identity"]
            loaded.append((path, adapter, config, *about, Template.from_dict(config["template"])))
        except (KeyError, TypeError) as error:
            raise AdapterError(f"{folder / CONFIG} is damaged: {error!r}") from None
    first, _, _, name, identity, _ = loaded[0]
    for path, _, _, its_name, its_identity, _ in loaded[1:]:
        if difference := same_language_model(identity, its_identity):
            raise AdapterError(
                f"{first} was trained with {name}, and {path} with {its_name}, which is another language model: "
                f"{difference}; adapters go together on one"
            )
    model: LanguageModel = load_language_model(lm or name, device, precision)
    if difference := same_language_model(identity, model.identity()):
        other = f"{first} was trained with {name}, and {model.name} is another language model: {difference}"
        if not anyway or identity["hidden_size"] != model.hidden_size:
            raise AdapterError(
                f"{other}; pass --lm with the one it was trained with (or --anyway for a fine-tune of it)"
            )
        print(f"note: {other}")
    if other := precisions_differ(identity, model.identity()):
        model.reason += f"; {other}"
    if loaded[0][2].get("lora"):
        load_lora(model, folder / LORA)
    made = {}
    for modality, (_, adapter, config, _, _, template) in zip(paths, loaded, strict=True):
        prompt = Prompt(model.tokenizer, template, config.get("modality", "image"))
        made[modality] = AdaptedModel(model, adapter, prompt), config
    return made


class Reader:
    """What reads one modality's files: an encoder, and how its features of one `kind` were stored in training."""

    def __init__(self, encoder: Encoder, kind: str, storage: dict | None = None):
        self.encoder, self.kind, self.storage = encoder, kind, storage
        self._cached: dict[tuple, torch.Tensor] = {}

    def features(self, medium: Medium) -> torch.Tensor:
        """A medium's features as a shard would hold them: float16, `(width,)` or `(tokens, width)`.

        Raises PrecomputeError for a file that isn't a whole medium of the encoder's modality.
        """
        stamp = None
        if isinstance(medium, str | Path):
            medium = Path(medium)
            stamp = (medium, medium.stat().st_mtime_ns) if medium.exists() else None
            if stamp in self._cached:
                return self._cached[stamp]
            try:
                inputs = self.encoder.inputs(read_file(medium))
            except PrecomputeError as error:
                raise PrecomputeError(f"{medium}: {error}") from error
        else:
            picture = isinstance(medium, Image.Image)
            inputs = self.encoder.preprocess(medium) if picture else self.encoder.inputs(medium)
        given = self.encoder.encode(inputs[None], [self.kind])[self.kind][0]
        found = round_trip(given, self.storage)
        if stamp:
            self._cached[stamp] = found
            for oldest in list(self._cached)[:-REMEMBERED]:
                del self._cached[oldest]
        return found


class LoadedModel:
    """Adapters with their encoders on one language model, ready for media. Made by `load`.

    Media are a file, a list of files, or modality -> these; a file's bytes and PIL pictures do as well. With adapters
    of several modalities a file's name says of which it is, or else the mapping must.
    """

    def __init__(self, model: ComposedModel, readers: Mapping[str, Reader]):
        self.model, self.readers = model, dict(readers)

    def caption(self, media: Media, max_new_tokens: int = 64) -> str:
        """Describe a picture, a sound, a clip, or several."""
        return self._say([], media, max_new_tokens)

    def ask(self, media: Media, question: str, max_new_tokens: int = 64) -> str:
        """Answer a question about media. `<image>`, `<audio>` and `<video>` in it say where the next of its kind
        stands; without any they stand where the adapter had them in training, in the order given.

        Raises AdapterError for marks that don't fit the media, PrecomputeError for a file that can't be read.
        """
        return self._say([{"role": "user", "content": question}], media, max_new_tokens)

    def features(self, medium: Medium, modality: str | None = None) -> torch.Tensor:
        """The features of one medium as a shard would hold them, float16."""
        return self.readers[modality or self._modality(medium)].features(medium)

    def _say(self, turns: list[dict], media: Media, max_new_tokens: int) -> str:
        each = self._each(media)
        features = {f"{modality}:{i}": self.features(one, modality) for i, (modality, one) in enumerate(each)}
        segments = self.model.prompt.segments(turns, list(features), answer=False)
        return self.model.generate([segments], features, max_new_tokens)[0]

    def _each(self, media: Media) -> list[tuple[str, Medium]]:
        """The media one by one, each with its modality."""
        if isinstance(media, Mapping):
            return [(modality, one) for modality, some in media.items() for one in _list(some)]
        return [(self._modality(one), one) for one in _list(media)]

    def _modality(self, medium: Medium) -> str:
        """Which of the adapters is to read a medium. Raises AdapterError when nothing says so, and when none does."""
        if len(self.readers) == 1:
            return next(iter(self.readers))
        named = isinstance(medium, str | Path)
        found = "image" if isinstance(medium, Image.Image) else modality_of(str(medium)) if named else None
        fitting = [wanted for wanted in self.readers if found and suits(str(medium) if named else "", found, wanted)]
        if not fitting:
            shown = medium if named else f"a {type(medium).__name__}"
            raise AdapterError(
                f"{shown} is {found or 'of no known modality'}, and the adapters read {' and '.join(self.readers)}; "
                f'say which is meant, as {{"{next(iter(self.readers))}": ...}}'
            )
        return fitting[0]


def load(
    path: Path | str | None = None,
    device: str = "cpu",
    precision: str = "auto",
    lm: str | None = None,
    anyway: bool = False,
    encoder: str | Mapping[str, str] | None = None,
    **by_modality: Path | str,
) -> LoadedModel:
    """Load an adapter folder, a run or an adapter of the Hub (owner/name), with the encoder and the language model it
    names; or several on one language model, by modality, as `image="runs/a", audio="runs/b"`. `lm` and `encoder` say
    where these are now if they have moved; of several adapters, `encoder` maps a modality to its encoder.

    Raises AdapterError or PrecomputeError when an encoder or the language model isn't the one that an adapter was
    trained with, when the adapters don't go together, and for one named as what it doesn't read. With `anyway` another
    language model or encoder is taken with a note, as far as its sizes are the same.
    """
    if (path is None) == (not by_modality):
        raise AdapterError('name one adapter or run, or several by modality: load(image="runs/a", audio="runs/b")')
    loaded = load_several(by_modality or dict.fromkeys(adapter_folders(path), path), device, precision, lm, anyway)
    templates = [model.prompt.template for model, _ in loaded.values()]
    forms = {(template.style, template.question) for template in templates}
    if len(forms) > 1:
        print(f"note: these adapters put questions in different forms; a mixed prompt has that of {next(iter(loaded))}")
    if isinstance(encoder, str):
        if len(loaded) > 1:
            raise AdapterError(
                f"there are several adapters: say whose encoder is at {encoder}, as {next(iter(loaded))}=FOLDER, or in "
                f'Python {{"{next(iter(loaded))}": FOLDER}}'
            )
        encoder = dict.fromkeys(loaded, encoder)
    if strange := sorted(set(encoder or ()) - set(loaded)):
        raise AdapterError(f"an encoder of {strange[0]} was named, and the adapters read {' and '.join(loaded)}")
    readers = {
        modality: _reader(config, device, anyway, (encoder or {}).get(modality))
        for modality, (_, config) in loaded.items()
    }
    return LoadedModel(ComposedModel({modality: model for modality, (model, _) in loaded.items()}), readers)


def _reader(config: Mapping, device: str, anyway: bool, moved: str | None) -> Reader:
    """What reads an adapter's media. Raises AdapterError and PrecomputeError where its description is of no use."""
    if "encoder" not in config or "kind" not in (config.get("features") or {}):
        raise AdapterError(f"{CONFIG} doesn't say which encoder's features the adapter reads")
    storage = config.get("storage")
    if storage is not None and ("shape" not in storage or storage.get("codec", "fp16") not in CODECS):
        raise AdapterError(f"{CONFIG} doesn't say how features were stored in a way known here: {storage}")
    try:
        encoder = load_encoder_like(config["encoder"], device, anyway=anyway, moved=moved)
    except PrecomputeError as error:
        if moved:
            raise
        name = config["encoder"].get("name")
        raise PrecomputeError(
            f"the adapter's encoder, {name}, isn't to be had: {error}; if it lies elsewhere, "
            "say where: --encoder FOLDER (in Python encoder=)"
        ) from error
    return Reader(encoder, config["features"]["kind"], storage)


def _list(media: Medium | Sequence[Medium]) -> Sequence[Medium]:
    return media if isinstance(media, list | tuple) else [media]
