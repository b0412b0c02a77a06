"""The `periscope` command: train.py, eval.py and precompute.py under one name, with the tools around them.

`periscope` alone lists the commands. This module imports a command only when it runs, so that the list appears at once.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from periscope.console import announce, run, unknown_command
from periscope.errors import AdapterError, RunError

if TYPE_CHECKING:
    from periscope.evaluation.config import DecodingOptions, LanguageModelOptions, ModelOptions


@dataclass(frozen=True)
class Command:
    """A command. target: "module:function", where the function takes no arguments and reads `sys.argv`."""

    target: str
    help: str

    def load(self) -> Callable[[], None]:
        """Import the module and return the function."""
        module, _, function = self.target.partition(":")
        return getattr(importlib.import_module(module), function)


GROUPS: Mapping[str, Mapping[str, Command]] = {
    "Encode, train, score": {
        "init": Command("periscope.cli:init", "look at a folder and this machine, and say which commands to run"),
        "plan": Command("periscope.cli:plan", "say what a training will need: downloads, disk, memory, time"),
        "precompute": Command(
            "periscope.precompute.cli:main", "encode images, sounds or videos once, with a frozen encoder"
        ),
        "train": Command("periscope.train:main", "train an adapter on cached features for a frozen language model"),
        "eval": Command("periscope.eval:main", "score a run on held-out data or a benchmark, with controls"),
        "compare": Command("periscope.cli:compare", "compare runs in a table and a picture"),
    },
    "Use an adapter": {
        "ask": Command("periscope.cli:ask", "answer a question about images, sounds or videos"),
        "chat": Command("periscope.cli:chat", "talk about them at the keyboard"),
        "caption": Command("periscope.cli:caption", "write a caption for every file in a folder"),
        "serve": Command("periscope.cli:serve", "answer over HTTP, with an API like OpenAI's"),
    },
    "Share and convert": {
        "push": Command("periscope.cli:push", "push an adapter to the Hugging Face Hub"),
        "export": Command("periscope.cli:export", "export an adapter to llama.cpp, transformers, vLLM or PEFT"),
        "import": Command("periscope.cli:import_", "import an adapter from eP-ALM, LLaVA and others"),
    },
    "Look after feature sets": {
        "features": Command(
            "periscope.precompute.__main__:main", "verify, inspect, merge, recode, push or fetch feature sets"
        ),
    },
}
COMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}
# Tools with subcommands: "module:function", whose signature tyro turns into flags.
EXPORTS = {
    "gguf": "periscope.exports.__main__:gguf",
    "llava": "periscope.exports.__main__:llava",
    "embeds": "periscope.exports.__main__:embeds",
    "check": "periscope.exports.__main__:check",
    "prompt": "periscope.exports.__main__:prompt",
    "merged": "periscope.exports.__main__:merged",
}
IMPORTS = {
    name: f"periscope.adapters.__main__:import_{name.replace('-', '_')}"
    for name in ("epalm", "mamba-ssm", "llava", "llava-pretrain", "prismatic", "cobra", "mapl", "clipcap", "limber")
}


def main() -> None:
    """Run the command named by the first argument."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        sys.argv = [f"periscope {name}", *arguments]
        run(lambda: COMMANDS[name].load()())
    elif name in ("-h", "--help", "help"):
        run(lambda: print(listing()))
    elif name in ("-V", "--version"):
        from periscope import __version__

        print(f"periscope {__version__}")
    else:
        unknown_command("periscope", name, COMMANDS)


def listing() -> str:
    """All commands by group, a line each."""
    lines = ["usage: periscope COMMAND ...", "", "Give a frozen language model eyes and ears with a small adapter."]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<12}{entry.help}" for name, entry in group.items())]
    lines += ["", "periscope COMMAND --help shows a command's options, periscope --version the version."]
    return "\n".join(lines)


def ask() -> None:
    """`periscope ask RUN FILE ... QUESTION`"""
    from periscope.evaluation.config import AskConfig

    examples = [
        'periscope ask runs/first cat.jpg "What is it?"',
        'periscope ask user/name a.jpg b.jpg "Which is larger?"',
    ]
    config = _read(AskConfig, "Answer a question about images, sounds or videos.", examples)
    if not config.media:
        raise RunError("periscope ask needs a run, a file and a question: periscope ask RUN FILE ... QUESTION")
    if Path(config.run).is_file():
        raise RunError(f"{config.run} is a file, not a run; the run comes first: periscope ask RUN FILE ... QUESTION")
    _respond(config.run, config.media, config.question, config.answers, config.models)


def chat() -> None:
    """`periscope chat RUN [FILE ...]`"""
    from periscope.evaluation.config import ChatConfig

    config = _read(ChatConfig, "Talk about images, sounds or videos at the keyboard. What was said is remembered.",
                   ["periscope chat runs/first cat.jpg"])  # fmt: skip
    if config.media and not config.media[-1].exists() and str(config.media[-1]).endswith("?"):
        raise RunError(
            "periscope chat takes files alone: type the question when it waits, or ask it with periscope ask"
        )
    _respond(config.run, config.media, None, config.answers, config.models)


def caption() -> None:
    """`periscope caption RUN FOLDER --out FILE`, or `periscope caption --with MODEL FOLDER --out FILE`"""
    from periscope.adapters.lm.files.find import find_model
    from periscope.evaluation.config import CaptionConfig
    from periscope.places import check_folder, check_media, check_new_file

    examples = [
        "periscope caption runs/first photos/ --out new.jsonl",
        "periscope caption --with HuggingFaceTB/SmolVLM-256M-Instruct photos/ --out new.jsonl",
    ]
    config = _read(CaptionConfig, "Write a caption for every image, sound or video in a folder.", examples)
    if len(config.words) != (1 if config.with_ else 2):
        given = "the folder alone: periscope caption --with MODEL FOLDER" if config.with_ else "a run and a folder"
        raise RunError(f"periscope caption needs {given}, and --out FILE")
    if config.prompt and not config.with_:
        raise RunError("--prompt is what the model of --with is asked; a run has a caption prompt of its own")
    if config.with_:
        config.models.only({"precision", "device"}, "--with, whose model is no run's")
    folder = Path(config.words[-1])
    check_media([folder])
    modalities = _check(config.models, *(() if config.with_ else config.words[:1]))
    check_folder(folder, modalities or ["image"])
    if config.with_:
        find_model(config.with_, "--with")
    check_new_file("--out", config.out)
    device = _device(config.models)
    from periscope.evaluation import commands

    rest = (config.out, config.answers, config.models, device)
    if config.with_:
        commands.recaption_folder(config.with_, config.prompt, folder, *rest)
    else:
        commands.caption_folder(_adapters(config.words[0]), folder, *rest)


def init() -> None:
    """`periscope init FOLDER`"""
    from periscope.paths import meant
    from periscope.training.config import InitConfig

    config = _read(InitConfig, "Look at a folder of media and this machine, and say which three commands to run.",
                   ["periscope init photos/", "periscope init photos/ --yes"])  # fmt: skip
    if not config.data.exists():
        raise RunError(f"{config.data}: there is no such folder or file{meant(config.data.parent, config.data.name)}")
    announce(f"init: looking at {config.data}")
    from periscope.propose import propose

    propose(config)


def plan() -> None:
    """`periscope plan`"""
    from periscope.training.config import PlanConfig

    examples = [
        "periscope plan --lm Qwen/Qwen3-4B-Instruct-2507 --media 50000",
        "periscope plan --encoder dinov2-l --adapter linear --lm models/mine --texts 250000",
    ]
    about = "Say what encoding and training will need, before anything is downloaded, and which cards it fits."
    config = _read(PlanConfig, about, examples)
    announce("plan: counting, without any download")
    from periscope.places import check_plan

    source = check_plan(config)
    from periscope.forecast import print_plan

    print_plan(config, source)


def serve() -> None:
    """`periscope serve RUN ...`"""
    from periscope.evaluation.config import ServeConfig

    examples = [
        "periscope serve runs/first",
        "periscope serve runs/first runs/second --port 8001",
        "periscope serve image=runs/eyes,audio=runs/ears",
    ]
    about = "Serve adapters at /v1/chat/completions, as OpenAI's API, with pictures and sounds in messages."
    config = _read(ServeConfig, about, examples)
    if not config.runs:
        raise RunError("periscope serve needs the runs to serve: periscope serve RUN ...")
    names = [_served_name(name) for name in config.runs]
    if len(set(names)) < len(names):
        raise RunError(f"two models would have one name: {', '.join(names)}; give their folders other names")
    from periscope.serving.access import checked_token

    token = checked_token(config)
    _check(config.models, *config.runs)
    device = _device(config.models)
    from periscope.evaluation.commands import load_models
    from periscope.serving.stand_ins import stand_ins_of
    from periscope.serving.start import serve

    places = {name: _adapters(run) for name, run in zip(names, config.runs, strict=True)}
    models = {name: load_models(adapters, config.models, device) for name, adapters in places.items()}
    serve(models, config, token, {name: stand_ins_of(models[name], places[name]) for name in models})


def _served_name(run: str) -> str:
    """What clients call the model of a RUN: its folder's name, its name on the Hub, or several joined by `+`."""
    from periscope.adapters.names import is_hub_adapter

    paths = [part.rpartition("=")[2] for part in run.split(",")]
    return "+".join(path if is_hub_adapter(path) else Path(path).resolve().name for path in paths)


def compare() -> None:
    """`periscope compare RUN ...`"""
    from periscope.evaluation.config import CompareConfig

    config = _read(
        CompareConfig, "Compare runs in a table and a picture. Loads no model.", ["periscope compare runs/*"]
    )
    if not config.runs:
        raise RunError("periscope compare needs the runs to compare: periscope compare RUN ...")
    announce(f"compare: reading {' '.join(map(str, config.runs[:3]))}{' ...' * (len(config.runs) > 3)}")
    from periscope.evaluation.report.compare import write_comparison

    write_comparison(config.runs, config.out)


def push() -> None:
    """`periscope push RUN OWNER/NAME`"""
    from periscope.evaluation.config import PushConfig
    from periscope.hub_repo import check_push

    config = _read(PushConfig, "Push an adapter to the Hugging Face Hub, after showing everything to be uploaded.",
                   ["periscope push runs/first user/name --license mit"])  # fmt: skip
    _check(config.models, config.run)
    check_push(config.to, AdapterError)
    device = _device(config.models)
    from periscope.evaluation import commands

    commands.push(_adapters(config.run), config.to, config.sharing, config.models, device)


def export() -> None:
    """`periscope export gguf|llava|embeds|check|prompt|merged RUN ...`"""
    _subcommands(EXPORTS, "Export an adapter for other programs.")


def import_() -> None:
    """`periscope import epalm|llava|mamba-ssm|... FILE ...`"""
    _subcommands(IMPORTS, "Import an adapter, or a language model, from another program.")


def _read(cls: Any, description: str, examples: list[str]) -> Any:
    """The command line as a `cls`, with its ranges checked."""
    from periscope.flags import check_ranges, parse

    config = parse(cls, prog=sys.argv[0], description=description, examples=examples)
    check_ranges(config, RunError)
    return config


def _respond(
    run_name: str, media: tuple[Path, ...], question: str | None, answers: "DecodingOptions", models: "ModelOptions"
) -> None:
    from periscope.places import check_media

    answers.decoding(1)  # refuses what doesn't go together, before anything is loaded
    check_media(media)
    check_media(media, "", _check(models, run_name))
    device = _device(models)
    from periscope.evaluation import commands

    commands.respond(_adapters(run_name), media, question, answers, models, device)


def _check(models: "LanguageModelOptions", *runs: str) -> list[str]:
    """Say what is loaded, and refuse what isn't there before anything large is imported; the runs' modalities."""
    from periscope.evaluation.config import check_adapters

    announce(f"{sys.argv[0]}: loading {' '.join(runs) or 'the model'}")
    return check_adapters([part for run in runs for part in _parts(run)], models)


def _device(models: "LanguageModelOptions") -> str:
    from periscope.device import choose_device

    return choose_device(models.device)


def _parts(name: str) -> list[str]:
    """RUN, or MODALITY=RUN,MODALITY=RUN, as a list."""
    parts = name.split(",")
    return parts if all("=" in part for part in parts) else [name]


def _adapters(name: str) -> dict[str | None, Path]:
    """RUN, or MODALITY=RUN,MODALITY=RUN, as modality -> path."""
    from periscope.evaluation.scored_run import named_runs

    return named_runs(_parts(name))


def _subcommands(tools: Mapping[str, str], description: str) -> None:
    name = next(iter(sys.argv[1:]), "-")
    if not name.startswith("-") and name not in tools:
        unknown_command(sys.argv[0], name, tools)
    announce(f"{sys.argv[0]}: loading the tools")
    from periscope.flags import run_tool

    run_tool({name: Command(target, "").load() for name, target in tools.items()}, description, sys.argv[0])
