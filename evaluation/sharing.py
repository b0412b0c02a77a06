"""Pushing an adapter to the Hub: the whole upload is shown first, and afterwards fetched again and loaded."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from periscope.adapters.io.checkpoint import load_adapter
from periscope.adapters.io.eval_results import write_eval_result
from periscope.adapters.io.hub import FILES, PICTURE, check_pushed, push, stage, standing
from periscope.adapters.io.schema import read_adapter_config
from periscope.adapters.names import is_hub_id
from periscope.console import command
from periscope.errors import AdapterError
from periscope.evaluation.report.runs import RunFolder, main_split
from periscope.evaluation.report.sample_sheet import pick
from periscope.evaluation.scoring.prediction import Prediction
from periscope.hub_repo import HubRepository, card_lines, check_push, for_terminal, upload_lines
from periscope.inference import adapter_folder, load_adapted


@dataclass
class PushRequest:
    """What to share, and how. path: a run or an adapter folder · to: owner/name on the Hub · lm: the language model's
    Hub id, if the run knew it as a folder · public_samples: also share held-out prompts, references and pictures ·
    benchmark: the Hub's benchmark whose leaderboard gets the scores.
    """

    path: Path | str
    to: str
    modality: str | None = None
    lm: str | None = None
    license: str | None = None
    datasets: tuple[str, ...] = ()
    private: bool = False
    public_samples: bool = False
    benchmark: str = ""


def share(
    request: PushRequest,
    ask: Callable[[str], bool],
    device: str = "cpu",
    precision: str = "auto",
    trust_remote_code: bool = False,
) -> str:
    """Push an adapter to the Hub if `ask`, which is given a description of the whole upload, returns True.

    The upload is first loaded on its language model. Afterwards it is fetched into a new folder, compared byte by byte,
    and loaded. Returns a sentence for the user. Raises AdapterError when any of this fails.
    """
    check_push(request.to, AdapterError)
    path = Path(request.path)
    run = RunFolder(path) if (path / "config.toml").is_file() else None
    folder = adapter_folder(request.path, request.modality)
    lm = request.lm or read_adapter_config(folder).language_model_in(folder)
    samples = pictured(run) if run and request.public_samples else []
    picture = path / PICTURE if samples and (path / PICTURE).is_file() else None
    with tempfile.TemporaryDirectory(prefix="periscope-") as temporary:
        staged = Path(temporary) / "adapter"
        result = run.result | {"splits": run.splits} if run and run.splits else {}
        files = stage(
            folder,
            staged,
            request.to,
            result,
            samples,
            picture,
            request.license,
            request.datasets,
            _public_name(request.lm),
        )
        if request.benchmark:
            files.append(write_eval_result(staged, result, request.benchmark, request.to))
        load_adapted(staged, device, precision, lm, trust_remote_code=trust_remote_code)
        there = standing(request.to, request.private)
        if not ask(shown(request, staged, files, samples, bool(result), there)):
            raise AdapterError("nothing was pushed")
        commit = push(staged, request.to, request.private)
        load_adapter(check_pushed(staged, request.to, commit, Path(temporary) / "again"), device)
    return f"{request.to} is on the Hub (commit {commit[:8]}); fetched again, it is the same and loads on {lm}"


def shown(
    request: PushRequest,
    staged: Path,
    files: list[Path],
    samples: list[dict],
    scored: bool,
    there: HubRepository | None = None,
) -> str:
    """Everything that would be uploaded: each file with its size, the card, and the text of each sample; and which
    files of `there`, the repository on the Hub, would be replaced or removed. Control characters are shown as "?".
    """
    names = [file.relative_to(staged).as_posix() for file in files]
    removed = [name for name in (*FILES, PICTURE) if name not in names]
    lines = upload_lines(request.to, request.private, staged, names, there, removed)
    if samples:
        lines.append(f"{len(samples)} held-out samples, in the card and in {PICTURE}:")
        for row in samples:
            words = row["prompt"] or "(caption)", row["answer"], row["reference"], row["control"] or "-"
            lines.append("  " + " | ".join(words))
    else:
        lines.append("no sample texts and no pictures (--public-samples adds a few held-out ones)")
    if not scored:
        lines.append(f"no scores; to have them in the card, first: {command('eval', '--run', request.path)}")
    return for_terminal([*lines, *card_lines(staged)])


def pictured(run: RunFolder) -> list[dict]:
    """The predictions shown in a run's samples.png, a few of the first split. Raises AdapterError when
    predictions.jsonl wasn't written by eval.py.
    """
    known, first = {field.name for field in fields(Prediction)}, main_split(run) or None
    rows = [row for row in run.predictions if row.get("split", first) == first]
    try:
        made = [Prediction(**{name: value for name, value in row.items() if name in known}) for row in rows]
    except TypeError as error:
        raise AdapterError(
            f"{run.path}/predictions.jsonl is damaged ({error}); score the run again: "
            f"{command('eval', '--run', run.path)}"
        ) from None
    return [asdict(row) for row in pick(made)]


def _public_name(lm: str | None) -> str | None:
    """The name given for the language model, if others can fetch it."""
    return lm if lm and is_hub_id(lm) else None
