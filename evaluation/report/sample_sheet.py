"""samples.png: held-out media with prompt, answer and reference."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from periscope.errors import ScoreError
from periscope.evaluation.controls import evenly
from periscope.evaluation.scoring.prediction import Prediction

PICTURE, WORDS, MARGIN, COLUMNS = 128, 300, 14, 2
INK, FAINT, PAPER, NOTHING = (30, 30, 30), (120, 120, 120), (255, 255, 255), (225, 225, 225)


def pick(rows: Sequence[Prediction], most: int = 8) -> list[Prediction]:
    """A few predictions for the picture, spread over all: captions and questions alternating, each about another
    medium.
    """
    captions, questions = [row for row in rows if not row.prompt], [row for row in rows if row.prompt]
    share = most // 2 if captions and questions else most
    chosen: tuple[list[Prediction], list[Prediction]] = ([], [])
    seen: set[str] = set()
    for part, candidates in zip(chosen, (captions, questions), strict=True):
        firsts = {row.media: row for row in reversed(candidates) if row.media not in seen}
        part += evenly([row for row in candidates if firsts.get(row.media) is row], share)
        seen |= {row.media for row in part}
    return [row for pair in zip_longest(*chosen) for row in pair if row is not None]


def contact_sheet(rows: Sequence[Prediction], pictures: Sequence[Path | None]) -> Image.Image:
    """Lay predictions out in two columns: the image (grey where there is none) beside prompt, answer and reference."""
    cells = [_cell(row, picture) for row, picture in zip(rows, pictures, strict=True)]
    lines = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    width = COLUMNS * (PICTURE + WORDS + 3 * MARGIN)
    sheet = Image.new("RGB", (width, max(1, sum(max(cell.height for cell in line) for line in lines))), PAPER)
    top = 0
    for line in lines:
        for i, cell in enumerate(line):
            sheet.paste(cell, (i * width // COLUMNS, top))
        top += max(cell.height for cell in line)
    return sheet


def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, in pixels."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ScoreError("this Pillow was built without FreeType, so it can't draw words: pip install -U pillow")
    return font


def _cell(row: Prediction, picture: Path | None) -> Image.Image:
    large, small = font_of(15), font_of(12)
    blocks = [
        (row.prompt or "(caption)", small, FAINT),
        (row.answer or "(nothing)", large, INK),
        (f"reference: {row.reference}", small, FAINT),
        *([(f"shuffled: {row.control}", small, FAINT)] if row.control is not None else []),
    ]
    wrapped = [(_wrap(text, font), font, colour) for text, font, colour in blocks]
    height = round(sum(len(lines) * (font.size + 4) + 5 for lines, font, _ in wrapped))
    cell = Image.new("RGB", (PICTURE + WORDS + 3 * MARGIN, max(height, PICTURE) + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(cell)
    if picture is None:
        draw.rectangle((MARGIN, MARGIN, MARGIN + PICTURE, MARGIN + PICTURE), fill=NOTHING)
    else:
        with Image.open(picture) as file:
            image = file.convert("RGB")
        image.thumbnail((PICTURE, PICTURE))
        cell.paste(image, (MARGIN, MARGIN))
    y: float = MARGIN
    for lines, font, colour in wrapped:
        for line in lines:
            draw.text((PICTURE + 2 * MARGIN, y), line, font=font, fill=colour)
            y += font.size + 4
        y += 5
    return cell


def _wrap(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """Break a text into at most six lines of at most WORDS pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= WORDS:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines if len(lines) <= 6 else [*lines[:6], "..."]
