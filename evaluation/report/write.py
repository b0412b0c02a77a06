"""The files that an evaluation writes into the run's folder: scores, predictions, samples.png and report.html."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from periscope.atomic import disk_sentence, json_line, remove_leftovers, replace_bytes
from periscope.errors import RunError
from periscope.evaluation.report.page import Medium, report
from periscope.evaluation.report.runs import RunFolder
from periscope.evaluation.report.sample_sheet import contact_sheet, pick
from periscope.evaluation.scoring.prediction import Prediction
from periscope.precompute.preview import preview
from periscope.shards.read import FeatureSet


def write_scores(
    path: Path, result: dict, predictions: Mapping[str, Sequence[Prediction]], features: FeatureSet
) -> None:
    """Write `result` as eval.json, and predictions.jsonl (all splits) and samples.png (of the first split) into the
    folder `path`, each whole or not at all. A finished result is also kept as evals/<n>.json.
    """
    shown = pick(next(iter(predictions.values())))
    sheet = io.BytesIO()
    contact_sheet(shown, [features.thumbnail(row.media.split()[0]) for row in shown]).save(sheet, "PNG")
    lines = [json_line({"split": split, **asdict(row)}) for split, rows in predictions.items() for row in rows]
    text = (json.dumps(result, indent=1) + "\n").encode()
    try:
        for folder in (path, path / "evals"):
            remove_leftovers(folder)
        if result.get("finished", True):
            evals = path / "evals"
            evals.mkdir(exist_ok=True)
            number = max((int(file.stem) for file in evals.glob("*.json") if file.stem.isdigit()), default=0) + 1
            replace_bytes(evals / f"{number}.json", text)
        replace_bytes(path / "predictions.jsonl", b"".join(lines))
        replace_bytes(path / "samples.png", sheet.getvalue())
        replace_bytes(path / "eval.json", text)
    except OSError as error:
        raise RunError(f"the scores aren't saved: {disk_sentence(error)}") from None


def write_report(path: Path, features: FeatureSet, data: Path | None) -> None:
    """Write report.html into a run scored on `features`. data: the folder of the original media, if at hand."""

    def medium(key: str) -> Medium:
        key = key if key in known else by_origin.get(key, key)
        if key not in known:
            return Medium(name=key, note="not in this feature set")
        pictures, sound, note = preview(features, key, data)
        return Medium(tuple(pictures), sound, features.info(key)["origin"], note)

    run, known = RunFolder(path), set(features.keys)
    scored = {key for row in run.predictions for key in str(row.get("media", "")).split()}
    # samples.md names files (that of older versions names keys)
    by_origin = {features.info(key)["origin"]: key for key in (scored | features.heldout) & known}
    replace_bytes(path / "report.html", report(run, medium).encode())
