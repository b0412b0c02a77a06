"""An adapter made public: everything that would leave is shown first, and what arrived is fetched and loaded again."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapters import AdapterError
from adapters.card import is_hub_id
from adapters.checkpoint import load_adapter, read_adapter_config
from adapters.hub import PICTURE, check_pushed, push, stage
from live import adapter_folder, load_adapted
from scoring.report import both, parted
from scoring.runs import RunFolder

SAMPLES = 8


@dataclass
class Share:
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


def share(what: Share, ask: Callable[[str], bool], device: str = "cpu", precision: str = "auto") -> str:
    """Push an adapter of a run (or an adapter folder) to the Hub, after `ask` was shown all of it and said yes.

    Before, what would leave is loaded on its language model; after, it is fetched into a new folder, compared to the
    byte, and loaded. Returns what came of it, for people. Raises AdapterError when anything of that fails.
    """
    if what.to.count("/") != 1 or not all(what.to.split("/")):
        raise AdapterError(f"--push {what.to}: name an owner and a repository, as in owner/name")
    path = Path(what.path)
    run = RunFolder(path) if (path / "config.toml").is_file() else None
    folder = adapter_folder(what.path, what.modality)
    lm = what.lm or read_adapter_config(folder)["language_model"]["name"]
    rows = run.predictions if run and what.public_samples else []
    samples = _spread(rows)
    picture = path / PICTURE if samples and (path / PICTURE).is_file() else None
    with tempfile.TemporaryDirectory(prefix="periscope-") as temporary:
        staged = Path(temporary) / "adapter"
        result = run.result if run else {}
        files = stage(
            folder, staged, what.to, result, samples, picture, what.license, what.datasets, _public_name(what.lm)
        )
        load_adapted(staged, device, precision, lm)
        if not ask(shown(what, staged, files, samples, bool(result))):
            raise AdapterError("nothing was pushed")
        commit = push(staged, what.to, what.private)
        load_adapter(check_pushed(staged, what.to, commit), device)
    return f"{what.to} is on the Hub (commit {commit[:8]}); it was fetched again, is the same and loads, on {lm}"


def shown(what: Share, staged: Path, files: list[Path], samples: list[dict], scored: bool) -> str:
    """Everything that would leave: each file with its size, the card, and each sample's words."""
    lines = [f"to {what.to} ({'private' if what.private else 'for all to see'}) would go:"]
    lines += [f"  {file.relative_to(staged).as_posix():<32}{file.stat().st_size:>14,} bytes" for file in files]
    if samples:
        lines.append(f"with these {len(samples)} held-out samples:")
        lines += [f"  {row.get('prompt') or '(caption)'} | {row['answer']} | {row['reference']}" for row in samples]
    else:
        lines.append("no sample texts and no pictures (--public-samples adds a few held-out ones)")
    if not scored:
        lines.append("no scores: python eval.py --run ... first, and the card will have them")
    lines += ["README.md:", *(f"  | {line}" for line in (staged / "README.md").read_text().splitlines())]
    return "\n".join(lines)


def _spread(rows: list[dict]) -> list[dict]:
    """A few predictions, evenly chosen: captions and questions, each about another medium."""
    return both([row for part in parted(rows) for row in part[:: max(1, len(part) // (2 * SAMPLES))]], SAMPLES)


def _public_name(lm: str | None) -> str | None:
    """The name given for the language model, if it is one that others can fetch."""
    return lm if lm and is_hub_id(lm) else None
