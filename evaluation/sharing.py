"""An adapter made public: everything that would leave is shown first, and what arrived is fetched and loaded again."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from periscope.adapters.io.card import is_hub_id
from periscope.adapters.io.checkpoint import CARD, load_adapter
from periscope.adapters.io.hub import FILES, PICTURE, HubRepository, check_pushed, push, stage, standing
from periscope.adapters.io.schema import read_adapter_config
from periscope.errors import AdapterError
from periscope.evaluation.report.runs import RunFolder
from periscope.evaluation.report.sample_sheet import pick
from periscope.evaluation.summary import Prediction
from periscope.inference import adapter_folder, load_adapted


@dataclass
class PushRequest:
    """What to share, and how. `to`: owner/name on the Hub · `lm`: the language model's hub id, where the run knew it by
    a folder · `public_samples`: also show held-out prompts, references and pictures.
    """

    path: Path | str
    to: str
    modality: str | None = None
    lm: str | None = None
    license: str | None = None
    datasets: tuple[str, ...] = ()
    private: bool = False
    public_samples: bool = False


def share(what: PushRequest, ask: Callable[[str], bool], device: str = "cpu", precision: str = "auto") -> str:
    """Push an adapter of a run (or an adapter folder) to the Hub, after `ask` was shown all of it and said yes.

    Before, what would leave is loaded on its language model; after, it is fetched into a new folder, compared to the
    byte, and loaded. Returns what came of it, for people. Raises AdapterError when anything of that fails.
    """
    if what.to.count("/") != 1 or not all(what.to.split("/")):
        raise AdapterError(f"--push {what.to}: name an owner and a repository, as in owner/name")
    path = Path(what.path)
    run = RunFolder(path) if (path / "config.toml").is_file() else None
    folder = adapter_folder(what.path, what.modality)
    lm = what.lm or read_adapter_config(folder).language_model.name
    samples = pictured(run) if run and what.public_samples else []
    picture = path / PICTURE if samples and (path / PICTURE).is_file() else None
    with tempfile.TemporaryDirectory(prefix="periscope-") as temporary:
        staged = Path(temporary) / "adapter"
        result = run.result | {"splits": run.splits} if run and run.splits else {}
        files = stage(
            folder, staged, what.to, result, samples, picture, what.license, what.datasets, _public_name(what.lm)
        )
        load_adapted(staged, device, precision, lm)
        there = standing(what.to, what.private)
        if not ask(shown(what, staged, files, samples, bool(result), there)):
            raise AdapterError("nothing was pushed")
        commit = push(staged, what.to, what.private)
        load_adapter(check_pushed(staged, what.to, commit, Path(temporary) / "again"), device)
    return f"{what.to} is on the Hub (commit {commit[:8]}); it was fetched again, is the same and loads, on {lm}"


def shown(
    what: PushRequest,
    staged: Path,
    files: list[Path],
    samples: list[dict],
    scored: bool,
    there: HubRepository | None = None,
) -> str:
    """Everything that would leave: each file with its size, the card, and each sample's words; and what of `there`,
    which is on the Hub already, would give way. Characters that a terminal acts on are shown as "?".
    """
    private = there.private if there else what.private
    lines = [f"to {what.to} ({'private' if private else 'for all to see'}) would go:"]
    names = [file.relative_to(staged).as_posix() for file in files]
    lines += [f"  {name:<32}{file.stat().st_size:>14,} bytes" for name, file in zip(names, files, strict=True)]
    if there and (old := [name for name in there.files if name in names]):
        lines.append(f"it is there already, and these would be replaced: {', '.join(old)}")
    if there and (old := [name for name in there.files if name in {*FILES, PICTURE} - set(names)]):
        lines.append(f"and these, of an earlier push, removed: {', '.join(old)}")
    if samples:
        lines.append(f"with these {len(samples)} held-out samples, in the card and in {PICTURE}:")
        said = [
            (row["prompt"] or "(caption)", row["answer"], row["reference"], row["control"] or "-") for row in samples
        ]
        lines += ["  " + " | ".join(words) for words in said]
    else:
        lines.append("no sample texts and no pictures (--public-samples adds a few held-out ones)")
    if not scored:
        lines.append("no scores: python eval.py --run ... first, and the card will have them")
    lines += [f"{CARD}:", *(f"  | {line}" for line in (staged / CARD).read_text(encoding="utf-8").split("\n"))]
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def pictured(run: RunFolder) -> list[dict]:
    """The predictions that a run's samples.png shows, as eval.py picked them: a few of the first split. Raises
    AdapterError when predictions.jsonl isn't one of eval.py's.
    """
    known, first = {field.name for field in fields(Prediction)}, next(iter(run.splits), None)
    rows = [row for row in run.predictions if row.get("split", first) == first]
    try:
        made = [Prediction(**{name: value for name, value in row.items() if name in known}) for row in rows]
    except TypeError as error:
        raise AdapterError(
            f"{run.path}/predictions.jsonl is damaged ({error}): python eval.py --run ... again"
        ) from None
    return [asdict(row) for row in pick(made)]


def _public_name(lm: str | None) -> str | None:
    """The name given for the language model, if it is one that others can fetch."""
    return lm if lm and is_hub_id(lm) else None
