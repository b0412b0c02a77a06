"""The flags of eval.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from periscope.errors import RunError
from periscope.evaluation.tasks.benchmarks import find_benchmark

# Each help text says itself what happens without the flag; tyro's own "(default: None)" stays away.
Folder = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Files = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE ...", help_behavior_hint="")]
Name = Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")]
Words = Annotated[str | None, tyro.conf.arg(metavar="WORDS", help_behavior_hint="")]
Count = Annotated[int, tyro.conf.arg(metavar="N")]
Switch = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]


@dataclass
class ScoringOptions:
    """What is scored, and beside what. Without any flag: all that the run's feature set holds out."""

    task: Name = ""
    """Score as this benchmark does, with its prompt and decoding (without: as the texts say)."""
    tasks: Switch = False
    """Show the tasks, and do no more."""
    prompt_of: Name = ""
    """Whose prompt of the task's: cobra, mamba-vl, or own, as the adapter was trained (without: the task's first)."""
    features: Folder = None
    """Feature set to be scored on (without: the one the run was trained on)."""
    text: File = None
    """Another texts file for the same media (without: the one the run was trained on)."""
    partial: Switch = False
    """Accept a texts file that names media the feature set lacks; they are counted and left out."""
    limit: Count = 0
    """Take the first so many texts of each split only; 0: all."""
    controls: tuple[Literal["shuffled", "blank", "none"], ...] = ("shuffled", "blank", "none")
    """Answers to compare with: from another medium's features, from their mean, without any."""
    clip_score: Switch = False
    """CLIPScore of captions too, by the text tower of the encoder (open_clip's), which is loaded for it."""
    data: Folder = None
    """The media the features come from, so that report.html can play sounds and show a clip's frames; with --write, the
    media to caption."""


@dataclass
class CaptionOptions:
    """Texts that their media explain, and new captions: files for train.py --text."""

    gain: Annotated[str, tyro.conf.arg(metavar="SPLIT", help_behavior_hint="")] = ""
    """Rank the texts of this split (train, heldout ..., or all) by what looking gains on each."""
    drop: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.0
    """Share of the ranked texts, the worst, that --write leaves out; 0: those that cost more with their medium."""
    write: File = None
    """Where to: with --gain all texts without the worst; else new captions, of the media of --data or of the feature
    set."""


@dataclass
class ComparisonOptions:
    """Several runs side by side."""

    compare: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN ...", help_behavior_hint="")] = ()
    """Runs to put side by side in a table and a picture; no model is loaded."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("runs/compare.md")
    """Where the table goes; the picture stands beside it as .png."""


@dataclass
class SharingOptions:
    """The adapter on the Hugging Face Hub."""

    push: Annotated[str, tyro.conf.arg(metavar="OWNER/NAME", help_behavior_hint="")] = ""
    """Share the adapter under this name, after showing all that would leave."""
    yes: Switch = False
    """Don't ask before."""
    private: Switch = False
    """Make the repository a private one."""
    public_samples: Switch = False
    """Also share a few held-out prompts, references and pictures."""
    license: Name = ""
    """The adapter's licence, as the Hub spells it (mit, apache-2.0, cc-by-4.0 ...)."""
    dataset: Names = ()
    """Hub ids of what it was trained on."""


@dataclass
class ModelOptions:
    """The frozen models, and how they answer."""

    lm: Name = ""
    """Where the run's language model is now, if it has moved."""
    encoder: Names = ()
    """Where the adapter's encoder is now, if it has moved; of several adapters by modality, as image=FOLDER."""
    precision: Literal["auto", "fp32", "fp16", "bf16", "8bit", "4bit"] = "auto"
    """How the frozen weights are held; need not be as in training."""
    batch: Count = 64
    """Answers generated at once; changes speed and memory, not the answers."""
    beams: Count = 0
    """Beams of the search for an answer; 1: greedy, 0: as the task has it, else greedy."""
    max_new_tokens: Count = 0
    """Longest answer, in tokens; 0: as the task has it, else 64."""
    anyway: Switch = False
    """Take another language model or encoder than the adapter was trained with, if its sizes are the same."""
    device: Name = "auto"
    """auto, cuda, cuda:N or cpu (without: auto)."""


@dataclass
class EvalConfig:
    """A run, and what to ask it about; without media it is scored on what was held out."""

    run: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN ...", help_behavior_hint="")] = ()
    """A run, an adapter folder or a name on the Hub (without: the newest run), or several by modality, as image=runs/a
    audio=runs/b. To be scored it must be a run."""
    image: Files = ()
    """Pictures to answer about, through the real encoder."""
    audio: Files = ()
    """Sounds to answer about."""
    video: Files = ()
    """Clips to answer about."""
    prompt: Words = None
    """What to ask about them, <image>, <audio> and <video> saying where the next of each stands; "" for a caption
    (without: a chat)."""
    scores: ScoringOptions = field(default_factory=ScoringOptions)
    words: CaptionOptions = field(default_factory=CaptionOptions)
    comparison: ComparisonOptions = field(default_factory=ComparisonOptions)
    sharing: SharingOptions = field(default_factory=SharingOptions)
    models: ModelOptions = field(default_factory=ModelOptions)

    @property
    def media(self) -> dict[str, list[Path]]:
        """Modality -> the files to answer about."""
        return {name: list(given) for name in ("image", "audio", "video") if (given := getattr(self, name))}


def read_options(about: str) -> EvalConfig:
    """The flags of the command line; `about` is what --help says first. Raises RunError for numbers that can't be,
    ScoreError for a task or a prompt that there isn't.
    """
    options = tyro.cli(EvalConfig, description=about, config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff))
    models, drop = options.models, options.words.drop
    if models.batch < 1 or min(options.scores.limit, models.max_new_tokens, models.beams) < 0:
        raise RunError("--batch must be at least 1, and --limit, --max-new-tokens and --beams can't be negative")
    if not 0 <= drop < 1:
        raise RunError(f"--drop {drop} isn't a share: it must be at least 0 and below 1")
    if options.words.write:
        _make_room(options.words.write)
    if options.scores.task:
        find_benchmark(options.scores.task).prompt_of(options.scores.prompt_of)
    return options


def _make_room(out: Path) -> None:
    """Refuse a file that can't be written, before the work and not after it."""
    if out.exists():
        raise RunError(f"--write {out} exists and is never overwritten; name another file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--write {out}: its folder can't be made ({error.strerror})") from None
