"""A picture of what came out: held-out media with what was asked, answered and true."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from scoring.summary import Prediction

CELL, PICTURE, MARGIN, COLUMNS = (420, 176), 128, 12, 2
INK, FAINT, PAPER = (30, 30, 30), (120, 120, 120), (255, 255, 255)


def contact_sheet(rows: Sequence[Prediction], pictures: Sequence[Path | None]) -> Image.Image:
    """Lay predictions out in two columns: the picture (grey where there is none) beside prompt, answer and truth."""
    width, height = CELL
    lines = -(-len(rows) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, max(1, lines) * height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(14), ImageFont.load_default(12)
    for i, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
        x, y = (i % COLUMNS) * width + MARGIN, (i // COLUMNS) * height + MARGIN
        box = (x, y, x + PICTURE, y + PICTURE)
        if picture is None:
            draw.rectangle(box, fill=(225, 225, 225))
        else:
            with Image.open(picture) as image:
                image = image.convert("RGB")
                image.thumbnail((PICTURE, PICTURE))
                sheet.paste(image, (x, y))
        x += PICTURE + MARGIN
        blocks = [
            (row.prompt or "(caption)", small, FAINT),
            (row.answer or "(nothing)", font, INK),
            (f"truth: {row.reference}", small, FAINT),
        ]
        if row.control is not None:
            blocks.append((f"from another's features: {row.control}", small, FAINT))
        for text, face, colour in blocks:
            for line in textwrap.wrap(text, 36 if face is font else 42)[:4]:
                draw.text((x, y), line, font=face, fill=colour)
                y += 17 if face is font else 14
            y += 4
    return sheet
