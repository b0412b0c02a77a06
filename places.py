"""What commands and calls name: runs, adapters, media, models. Checked before torch is imported, which takes seconds.

What itself takes long to import is imported where it is needed.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from periscope.adapters.io.schema import AdapterConfig, read_adapter_config
from periscope.adapters.lm.files.find import find_model
from periscope.adapters.lm.runtimes.choice import check_runtime
from periscope.adapters.names import CONFIG, RuntimeName, hub_name, is_hub_adapter, kind_of
from periscope.errors import AdapterError, FeatureSetError, PrecomputeError, RunError
from periscope.paths import expanded, meant
from periscope.precompute.encoders.folders import find_folder
from periscope.precompute.encoders.hub import check_within_reach
from periscope.precompute.encoders.names import ENCODERS, check_encoder
from periscope.shards.manifest import load_manifest
from periscope.training.config import PlanConfig, named_sets
from periscope.training.memory.model_sizes import LANGUAGE_MODELS
from periscope.training.run import Run, adapter_folders, other_runs

MODALITIES = ("image", "audio", "video", "imu")
LOOKED_AT = 10_000  # files of a folder
WORDS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".md")  # ends of the names of files beside media


def split_modality(name: str) -> tuple[str | None, str]:
    """RUN, or MODALITY=RUN, as (modality, run)."""
    modality, equals, place = name.partition("=")
    return (modality, place) if equals and modality in MODALITIES else (None, name)


def check_run(name: str, hub: bool) -> None:
    """Raise RunError for a run, RUN or MODALITY=RUN, that isn't there. hub: accept names on the Hub."""
    _, place = split_modality(name)
    if not expanded(place).exists() and not (hub and is_hub_adapter(place)):
        raise no_such_run(Path(place))


def no_such_run(path: Path) -> RunError:
    """What to raise for a run that isn't there; names those that are, the likest first."""
    if repo := hub_name(str(path)):
        return RunError(f"{path} is not a run; an adapter on the Hub is named owner/name, here {repo}")
    alone = "an adapter by itself, as of the Hub, answers about --image, --audio or --video FILE; scores are a run's"
    hub = f" ({alone})" if is_hub_adapter(str(path)) else ""
    return RunError(f"{path} is not a run: there is no such folder here{hub}{other_runs(path)}")


@dataclass(frozen=True)
class Checkpoint:
    """What --run names. results: the folder that its scores are written into · run: the run that it belongs to, if any
    · adapters: its adapter folders by modality · step: as its folder is named.
    """

    results: Path
    run: Run | None
    adapters: Mapping[str, Path]
    step: str

    def adapter(self, modality: str | None) -> Path:
        """The adapter that reads `modality`, or the only one. Raises RunError when there is none."""
        if modality is None and len(self.adapters) == 1:
            return next(iter(self.adapters.values()))
        if modality is None or modality not in self.adapters:
            readable = " and ".join(self.adapters)
            raise RunError(f"{self.results} has no adapter for {modality or 'all'}; it reads {readable}")
        return self.adapters[modality]


def find_checkpoint(path: Path, last: bool = False) -> Checkpoint:
    """The checkpoint at `path`: of a run its best one (that with the lowest held-out loss), or its last one with `last`
    or where nothing is held out; or one checkpoint's folder, as runs/first/steps/000500, or an adapter folder.

    The scores of a run are written into its folder, those of one checkpoint or adapter into that one's own. It is read
    once: training may go on beside. Raises RunError for anything else.
    """
    if (path / "config.toml").is_file():
        run = Run.open(path)
        best = not last and (path / "best").is_file()
        try:
            folder = run.step_folder("best" if best else "last")
        except RunError:
            if not best:
                raise
            folder = run.step_folder()
        return Checkpoint(path, run, _adapters_in(folder), folder.name)
    if (path / CONFIG).is_file() and not path.resolve().parent.name.isdigit():
        step = read_adapter_config(path).training.get("step")
        return Checkpoint(path, None, _adapters_in(path), f"{step:06d}" if isinstance(step, int) else "")
    folder = path.parent if (path / CONFIG).is_file() else path
    adapters = _adapters_in(path)
    if not adapters:
        if not path.exists():
            raise no_such_run(path)
        raise RunError(f"{path} is not a run: it holds no config.toml and no adapter")
    home = folder.resolve().parents[1]
    around = Run(home) if (home / "config.toml").is_file() else None
    return Checkpoint(folder, around, adapters, folder.resolve().name)


def _adapters_in(folder: Path) -> dict[str, Path]:
    """The adapter folders in `folder`, or itself, by modality."""
    folders = [folder] if (folder / CONFIG).is_file() else sorted(file.parent for file in folder.glob(f"*/{CONFIG}"))
    return {read_adapter_config(each).modality: each for each in folders}


def no_set(path: Path) -> RunError:
    """What to raise for an adapter by itself that is to be scored on no set in particular."""
    return RunError(
        f"{path} is an adapter by itself, which doesn't say what to score it on: name a feature set made by its "
        "encoder, as --features features/photos"
    )


def own_set(trained: Sequence[str], modality: str | None) -> str:
    """The feature set to score, of those a run was trained on: the first, or the first of a modality that can be read.
    No other is needed.
    """
    sets = list(named_sets(trained))
    for path in sets if modality else ():
        with suppress(FeatureSetError):
            if load_manifest(Path(path))["modality"] == modality:
                return path
    return sets[0]


def find_adapters(name: str) -> list[tuple[Path, AdapterConfig]]:
    """The adapters of RUN, or the one of MODALITY=RUN: folder and adapter.json. One on the Hub is fetched.

    Raises RunError for what isn't there or holds no adapter, AdapterError for another modality, a damaged adapter.json
    and where the Hub can't give it.
    """
    check_run(name, hub=True)
    modality, place = split_modality(name)
    path = _fetched(place) if is_hub_adapter(place) else expanded(place)
    found = [(folder, read_adapter_config(folder)) for folder in adapter_folders(path)]
    readable = [config.modality for _, config in found]
    if modality not in (None, *readable):
        raise AdapterError(f"{place} is named as {modality}, but reads {' and '.join(readable)}")
    return [pair for pair in found if modality in (None, pair[1].modality)]


def one_adapter(name: str) -> tuple[Path, AdapterConfig]:
    """The only adapter of RUN, or that of MODALITY=RUN. Raises as `find_adapters`, and AdapterError for several."""
    first, *others = find_adapters(name)
    if others:
        modalities = [config.modality for _, config in (first, *others)]
        raise AdapterError(f"{name} holds adapters of {' and '.join(modalities)}; name one, as {modalities[0]}={name}")
    return first


def _fetched(name: str) -> Path:
    from periscope.adapters.io.fetch import fetch_adapter

    return fetch_adapter(name)


def check_models(
    adapters: Sequence[tuple[Path, AdapterConfig]],
    lm: str | None = None,
    runtime: RuntimeName = "pytorch",
    precision: str = "auto",
    encoders: Mapping[str | None, str] | None = None,
) -> None:
    """Raise AdapterError or PrecomputeError for a language model or an encoder of adapters that can't be there.

    lm, encoders: where these are now, if they have moved; an encoder by modality, or of all adapters under None.
    Encoders are looked for only where `encoders` is given, as {} for those that haven't moved: stored features are
    scored, and adapters shared, without them.
    """
    for place in (encoders or {}).values():
        check_encoder(str(place))
    for folder, config in adapters:
        if encoders is not None and not {None, config.modality} & set(encoders):
            _check_encoder_of(config)
        if config.lora and runtime != "pytorch":
            raise AdapterError(
                f"{folder} has LoRA weights, and {runtime} runs a file as it is: merge them (periscope export merged), "
                "convert the language model to GGUF again, and name that file"
            )
        check_runtime(runtime, lm or config.language_model_in(folder), precision)


def _check_encoder_of(config: AdapterConfig) -> None:
    name, place = (str(config.encoder.get(key) or "") for key in ("name", "id"))
    if os.path.isabs(place) and find_folder(place) is None:
        raise PrecomputeError(
            f"the adapter's encoder, {name}, can't be loaded: {place} isn't there; if it has moved, say where: "
            "--encoder FOLDER (in Python encoder=)"
        )
    check_within_reach(f"{config.encoder.get('library')}:{place}")


def check_plan(config: PlanConfig) -> str:
    """The place of the language model, or its name where its sizes are known.

    Raises RunError for what `periscope plan` can't count: an encoder without a short name, an adapter that doesn't read
    its features, a --prefix as long as the words, a language model that isn't there; AdapterError for an unknown
    adapter.
    """
    if config.encoder not in ENCODERS:
        near = get_close_matches(config.encoder, ENCODERS, 3, 0.4)
        hint = f"nearest: {', '.join(near)}; " if near else ""
        raise RunError(
            f"--encoder {config.encoder}: plan counts encoders with short names; {hint}known: {', '.join(ENCODERS)}"
        )
    kind, features = kind_of(config.adapter), ENCODERS[config.encoder].features()
    if kind not in features:
        raise RunError(
            f"--adapter {config.adapter} reads {kind}, which this encoder doesn't give; it gives {', '.join(features)}"
        )
    if config.prefix >= config.words:
        raise RunError(f"--prefix {config.prefix}: it must be fewer than the {config.words} --words, which include it")
    if config.lm in LANGUAGE_MODELS:
        return config.lm
    try:
        return find_model(config.lm)
    except AdapterError as error:
        near = get_close_matches(config.lm, LANGUAGE_MODELS, 3) or list(LANGUAGE_MODELS)
        raise RunError(f"{error}; known without a network: {', '.join(near)}") from None


def check_media(files: Sequence[Path], flag: str = "", modalities: Iterable[str] = ()) -> None:
    """Raise RunError for a file that isn't there or is nothing that `modalities` can be, and for an address."""
    known = set(modalities)
    for file in files:
        if re.match(r"[a-z0-9]+:/", str(file)):
            raise RunError(f"{flag}{_address(file)} is an address, not a file: download it and pass the file")
        path = expanded(file)
        if not path.exists():
            raise RunError(f"{flag}{file}: there is no such file{meant(path.parent, path.name)}")
        if known and path.is_dir():
            raise RunError(f"{flag}{file} is a folder; name files, as {file}/*")
        if known and known <= {"image", "audio", "video"} and path.is_file():
            _refuse_other(f"{flag}{file}", path, known)


def check_folder(folder: Path, modalities: Iterable[str]) -> None:
    """Raise RunError for a folder that surely holds none of these media: an empty one, or one of other media alone.

    Recordings of motion are .csv files, as tables of words are; their names tell nothing.
    """
    wanted = list(modalities)
    if not folder.is_dir() or "imu" in wanted:
        return
    from periscope.precompute.media import modality_of, suits

    names = [name for _, _, files in os.walk(folder) for name in files][:LOOKED_AT]
    kinds = [(name, modality_of(name)) for name in names if not name.lower().endswith(WORDS)]
    if any(kind is None or any(suits(name, kind, each) for each in wanted) for name, kind in kinds):
        return
    raise RunError(f"{folder} holds no {' or '.join(wanted) or 'media'} that can be read")


def _address(file: Path) -> str:
    """An address with the two slashes of which pathlib makes one."""
    return re.sub(r"^([a-z0-9]+):/+", r"\1://", str(file))


def _refuse_other(shown: str, path: Path, modalities: Collection[str]) -> None:
    """Raise RunError for a file that by its name and by its first bytes is none of `modalities`."""
    from periscope.precompute.media import LOOKED, NOUNS, modality_of, modality_of_bytes, suits

    try:
        with path.open("rb") as file:
            kinds = {modality_of(path.name), modality_of_bytes(file.read(LOOKED))} - {None}
    except OSError:  # reading it will say why
        return
    if not kinds:
        raise RunError(f"{shown} is neither a picture nor a sound nor a clip, by its name and first bytes")
    if not any(suits(path.name, str(kind), each) for kind in kinds for each in modalities):
        named = sorted(str(kind) for kind in kinds if kind in NOUNS)
        what = " or ".join(f"a {NOUNS[kind][0]}" for kind in named) or "something else"
        read = " and ".join(sorted(NOUNS[each][1] for each in modalities))
        instead = f": pass it with --{named[0]}" if shown.startswith("--") and named else ""
        raise RunError(f"{shown} is {what}, and only {read} are read here{instead}")


def check_new_file(flag: str, path: Path) -> None:
    """Make the file's folder. Raises RunError where it can't be made or the file exists, before the work is done."""
    if path.exists():
        raise RunError(f"{flag} {path} exists and is never overwritten; name another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{flag} {path}: its folder can't be made ({error.strerror})") from None
