"""Media in, words out: adapters with their encoders and their language model, loaded once.

    import periscope

    model = periscope.load("runs/first")
    model.caption("cat.jpg")
    model.ask("cat.jpg", "What is on the table?")
    model.ask(["cat.jpg", "dog.jpg"], "Which is larger, <image> or <image>?")
    model.captions(Path("photos").glob("*.jpg"))
    chat = model.chat("cat.jpg")
    chat.send("What is on the table?")

    both = periscope.load(image="runs/first", audio="runs/second")
    both.ask(["cat.jpg", "purr.wav"], "<image> <audio> Is this what the cat sounds like?")

With `train.py` and `eval.py` this is the one place that joins both halves. An adapter gets exactly what a shard holds:
the same preprocessing, the same encoder (another one is refused), the same codec and pooling.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypedDict, Unpack, cast, overload

import numpy as np
import torch
from PIL import Image

from periscope.adapters.composed import ComposedModel, ComposedPrompt
from periscope.adapters.generation.decoding import Decoding
from periscope.adapters.io.checkpoint import load_adapter
from periscope.adapters.io.fetch import fetch_adapter
from periscope.adapters.io.schema import CONFIG, LANGUAGE_MODEL, AdapterConfig, read_adapter_config
from periscope.adapters.lm.identity import embedding_likeness, no_copy, precisions_differ, same_language_model
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.lora import FOLDER as LORA
from periscope.adapters.lm.lora import load_lora
from periscope.adapters.lm.precision import DTYPES
from periscope.adapters.lm.runtimes.load import open_language_model
from periscope.adapters.model import AdaptedModel
from periscope.adapters.names import RuntimeName, hub_name, is_hub_adapter
from periscope.adapters.prompting.prompt import Prompt, Turn
from periscope.adapters.prompting.segments import Segment
from periscope.chat_session import ChatSession, EncodedMedium, Pieces, name_of
from periscope.device import choose_device
from periscope.errors import AdapterError, PrecomputeError
from periscope.paths import expanded
from periscope.places import no_such_run
from periscope.precompute.decoding import Source, decoded
from periscope.precompute.encoders import Encoder, load_encoder_like
from periscope.precompute.media import (
    is_web_address,
    local_path,
    modality_of,
    read_bytes,
    read_web_address,
    suits,
)
from periscope.shards.features import round_trip
from periscope.shards.layout import CODECS
from periscope.training import run

# An image, sound or clip: a file's path or web address, its bytes, or the open file; an image also as a PIL image or
# as a NumPy array (height, width, 3) of uint8.
Medium = Image.Image | np.ndarray | Path | str | bytes | BinaryIO
Media = Medium | Sequence[Medium] | Mapping[str, Medium | Sequence[Medium]]
CACHED_FILES = 16  # files whose features a reader keeps
CHAT_TOKENS = 256  # of an answer in a conversation, unless asked otherwise


class HowToDecode(TypedDict, total=False):
    """The keyword arguments of `caption` and `ask` that say how an answer is decoded."""

    temperature: float
    top_p: float
    top_k: int
    beams: int


def adapter_folders(path: Path | str) -> dict[str, Path]:
    """The adapter folders at `path` by modality: `path` itself, those in it if it is a checkpoint, those of the last
    checkpoint if it is a run, or the Hub's adapter of that name (owner/name).

    Raises AdapterError for a damaged adapter and an address of the Hub, and RunError for anything else.
    """
    if repo := hub_name(str(path)):
        raise AdapterError(f"{path} is no adapter here; one on the Hub is named owner/name, here {repo}")
    path = fetch_adapter(str(path)) if is_hub_adapter(str(path)) else expanded(path)
    if not path.exists():
        raise no_such_run(path)
    return {read_adapter_config(folder).modality: folder for folder in run.adapter_folders(path)}


def adapter_folder(path: Path | str, modality: str | None = None) -> Path:
    """The adapter folder at `path` that reads `modality`, or the only one.

    Raises AdapterError when there is none, or several and `modality` is None.
    """
    folders = adapter_folders(path)
    if modality is None and len(folders) > 1:
        first = next(iter(folders))
        raise AdapterError(f"{path} holds adapters of {' and '.join(folders)}; name one, as {first}={path}")
    if modality not in (None, *folders):
        raise AdapterError(f"{path} is named as {modality}, but reads {' and '.join(folders)}")
    return folders[modality or next(iter(folders))]


def trained_on_questions(config: AdapterConfig) -> bool | None:
    """Whether an adapter was trained on questions, by its `training` facts; None where these don't tell, because an
    older version wrote them.
    """
    questions = config.training.get("questions")
    return questions > 0 if isinstance(questions, int) else None


def load_adapted(
    path: Path | str,
    device: str = "cpu",
    precision: str = "auto",
    lm: str | None = None,
    modality: str | None = None,
    anyway: bool = False,
    trust_remote_code: bool = False,
    runtime: RuntimeName = "pytorch",
) -> tuple[AdaptedModel, AdapterConfig]:
    """Load an adapter (a folder, a run or a name on the Hub) on its language model.

    `lm` says where the language model is now, if it has moved. Returns the model and the adapter's config. Raises
    AdapterError when the language model is another one, unless `anyway` is set and its width is the same.
    """
    several = load_several({modality: path}, device, precision, lm, anyway, trust_remote_code, runtime)
    ((model, config),) = several.values()
    return model, config


def load_several(
    paths: Mapping[str | None, Path | str],
    device: str = "cpu",
    precision: str = "auto",
    lm: str | None = None,
    anyway: bool = False,
    trust_remote_code: bool = False,
    runtime: RuntimeName = "pytorch",
) -> dict[str | None, tuple[AdaptedModel, AdapterConfig]]:
    """Load adapters by modality on one language model, `lm` or that of the first: modality -> model and config.

    Raises AdapterError when their language models differ, or aren't the one loaded (unless `anyway`), and for LoRA that
    `runtime` can't add.
    """
    loaded = []
    for modality, path in paths.items():
        folder = adapter_folder(path, modality)
        if (folder / LORA).exists() and len(paths) > 1:
            raise AdapterError(
                f"{path} has LoRA weights, which change the language model for every other adapter on it; load it alone"
            )
        if (folder / LANGUAGE_MODEL).exists() and len(paths) > 1:
            raise AdapterError(f"{path} has a language model of its own, which no other adapter is on; load it alone")
        loaded.append((path, *load_adapter(folder, device)))
    first_path, _, first = loaded[0]
    for path, _, config in loaded[1:]:
        if difference := same_language_model(first.language_model.identity, config.language_model.identity):
            raise AdapterError(
                f"{first_path} was trained with {first.language_model.name}, and {path} with "
                f"{config.language_model.name}, which is another language model: {difference}; adapters can only be "
                "combined on the same one"
            )
    if first.lora and runtime != "pytorch":
        raise AdapterError(
            f"{first_path} has LoRA weights, and {runtime} runs a file as it is: merge them (periscope export merged), "
            "convert the language model to GGUF again, and name that file"
        )
    model = open_language_model(runtime, lm or first.language_model_in(folder), device, precision, trust_remote_code)
    _check_language_model(model, first, str(first_path), anyway)
    if first.lora:
        load_lora(model, folder / LORA)
    models = {}
    for modality, (_, adapter, config) in zip(paths, loaded, strict=True):
        prompt = Prompt(model.tokenizer, config.template, config.modality)
        models[modality] = AdaptedModel(model, adapter, prompt), config
    return models


def _check_language_model(model: LanguageModel, config: AdapterConfig, path: str, anyway: bool) -> None:
    """Raise AdapterError for another language model than the adapter at `path` was trained with, unless it looks like a
    quantized copy, or `anyway` and its width is the same; a note says so then.
    """
    recorded, actual = config.language_model.identity, model.identity()
    if note := precisions_differ(recorded, actual):
        model.reason += f"; {note}"
    difference = same_language_model(recorded, actual)
    if not difference:
        return
    trained = f"{path} was trained with {config.language_model.name}"
    if model.runtime is not None and not (difference := no_copy(recorded, actual)):
        print(
            f"note: {trained}, and {model.name} is taken for a copy of it in {model.precision}: it makes the same "
            f"tokens, and the cosine of their word embeddings is {embedding_likeness(recorded, actual):.3f}"
        )
        return
    message = f"{trained}, and {model.name} is another language model: {difference}"
    if not anyway or recorded.hidden_size != model.hidden_size:
        raise AdapterError(
            f"{message}; pass --lm with the one it was trained with (or --anyway for a fine-tune of it or a quantized "
            "copy)"
        )
    print(f"note: {message}")


class Reader:
    """Encodes one modality's files: an encoder, and how its features of one `kind` were stored for training."""

    def __init__(self, encoder: Encoder, kind: str, storage: Mapping[str, Any] | None = None):
        self.encoder, self.kind, self.storage = encoder, kind, storage
        self._cache: dict[tuple[Path, int], torch.Tensor] = {}

    def features(self, medium: Medium) -> torch.Tensor:
        """Features of one image, sound or clip as a shard would hold them: float16, `(width,)` or `(tokens, width)`.

        What is at a web address is fetched at each call. Raises PrecomputeError for a medium that can't be decoded as
        the encoder's modality.
        """
        if is_web_address(medium):
            return self._of_address(str(medium))
        key = None
        if isinstance(medium, str | Path):
            try:
                path = local_path(medium)
                key = (path, path.stat().st_mtime_ns) if path.exists() else None
                if key in self._cache:
                    return self._cache[key]
                inputs = self._inputs(path)
            except PrecomputeError as error:
                raise PrecomputeError(f"{medium}: {error}") from error
        elif isinstance(medium, Image.Image | np.ndarray):
            inputs = self.encoder.inputs(medium)
        else:
            inputs = self._inputs(medium)
        features = self._encoded(inputs)
        if key:
            self._cache[key] = features
            for oldest in list(self._cache)[:-CACHED_FILES]:
                del self._cache[oldest]
        return features

    def _of_address(self, address: str) -> torch.Tensor:
        try:
            return self._encoded(self._inputs(read_web_address(address)))
        except PrecomputeError as error:
            raise PrecomputeError(f"{address}: {error}") from error

    def _encoded(self, inputs: torch.Tensor) -> torch.Tensor:
        encoded = self.encoder.encode(inputs[None], [self.kind])[self.kind][0]
        return round_trip(encoded, self.storage)

    def _inputs(self, medium: Path | bytes | BinaryIO) -> torch.Tensor:
        """One input of the encoder, decoded in a worker process within limits. Raises MediaError."""
        decoder = self.encoder.decoder()
        if decoder is None:
            return self.encoder.inputs(read_bytes(medium))
        if isinstance(medium, Path):
            source = Source(decoder, path=str(medium.absolute()))
        else:
            source = Source(decoder, data=read_bytes(medium))
        with decoded(source) as found:
            return self.encoder.preprocessed(found)


class LoadedModel:
    """Adapters with their encoders on one language model. Made by `load`.

    Media are a file, a list of files, or a mapping from modality to these. In place of a path, a file's bytes or an
    open binary file will do, and for an image a PIL image or a NumPy array `(height, width, 3)` of uint8. With adapters
    of several modalities a file's name tells its modality, or else the mapping must. `captions_only` maps modalities
    whose adapters were trained on captions alone, which know no questions.

    Answers are greedy unless several `beams` search for the likeliest one, or a `temperature` above 0 has tokens drawn,
    from torch's generator, among the likeliest that make up `top_p` of the probability and the `top_k` likeliest. With
    `stream=True` an answer comes as an iterator of pieces of text, while it is made; leaving the iterator ends it.
    Calls from several threads wait for one another.
    """

    def __init__(
        self, model: ComposedModel, readers: Mapping[str, Reader], captions_only: Mapping[str, str] | None = None
    ):
        self.model, self.readers = model, dict(readers)
        self.captions_only = dict(captions_only or {})

    def __repr__(self) -> str:
        """The adapters with their encoders, and the language model."""
        lm = self.model.lm
        adapters = []
        for modality, reader in self.readers.items():
            adapter = cast(AdaptedModel, self.model.models[modality]).adapter
            encoder = reader.encoder.describe().get("name")
            adapters.append(f"{modality}: {adapter.spec} on {encoder} {reader.kind}, {adapter.tokens} tokens")
        return f"LoadedModel({'; '.join(adapters)}; language model {lm.name}, {lm.precision} on {lm.device})"

    @overload
    def caption(
        self, media: Media, max_new_tokens: int = ..., *, stream: Literal[False] = ..., **how: Unpack[HowToDecode]
    ) -> str: ...
    @overload
    def caption(
        self, media: Media, max_new_tokens: int = ..., *, stream: Literal[True], **how: Unpack[HowToDecode]
    ) -> Pieces: ...
    @overload
    def caption(
        self, media: Media, max_new_tokens: int = ..., *, stream: bool, **how: Unpack[HowToDecode]
    ) -> str | Pieces: ...
    def caption(
        self,
        media: Media,
        max_new_tokens: int = 64,
        *,
        stream: bool = False,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        beams: int = 1,
    ) -> str | Pieces:
        """Describe an image, a sound or a clip, or together one of each modality. `captions` describes many.

        Raises AdapterError for no medium, for several of one modality, and for values out of range; PrecomputeError for
        a file that can't be read.
        """
        decoding = Decoding(max_new_tokens, temperature, top_p, beams, top_k)
        encoded = self.encode(media)
        if not encoded:
            raise AdapterError("there is nothing to caption: no medium was given")
        counts = Counter(medium.modality for medium in encoded)
        (modality, count), *_ = counts.most_common(1)
        if count > 1:
            raise AdapterError(
                f"{count} media of one modality ({modality}) were given for one caption; give them one by one (in "
                "Python captions([...])), or ask a question about them together"
            )
        return self._respond([], encoded, decoding, stream)

    def captions(
        self,
        media: Iterable[Medium],
        max_new_tokens: int = 64,
        *,
        batch: int = 16,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        beams: int = 1,
    ) -> list[str]:
        """A caption of each medium, in their order. `batch` of them are generated at once.

        Raises AdapterError for a single medium in place of several, and otherwise as `caption`.
        """
        if isinstance(media, str | bytes | Path | Image.Image | Mapping) or not isinstance(media, Iterable):
            raise AdapterError(
                f"captions takes a list of media, and this is of type {type(media).__name__}; for one use caption"
            )
        if batch < 1:
            raise AdapterError(f"batch is {batch}; it must be 1 or more")
        decoding = Decoding(max_new_tokens, temperature, top_p, beams, top_k)
        waiting, said = iter(media), list[str]()
        while part := [self._encode_one(medium) for medium in islice(waiting, batch)]:
            said += self._captions(part, decoding)
        return said

    @overload
    def ask(
        self,
        media: Media,
        question: str,
        max_new_tokens: int = ...,
        *,
        stream: Literal[False] = ...,
        **how: Unpack[HowToDecode],
    ) -> str: ...
    @overload
    def ask(
        self,
        media: Media,
        question: str,
        max_new_tokens: int = ...,
        *,
        stream: Literal[True],
        **how: Unpack[HowToDecode],
    ) -> Pieces: ...
    @overload
    def ask(
        self, media: Media, question: str, max_new_tokens: int = ..., *, stream: bool, **how: Unpack[HowToDecode]
    ) -> str | Pieces: ...
    def ask(
        self,
        media: Media,
        question: str,
        max_new_tokens: int = 64,
        *,
        stream: bool = False,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        beams: int = 1,
    ) -> str | Pieces:
        """Answer a question about media.

        `<image>`, `<audio>` and `<video>` in the question say where the next medium of that modality stands; without
        marks the media stand where they did in training, in the order given.

        Raises AdapterError for marks that don't fit the media, for swapped arguments and for values out of range;
        PrecomputeError for a file that can't be read.
        """
        _refuse_swapped(media, question)
        decoding = Decoding(max_new_tokens, temperature, top_p, beams, top_k)
        return self._respond([{"role": "user", "content": question}], self.encode(media), decoding, stream)

    def chat(
        self,
        media: Media = (),
        *,
        system: str = "",
        max_new_tokens: int = CHAT_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        beams: int = 1,
    ) -> ChatSession:
        """Begin a conversation that is remembered, about media that its first message shows; `system` stands before it.

        Raises as `ask`.
        """
        return ChatSession(self, media, system, Decoding(max_new_tokens, temperature, top_p, beams, top_k))

    def to(self, device: str) -> "LoadedModel":
        """Move everything to another device, with its precision, and return this model.

        Raises DeviceError for a device that can't be used, AdapterError for a quantized language model, which stays.
        """
        device = choose_device(device, python=True)
        if self.model.lm.precision not in DTYPES:
            raise AdapterError(
                f"{self.model.lm.name} is loaded in {self.model.lm.precision} and can't be moved; load it on {device}"
            )
        self.model.to(device)
        cast(torch.nn.Module, self.model.lm.model).to(device)
        for reader in self.readers.values():
            reader.encoder.to(device)
        return self

    @property
    def prompt(self) -> ComposedPrompt:
        """What turns conversations about these modalities into prompts."""
        return cast(ComposedPrompt, self.model.prompt)

    def features(self, medium: Medium, modality: str | None = None) -> torch.Tensor:
        """Features of one medium as a shard would hold them: float16, `(width,)` or `(tokens, width)`."""
        return self._reader(modality or self._modality(medium)).features(medium)

    def encode(self, media: Media) -> list[EncodedMedium]:
        """Media one by one. Raises AdapterError for a modality that no adapter reads, PrecomputeError for a file that
        can't be read.
        """
        if isinstance(media, Mapping):
            flat = [(modality, medium) for modality, several in media.items() for medium in _as_list(several)]
        else:
            flat = [(self._modality(medium), medium) for medium in _as_list(media)]
        return [EncodedMedium(modality, name_of(each), self.features(each, modality)) for modality, each in flat]

    def _encode_one(self, medium: Medium) -> EncodedMedium:
        encoded = self.encode(medium)
        if len(encoded) != 1:
            raise AdapterError(f"each caption is of one medium, and {len(encoded)} were given for one")
        return encoded[0]

    def speak(
        self, text: Sequence[Segment], features: Mapping[str, torch.Tensor], decoding: Decoding, stream: bool
    ) -> Pieces:
        """The answer to a prompt: with `stream` as it is made, otherwise in one piece.

        Raises AdapterError for a prompt longer than the language model reads, and for a stream of beam search.
        """
        text = text or self.prompt.segments([], answer=False, start=True)
        most = self.room(text, decoding)
        if stream:
            return self.model.stream(text, features, most, **decoding.arguments())
        answers = self.model.generate([text], features, most, **decoding.arguments())
        return (answer for answer in answers)

    def room(self, text: Sequence[Segment], decoding: Decoding) -> int:
        """How many tokens the answer to a prompt may have. Raises AdapterError where there is no room for any."""
        length, longest = self.model.length(text), self.model.lm.max_length
        if length >= longest:
            raise AdapterError(
                f"a prompt of {length} tokens leaves no room for an answer, because {self.model.lm.name} reads at most "
                f"{longest}; ask less, or begin a new conversation"
            )
        return min(decoding.max_new_tokens, longest - length)

    def _respond(
        self, turns: Sequence[Turn], media: Sequence[EncodedMedium], decoding: Decoding, stream: bool
    ) -> str | Pieces:
        features = _by_slot(media)
        pieces = self.speak(self.prompt.segments(turns, list(features), answer=False), features, decoding, stream)
        return pieces if stream else "".join(pieces)

    def _captions(self, media: Sequence[EncodedMedium], decoding: Decoding) -> list[str]:
        """A caption of each of a few media, those of one modality generated at once."""
        features, said = _by_slot(media), dict[str, str]()
        for modality in {medium.modality for medium in media}:
            slots = [slot for slot in features if slot.startswith(f"{modality}:")]
            texts = [self.prompt.segments([], [slot], answer=False) for slot in slots]
            most = min(self.room(text, decoding) for text in texts)
            said |= zip(slots, self.model.generate(texts, features, most, **decoding.arguments()), strict=True)
        return [said[slot] for slot in features]

    def _reader(self, modality: str) -> Reader:
        if modality not in self.readers:
            raise AdapterError(f"{modality!r} is no modality of this model, which reads {' and '.join(self.readers)}")
        return self.readers[modality]

    def _modality(self, medium: Medium) -> str:
        """The modality of the adapter that reads a medium. Raises AdapterError when it can't be told."""
        if len(self.readers) == 1:
            return next(iter(self.readers))
        name = str(medium if isinstance(medium, str | Path) else getattr(medium, "name", ""))
        kind = "image" if isinstance(medium, Image.Image | np.ndarray) else modality_of(name) if name else None
        fitting = [modality for modality in self.readers if kind and suits(name, kind, modality)]
        fitting.sort(key=lambda modality: modality != kind)
        if not fitting:
            shown = name or f"a medium of type {type(medium).__name__}"
            raise AdapterError(
                f"{shown} is {kind or 'of no known modality'}, and the adapters read {' and '.join(self.readers)}; "
                f'say which is meant, as {{"{next(iter(self.readers))}": ...}}'
            )
        return fitting[0]


def load(
    path: Path | str | None = None,
    device: str = "auto",
    precision: str = "auto",
    lm: str | None = None,
    anyway: bool = False,
    encoder: str | Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    runtime: RuntimeName = "pytorch",
    **by_modality: Path | str,
) -> LoadedModel:
    """As `periscope.load`, which documents it, but that torch is imported."""
    if (path is None) == (not by_modality):
        raise AdapterError('name one adapter or run, or several by modality: load(image="runs/a", audio="runs/b")')
    device = choose_device(device, python=True)
    paths: dict[str, Path | str] = dict(by_modality) if path is None else dict.fromkeys(adapter_folders(path), path)
    named = cast(Mapping[str | None, Path | str], paths)
    several = load_several(named, device, precision, lm, anyway, trust_remote_code, runtime)
    loaded = {modality: several[modality] for modality in paths}
    templates = [model.prompt.template for model, _ in loaded.values()]
    if len({(template.style, template.question) for template in templates}) > 1:
        print(f"note: these adapters put questions in different forms; a mixed prompt has that of {next(iter(loaded))}")
    if isinstance(encoder, str):
        if len(loaded) > 1:
            first = next(iter(loaded))
            raise AdapterError(
                f"there are several adapters: say whose encoder is at {encoder}, as {first}=FOLDER, or in Python "
                f'{{"{first}": FOLDER}}'
            )
        encoder = dict.fromkeys(loaded, encoder)
    encoders = encoder or {}
    if unknown := sorted(set(encoders) - set(loaded)):
        raise AdapterError(f"an encoder of {unknown[0]} was named, and the adapters read {' and '.join(loaded)}")
    readers = {
        modality: _reader(config, device, anyway, encoders.get(modality)) for modality, (_, config) in loaded.items()
    }
    captions_only = {
        modality: str(paths[modality])
        for modality, (_, config) in loaded.items()
        if trained_on_questions(config) is False
    }
    composed = ComposedModel({modality: model for modality, (model, _) in loaded.items()})
    return LoadedModel(composed, readers, captions_only)


def _reader(config: AdapterConfig, device: str, anyway: bool, moved: str | None) -> Reader:
    """The reader of an adapter's media.

    Raises AdapterError when its config doesn't say enough, and PrecomputeError when its encoder isn't found.
    """
    storage = config.storage
    if storage is not None and ("shape" not in storage or storage.get("codec", "fp16") not in CODECS):
        raise AdapterError(f"{CONFIG} doesn't say how features were stored in a way known here: {storage}")
    try:
        encoder = load_encoder_like(config.encoder, device, anyway=anyway, moved=moved)
    except PrecomputeError as error:
        if moved:
            raise
        raise PrecomputeError(
            f"the adapter's encoder, {config.encoder.get('name')}, can't be loaded: {error}; if it has moved, say "
            "where: --encoder FOLDER (in Python encoder=)"
        ) from error
    return Reader(encoder, config.features.kind, storage)


def _by_slot(media: Sequence[EncodedMedium]) -> dict[str, torch.Tensor]:
    """The features by the slots that the media get in a prompt."""
    return {f"{medium.modality}:{i}": medium.features for i, medium in enumerate(media)}


def _refuse_swapped(media: object, question: object) -> None:
    """Raise AdapterError for `ask(question, media)`."""
    if not isinstance(question, str):
        raise AdapterError(
            f"the question is of type {type(question).__name__}; the media come first: ask(media, question)"
        )
    if isinstance(media, str) and not _is_file(media) and _is_file(question):
        raise AdapterError(f"the question, {question}, is a file; the media come first: ask(media, question)")


def _is_file(name: str) -> bool:
    try:
        return Path(name).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # longer than a path may be, no home folder, a null character
        return False


def _as_list(media: Medium | Sequence[Medium]) -> Sequence[Medium]:
    return media if isinstance(media, list | tuple) else [cast(Medium, media)]
