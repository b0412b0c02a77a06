"""What eval.json and the terminal say of one split: the scores, the notes and the warnings."""

from collections import Counter
from collections.abc import Mapping, Sequence

from periscope.evaluation.metrics.score import FEW_MEDIA, Score
from periscope.evaluation.scoring.baselines import swapped
from periscope.evaluation.scoring.losses import LossPair
from periscope.evaluation.scoring.prediction import OVERALL, Prediction, commonest, kind_of
from periscope.evaluation.scoring.table import as_numbers, table
from periscope.evaluation.scoring.verdict import caption_note, verdict

# An answer that hardly varies: its share of all answers, and how far that lies above its share among the references.
COMMON_SHARE, ABOVE_REFERENCES = 0.5, 0.3


def summarise(
    split: str,
    rows: Sequence[Prediction],
    found: Mapping[str, Mapping[str, Score]],
    notes: Sequence[str],
    kinds: str,
    losses: LossPair | None = None,
) -> tuple[dict, str]:
    """The split's part of eval.json, and for the terminal the verdict and the table with its notes."""
    seen = verdict(split, losses, rows, found)
    short = [note for note in [caption_note(rows, found)] if note]
    warnings = [*notes, *short, *warnings_of(rows, kinds)]
    other = swapped(rows)
    numbers = as_numbers(found) | {"swapped": other, "n": len(rows), "warnings": warnings, "verdict": seen.to_dict()}
    numbers["losses"] = losses.to_dict() if losses else None
    lines = [seen.sentence, table(f"{split}: {len(rows)} answers", found)]
    if other:
        lines.append(
            f"  {other['n']} questions are valid for the shuffled medium too: answered from its features, "
            f"{other['qa_accuracy']:.3f} are right for it (real answers, for their own medium: {other['real']:.3f})"
        )
    by_note: dict[str, list[str]] = {}
    for name, note in numbers["notes"].items():
        if not name.startswith("qa_") or name in OVERALL:
            by_note.setdefault(note, []).append(name)
    lines += [f"  {', '.join(names)}: {note}" for note, names in by_note.items()]
    return numbers, "\n".join([*lines, *(f"  {warning}" for warning in warnings)])


def warnings_of(rows: Sequence[Prediction], kinds: str = "") -> list[str]:
    """Reasons to distrust the scores: too few media, answers that hardly vary. (`verdict` says whether looking gains
    anything.)
    """
    warnings = []
    if (media := len({row.media for row in rows})) < FEW_MEDIA:
        warnings.append(f"intervals over {media} media are too narrow; use at least {FEW_MEDIA}")
    groups: dict[str, list[Prediction]] = {}
    for row in rows:
        kind = kind_of(row, kinds)
        name = f"questions ({kind})" if kind else "questions"
        groups.setdefault(name if row.prompt else "captions", []).append(row)
    for name, group in groups.items():
        answer, count = Counter(row.answer for row in group).most_common(1)[0]
        right = Counter(commonest(row.right_answers()) for row in group).most_common(1)[0][1]
        if len(group) > 1 and count > COMMON_SHARE * len(group) and count - right > ABOVE_REFERENCES * len(group):
            warnings.append(
                f"answers hardly vary: {count} of {len(group)} {name} get {answer[:60]!r}, where the commonest "
                f"reference is right for {right}"
            )
    return warnings
