"""The options of eval.py and of `periscope eval | ask | chat | caption | serve | compare | push`: one field each."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta
from tyro.conf import Positional

from periscope.adapters.generation.decoding import Decoding
from periscope.adapters.names import RuntimeName
from periscope.errors import AdapterError, RunError
from periscope.evaluation.tasks.benchmarks import find_benchmark
from periscope.flags import Metavar, check_ranges, parse
from periscope.paths import meant
from periscope.shards.sharing.names import hint, hub_set, is_hub_set

Count = Annotated[int, Meta(ge=0), Metavar("N")]
File = Annotated[Path | None, Metavar("FILE")]
Files = Annotated[tuple[Path, ...], Metavar("FILE ...")]
Folder = Annotated[Path | None, Metavar("FOLDER")]
Name = Annotated[str, Metavar("NAME")]

COMPARISON = Path("runs/compare.md")
RENAMED = {"--gain": "--loss-drop"}


@dataclass
class ScoringOptions:
    """What is scored, and against what. Without any of these flags: all that the run's feature set holds out."""

    task: Name = ""
    """Score as this benchmark does, with its prompt and decoding. Default: the task that the texts name, if any."""
    tasks: bool = False
    """List the tasks and exit."""
    prompt_of: Annotated[str, Metavar("SYSTEM")] = ""
    """Whose prompt to use: cobra, mamba-vl, or own (as the adapter was trained). Default: the task's first."""
    answers: File = None
    """Take the likeliest of the answers in this file, one per line or a JSON list, instead of generating one."""
    features: Folder = None
    """Feature set to score on, or one on the Hub as hf://owner/name. Default: the one the run was trained on."""
    text: File = None
    """Another texts file for the same media. Default: the one the run was trained on."""
    partial: bool = False
    """Accept a texts file that names media missing from the feature set; those texts are counted and left out."""
    last: bool = False
    """Score the run's last checkpoint. Default: the best one, which had the lowest held-out loss."""
    limit: Count = 0
    """Use only the first N texts of each split; 0: all."""
    controls: Annotated[tuple[Literal["shuffled", "blank", "none"], ...], Metavar("{shuffled,blank,none} ...")] = (
        "shuffled",
        "blank",
        "none",
    )
    """Controls to answer under: another medium's features, the mean feature, no medium."""
    clip_score: bool = False
    """Also compute the CLIPScore of captions, with the text tower of the encoder (open_clip)."""
    data: Folder = None
    """Folder of the original media, so that report.html can play sounds and show video frames; with --write, the media
    to caption."""


@dataclass
class TextOptions:
    """New text files for train.py --text: without bad captions, or with captions by the model."""

    loss_drop: Annotated[str, Metavar("SPLIT")] = ""
    """Rank the texts of this split (or all) by how much their loss drops when the model sees the medium."""
    drop: Annotated[float, Meta(ge=0, lt=1), Metavar("SHARE")] = 0.0
    """Share of the ranked texts, the worst, that --write leaves out; 0: those whose loss rises with the medium."""
    write: File = None
    """File to write: with --loss-drop the texts without the worst, otherwise a new caption for each medium."""


@dataclass
class ComparisonOptions:
    """Several runs side by side."""

    compare: Annotated[tuple[Path, ...], Metavar("RUN ...")] = ()
    """Compare these runs, or folders of runs, in a table and a picture. Loads no model."""
    out: Annotated[Path, Metavar("FILE")] = COMPARISON
    """File for the table; the picture goes beside it as .png."""


@dataclass
class PushOptions:
    """What is shared on the Hugging Face Hub."""

    yes: bool = False
    """Push without asking."""
    private: bool = False
    """Create the repository as private."""
    public_samples: bool = False
    """Also share a few held-out prompts, references and pictures."""
    license: Annotated[str, Metavar("LICENSE")] = ""
    """License of the adapter, by its Hub identifier (mit, apache-2.0, cc-by-4.0 ...)."""
    dataset: Annotated[tuple[str, ...], Metavar("OWNER/NAME ...")] = ()
    """Hub ids of the training data, for the model card."""
    benchmark: Annotated[str, Metavar("OWNER/NAME[:TASK]")] = ""
    """Dataset of the Hub that is a registered benchmark, whose leaderboard gets the scores of --task."""


@dataclass
class SharingOptions(PushOptions):
    """Share the adapter on the Hugging Face Hub."""

    push: Annotated[str, Metavar("OWNER/NAME")] = ""
    """Push the adapter to this repository, after showing everything that would be uploaded."""


@dataclass
class DecodingOptions:
    """How answers are generated."""

    max_new_tokens: Count = 0
    """Maximum answer length in tokens; 0: as the task has it, 256 in a chat, otherwise 64."""
    beams: Count = 0
    """Beam width; 1: no beam search, 0: as the task has it, otherwise 1."""
    temperature: Annotated[float, Meta(ge=0), Metavar("T")] = 0.0
    """Draw tokens at this temperature; 0: take the likeliest."""
    top_p: Annotated[float, Meta(gt=0, le=1), Metavar("P")] = 1.0
    """Draw among the likeliest tokens that make up this share of the probability (nucleus sampling)."""
    top_k: Count = 0
    """Draw among the N likeliest tokens; 0: among all."""

    def decoding(self, tokens: int, beams: int = 1) -> Decoding:
        """These options, with `tokens` and `beams` where they say 0. Raises AdapterError as `Decoding`."""
        return Decoding(self.max_new_tokens or tokens, self.temperature, self.top_p, self.beams or beams, self.top_k)


@dataclass
class AnswerOptions(DecodingOptions):
    """How answers are generated."""

    batch: Annotated[int, Meta(ge=1), Metavar("N")] = 64
    """Answers generated at once; affects speed and memory, not the answers."""


@dataclass
class LanguageModelOptions:
    """The frozen language model."""

    lm: Annotated[str, Metavar("FOLDER|HUB_ID")] = ""
    """Language model, if it has moved since training."""
    precision: Literal["auto", "fp32", "fp16", "bf16", "8bit", "4bit"] = "auto"
    """Precision of the frozen weights; may differ from training."""
    trust_remote_code: bool = False
    """Run the Python code of a language model that brings its own, with your rights. Read it first."""
    device: Annotated[str, Metavar("DEVICE")] = "auto"
    """auto, cuda, cuda:N, mps (Apple's GPU) or cpu."""


@dataclass
class ModelOptions(LanguageModelOptions):
    """The frozen models."""

    runtime: RuntimeName = "pytorch"
    """What computes the language model: llama.cpp answers on the quantized weights of a GGUF file, as --lm
    model.Q4_K_M.gguf."""
    encoder: Annotated[tuple[str, ...], Metavar("FOLDER ...")] = ()
    """Encoder, if it has moved since training; for several adapters by modality, as image=FOLDER."""
    anyway: bool = False
    """Accept a language model or encoder other than the one used in training, if its sizes are the same."""

    def only(self, used: Collection[str], what: str) -> None:
        """Raise RunError for an option that was given and isn't among those that `what` uses."""
        for option in fields(self):
            if option.name not in used and getattr(self, option.name) != option.default:
                raise RunError(f"--{option.name.replace('_', '-')} does nothing with {what}; leave it out")


@dataclass
class EvalConfig:
    """A run, and what to ask it. Without media it is scored on what was held out."""

    run: Annotated[tuple[str, ...], Metavar("RUN ...")] = ()
    """Run, checkpoint or adapter folder to score or ask; for media also a Hub id. Default: the newest run. Several by
    modality: image=runs/a audio=runs/b."""
    image: Files = ()
    """Images to answer about."""
    audio: Files = ()
    """Sounds to answer about."""
    video: Files = ()
    """Videos to answer about."""
    prompt: Annotated[str | None, Metavar("TEXT")] = None
    """Question about the media; <image>, <audio>, <video> place them in it, "" asks for a caption. Default: a chat."""
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    texts: TextOptions = field(default_factory=TextOptions)
    comparison: ComparisonOptions = field(default_factory=ComparisonOptions)
    sharing: SharingOptions = field(default_factory=SharingOptions)
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    models: ModelOptions = field(default_factory=ModelOptions)

    @property
    def media(self) -> dict[str, list[Path]]:
        """Modality -> the files to answer about."""
        files = {"image": self.image, "audio": self.audio, "video": self.video}
        return {modality: list(paths) for modality, paths in files.items() if paths}


def read_config(args: Sequence[str] | None, prog: str, description: str, examples: Sequence[str] = ()) -> EvalConfig:
    """The options on a command line (None: this process's).

    Raises RunError for a value out of range and a --write that can't be written, AdapterError for a --top-p without a
    --temperature, ScoreError for an unknown task or prompt.
    """
    config = parse(
        EvalConfig, args, prog=prog, description=description, examples=examples, renamed=RENAMED, path="--run"
    )
    check_config(config)
    return config


def check_config(config: EvalConfig) -> None:
    """The checks of `read_config`, for a config made in another way."""
    check_ranges(config, RunError)
    config.answers.decoding(1)
    if config.sharing.push:
        config.models.only({option.name for option in fields(LanguageModelOptions)}, "--push")
    if config.texts.write:
        from periscope.places import check_new_file

        check_new_file("--write", config.texts.write)
    if config.scoring.task:
        find_benchmark(config.scoring.task).prompt_of(config.scoring.prompt_of)


def check_places(config: EvalConfig) -> None:
    """Raise RunError for a run, a medium, a feature set, a texts file or a folder of media that isn't there, and
    AdapterError or PrecomputeError for a model that isn't: before torch is imported, which takes seconds.
    """
    from periscope.places import check_media
    from periscope.training.run import newest_run

    captions = config.texts.write and config.scoring.data and not config.texts.loss_drop  # of a folder
    hub = bool(config.media or config.sharing.push or captions)
    for flag, files in (("image", config.image), ("audio", config.audio), ("video", config.video)):
        check_media(files, f"--{flag} ", [flag])
    if config.prompt is not None and not config.media:
        raise RunError("--prompt asks about a picture, sound or clip: pass --image, --audio or --video FILE with it")
    scoring = config.scoring
    for flag, place in (
        ("features", scoring.features),
        ("text", scoring.text),
        ("data", scoring.data),
        ("answers", scoring.answers),
    ):
        if flag == "features" and is_hub_set(place):
            hub_set(place)
        elif place is not None and not place.exists():
            near = meant(Path("features"), place.name) or hint(place) if flag == "features" else ""
            raise RunError(
                f"--{flag} {place}: there is no such {'folder' if flag in ('features', 'data') else 'file'}{near}"
            )
    runs = config.run or (str(newest_run(Path("runs"))),)
    if config.sharing.push:
        from periscope.hub_repo import check_push

        check_push(config.sharing.push, AdapterError)
    if hub:
        shared = LanguageModelOptions(lm=config.models.lm)  # without the encoder
        readable = check_adapters(runs, shared if config.sharing.push else config.models)
        for modality, named in config.media.items():
            if modality not in readable:
                raise RunError(f"{named[0]} was given as {modality}, and the adapter reads {' and '.join(readable)}")
    elif len(runs) > 1:
        raise RunError("several adapters together answer about media: pass --image, --audio or --video FILE with them")
    else:
        check_scored(runs, config.models, scoring, config.texts.loss_drop)


def check_adapters(runs: Sequence[str], models: "LanguageModelOptions") -> list[str]:
    """The modalities that the adapters of runs, RUN or MODALITY=RUN each, read.

    Raises RunError, AdapterError or PrecomputeError for a run, a language model or an encoder that isn't there.
    """
    from periscope.places import check_models, find_adapters, split_modality

    adapters = [adapter for run in runs for adapter in find_adapters(run)]
    if isinstance(models, ModelOptions):
        encoders = dict(split_modality(place) for place in models.encoder)
        check_models(adapters, models.lm, models.runtime, models.precision, encoders)
    else:
        check_models(adapters, models.lm)
    return [config.modality for _, config in adapters]


def check_scored(runs: Sequence[str], models: "ModelOptions", scoring: ScoringOptions, split: str) -> None:
    """As `check_adapters`, for runs, checkpoints and adapter folders to be scored, or whose texts of a split are ranked
    ("": none), on the set that is named or their own.

    Raises FeatureSetError for a set that isn't one.
    """
    from periscope.adapters.io.schema import read_adapter_config
    from periscope.places import check_models, check_run, find_checkpoint, no_set, own_set, split_modality
    from periscope.shards.manifest import load_manifest

    for run in runs:
        check_run(run, hub=False)
        modality, path = split_modality(run)
        place = find_checkpoint(Path(path), scoring.last)
        read = [(folder, read_adapter_config(folder)) for folder in place.adapters.values()]
        check_models(read, models.lm, models.runtime)
        if is_hub_set(scoring.features):
            continue
        if scoring.features is None and place.run is None:
            raise no_set(Path(path))
        settings = place.run.config if place.run else None
        features = scoring.features or Path(own_set(settings.features if settings else (), modality))
        load_manifest(features)
        if split:
            text = scoring.text or (settings.data.text if settings else None)
            check_split(split, features, Path(text) if text else None)


def check_split(split: str, features: Path, text: Path | None) -> None:
    """Raise RunError for a split that no text about a medium is in. text: the file, where it isn't the set's own; what
    isn't said there of train and held out only the whole set tells.
    """
    from periscope.shards.manifest import HELDOUT, TEXTS
    from periscope.shards.texts import splits_in

    if split == "all" or (text and split in ("train", "heldout")):
        return
    heldout = features / HELDOUT
    keys = heldout.read_text(encoding="utf-8").split() if heldout.is_file() else []
    found = set()
    for name in splits_in(text or features / TEXTS, frozenset(keys)):
        if name == split:
            return
        found.add(name)
    raise no_split(split, features, sorted(found))


def no_split(split: str, features: Path, there: Sequence[str]) -> RunError:
    """What to raise for a split that isn't there."""
    return RunError(f"--loss-drop {split}: {features} has no such texts; it has {', '.join(there)}, or all")


# The `periscope` commands below are parts of eval.py with positional arguments; they share its groups of options.


@dataclass
class AskConfig:
    """`periscope ask`: answer one question about media."""

    run: Positional[Annotated[str, Metavar("RUN")]]
    """Run, adapter folder or Hub id; several by modality: image=runs/a,audio=runs/b."""
    words: Positional[Annotated[tuple[str, ...], Metavar("FILE ... QUESTION")]] = ()
    """Images, sounds or videos, and the question about them; "" asks for a caption."""
    answers: DecodingOptions = field(default_factory=DecodingOptions)
    models: ModelOptions = field(default_factory=ModelOptions)

    @property
    def media(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(map(Path, self.words[:-1]))

    @property
    def question(self) -> str:
        """The question; "" asks for a caption."""
        return self.words[-1]


@dataclass
class ChatConfig:
    """`periscope chat`: answer questions about media from the keyboard."""

    run: Positional[Annotated[str, Metavar("RUN")]]
    """Run, adapter folder or Hub id; several by modality: image=runs/a,audio=runs/b."""
    media: Positional[Annotated[tuple[Path, ...], Metavar("FILE ...")]] = ()
    """Images, sounds or videos to begin with."""
    answers: DecodingOptions = field(default_factory=DecodingOptions)
    models: ModelOptions = field(default_factory=ModelOptions)


@dataclass
class CaptionConfig:
    """`periscope caption`: caption a folder of media."""

    out: Annotated[Path, Metavar("FILE")]
    """The .jsonl file to write, which must not exist; train.py --text reads it."""
    words: Positional[Annotated[tuple[str, ...], Metavar("[RUN] FOLDER")]] = ()
    """Run, adapter folder or Hub id, unless --with names another model; and the folder with the media."""
    with_: Annotated[str, Metavar("MODEL")] = ""
    """Caption images by this image-text-to-text model of transformers, a folder or Hub id, instead of a run."""
    prompt: Annotated[str, Metavar("TEXT")] = ""
    """What that model is asked (default: "Describe the image.")."""
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    models: ModelOptions = field(default_factory=ModelOptions)


@dataclass
class CompareConfig:
    """`periscope compare`: several runs side by side."""

    runs: Positional[Annotated[tuple[Path, ...], Metavar("RUN ...")]] = ()
    """Runs, or folders of runs."""
    out: Annotated[Path, Metavar("FILE")] = COMPARISON
    """File for the table; the picture goes beside it as .png."""


@dataclass
class ServerLimits:
    """What a request may take, so that no one fills the memory or keeps the others waiting."""

    max_upload: Annotated[int, Meta(ge=1), Metavar("BYTES")] = 20_000_000
    """Bytes of a request, its media included."""
    max_pixels: Annotated[int, Meta(ge=1), Metavar("N")] = 50_000_000
    """Pixels per picture; a quarter of it per WebP, AVIF, HEIC or JPEG 2000 picture and per frame of a clip."""
    max_seconds: Annotated[float, Meta(gt=0), Metavar("SECONDS")] = 20.0
    """Seconds of processor time for decoding one medium, or four times as many by the clock."""
    max_media: Annotated[int, Meta(ge=0), Metavar("N")] = 16
    """Pictures, sounds and clips in a request, earlier messages included."""
    max_answer: Annotated[int, Meta(ge=1), Metavar("N")] = 1024
    """Tokens of an answer; 256 of them where a request doesn't say."""
    max_waiting: Annotated[int, Meta(ge=0), Metavar("N")] = 256
    """Requests that may wait for their turn; others are refused with status 503."""


@dataclass
class ServeConfig:
    """`periscope serve`: adapters behind an API like OpenAI's."""

    runs: Positional[Annotated[tuple[str, ...], Metavar("RUN ...")]] = ()
    """Runs, adapter folders or Hub ids, each a model with a copy of its language model; several senses of one model by
    modality: image=runs/a,audio=runs/b."""
    host: Annotated[str, Metavar("ADDRESS")] = "127.0.0.1"
    """Address to listen at; by default this machine alone reaches it."""
    port: Annotated[int, Meta(ge=0, le=65535), Metavar("N")] = 8000
    """Port to listen at; 0: any that is free."""
    token: Annotated[str, Metavar("SECRET")] = ""
    """What clients must send as their API key; needed with any other --host. Default: the environment variable
    PERISCOPE_TOKEN."""
    fetch_urls: bool = False
    """Fetch media at public http and https addresses that requests name; without it only data: URLs are read."""
    page: bool = True
    """A page for browsers at /, where Gradio is installed (the extra `page`)."""
    limits: ServerLimits = field(default_factory=ServerLimits)
    models: ModelOptions = field(default_factory=ModelOptions)


@dataclass
class PushConfig:
    """`periscope push`: share an adapter on the Hub."""

    run: Positional[Annotated[str, Metavar("RUN")]]
    """Run or adapter folder; of several adapters in a run, one by modality: image=RUN."""
    to: Positional[Annotated[str, Metavar("OWNER/NAME")]]
    """The repository on the Hugging Face Hub."""
    sharing: PushOptions = field(default_factory=PushOptions)
    models: LanguageModelOptions = field(default_factory=LanguageModelOptions)
