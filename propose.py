"""From a folder of media and this machine to the three commands to run: `periscope init`."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from periscope.console import command
from periscope.device import choose_device
from periscope.errors import PrecomputeError, RunError
from periscope.precompute.encoders.names import ENCODERS
from periscope.precompute.plan import describe_unused, without_words
from periscope.precompute.remote import collected
from periscope.precompute.sources import Collection
from periscope.shards.manifest import load_manifest
from periscope.text import printable
from periscope.training.config import InitConfig, PlanConfig

if TYPE_CHECKING:  # imports torch, which takes seconds and only a machine with a GPU needs
    from periscope.forecast import Card

Ask = Callable[[str], str]

ADAPTER = "mlp16"
AT_ONCE = 8  # texts that must fit into a forward pass
ROOMY = 12  # GiB of a card for the larger image encoder
# Instruct models that need no licence to be accepted, largest first.
LANGUAGE_MODELS = (
    "Qwen/Qwen3-4B-Instruct-2507",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen2.5-0.5B-Instruct",
    "HuggingFaceTB/SmolLM2-360M-Instruct",
    "HuggingFaceTB/SmolLM2-135M-Instruct",
)
ON_A_CPU = "HuggingFaceTB/SmolLM2-135M-Instruct"
NOUNS = {"image": "images", "audio": "sounds", "video": "clips", "vector": "ready-made vectors"}
PROMPTS = {"image": "What is in the picture?", "audio": "What can be heard?", "video": "What happens in the clip?"}


@dataclass(frozen=True)
class Choice:
    """An option's value, and why."""

    value: str
    why: str


def propose(config: InitConfig) -> None:
    """Print what the folder holds, what was chosen and why, and the three commands.

    Asks which media where there are several kinds, and for the language model, unless `config.yes` or the input isn't a
    terminal. Raises PrecomputeError for a folder without media or words.
    """
    ask = input if sys.stdin.isatty() and not config.yes else _defaults
    with collected(config.data) as collection:
        modality = _modality(collection, ask)
        media = [origin for origin, medium in collection.media.items() if medium.modality == modality]
        texts = sum(1 for words in collection.words if set(words.media).intersection(media))
        print(f"{printable(config.data)}: {_number(len(media), modality)}, {texts} text{'s' * (texts != 1)} about them")
        print("".join(f"{printable(line)}\n" for line in describe_unused(collection)), end="")
        if not texts:
            raise PrecomputeError(without_words(collection).removeprefix("warning: ") or "no text is about them")
    card = this_card()
    encoder = encoder_for(modality, card)
    lm = language_model_for(encoder.value, card)
    answer = ask(f"language model [{lm.value}]: ").strip()
    lm = Choice(answer, "as you asked") if answer else lm
    print(f"encoder: {encoder.value}, {encoder.why}\nlanguage model: {lm.value}, {lm.why}")
    print(f"adapter: {ADAPTER}, 16 tokens a medium, the usual first choice\n")
    print("\n".join(commands(config.data, modality, encoder.value, lm.value, media[0])))
    from periscope.hub_repo import hub_reachable  # takes a while to import

    if not hub_reachable():
        print("\nThese need downloads, and the Hub can't be reached from here. To try it out, with random models:\n")
        print("\n".join(commands(config.data, modality, encoder.value, ON_A_CPU, media[0], tiny=True)))


def commands(data: Path, modality: str, encoder: str, lm: str, example: str, tiny: bool = False) -> list[str]:
    """The three command lines. example: a medium, as the collection names it · tiny: with random models."""
    name = (data.resolve().stem or "data") + "-tiny" * tiny
    features = features_folder(name, "tiny " * tiny + encoder)
    small = ["--tiny"] * tiny
    encode = ["--data", data, "--encoder", encoder, *small]
    encode += ["--out", features] if features.name != name else []
    run = next(run for run in _numbered(name) if not Path("runs", run).exists())
    seen = [f"--{modality}", data / example if data.is_dir() else "FILE"]
    return [
        command("precompute", *encode),
        command("train", "--adapter", ADAPTER, "--features", features, "--lm", lm, "--name", run, *small),
        command("eval", "--run", Path("runs", run), *seen, "--prompt", PROMPTS[modality]),
    ]


def features_folder(name: str, encoder: str) -> Path:
    """Where precompute.py writes: features/NAME, or with the encoder's name where that is another encoder's set."""
    folder = Path("features", name)
    if (folder / "manifest.json").is_file() and load_manifest(folder)["encoder"]["name"] != encoder:
        return folder.with_name(f"{name}-{encoder}")
    return folder


def this_card() -> "Card | None":
    """This machine's GPU; None: train on the CPU. Raises DeviceError for a GPU that torch can't use."""
    if choose_device() == "cpu":
        return None
    import torch

    from periscope.forecast import GIB, Card

    facts = torch.cuda.get_device_properties(0)
    return Card(facts.name, round(facts.total_memory / GIB), 1.0)


def encoder_for(modality: str, card: "Card | None") -> Choice:
    """A usual encoder for this kind of media, as large as the machine allows."""
    if modality == "audio":
        name, more = "ast", "; for speech whisper-base is the better one"
    elif card is None:
        name, more = "clip-b-32", ", the fastest on a CPU"
    else:
        name, more = ("siglip2-so400m-384" if card.memory >= ROOMY else "siglip2-b"), ""
    more += "; it looks at 8 frames of each clip" if modality == "video" else ""
    return Choice(name, f"{ENCODERS[name].about}, {ENCODERS[name].size} to download{more}")


def language_model_for(encoder: str, card: "Card | None") -> Choice:
    """The largest of some usual instruct models of which a training fits the card in fp16."""
    if card is None:
        return Choice(ON_A_CPU, "because without a GPU a larger one takes hours")
    from periscope.forecast import Forecast

    for name in LANGUAGE_MODELS:
        fit = Forecast(PlanConfig(encoder, ADAPTER, name)).on(card)
        if fit.precision == "fp16" and not fit.checkpoint_every and fit.micro_batch >= AT_ONCE:
            room = f"{card.name}, {card.memory} GB"
            return Choice(name, f"the largest of some usual ones that can be trained with in fp16 on {room}")
    return Choice(LANGUAGE_MODELS[-1], f"the smallest, because {card.name} has {card.memory} GB")


def _modality(collection: Collection, ask: Ask) -> str:
    """The kind of media to train on. Raises PrecomputeError for ready-made vectors, RunError for a kind not there."""
    counts = Counter(medium.modality for medium in collection.media.values() if medium.modality in PROMPTS)
    if not counts:
        raise PrecomputeError("these are ready-made vectors; encode them with python precompute.py --data PATH")
    most = counts.most_common(1)[0][0]
    if len(counts) == 1:
        return most
    listed = ", ".join(_number(number, name) for name, number in counts.most_common())
    answer = ask(f"there are {listed}; which are to be seen or heard, {' or '.join(counts)}? [{most}]: ").strip()
    if answer and answer not in counts:
        raise RunError(f"{answer!r} is none of {', '.join(counts)}")
    return answer or most


def _number(number: int, modality: str) -> str:
    noun = NOUNS[modality]
    return f"{number} {noun if number != 1 else noun.removesuffix('s')}"


def _defaults(_: str) -> str:
    """Answer nothing, so that the default in brackets is taken."""
    return ""


def _numbered(name: str) -> Iterator[str]:
    """A name, and then with the numbers from 2."""
    yield name
    yield from (f"{name}-{number}" for number in count(2))
