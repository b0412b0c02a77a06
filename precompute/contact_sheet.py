"""A contact sheet of a feature set: held-out media with their texts and the norms of their features."""

import textwrap
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from periscope.shards.layout import describe
from periscope.shards.read import FeatureSet

PICTURE, WORDS, MARGIN, COLUMNS, LETTERS = 128, 290, 12, 2, 46
INK, FAINT, PAPER, NOTHING = (30, 30, 30), (110, 110, 110), (255, 255, 255), (225, 225, 225)


def contact_sheet(features: FeatureSet, most: int = 24) -> Image.Image:
    """Lay up to `most` held-out media out in two columns (any media where none is held out): thumbnail, norms of the
    patches where they lie (dark: small), first words, and the norm of each kind.
    """
    keys = sorted(features.heldout) or features.keys
    words: dict[str, list[str]] = {}
    for text in features.texts():
        for key in text.media:
            words.setdefault(key, []).append(" / ".join(turn["content"] for turn in text.turns))
    keys = sorted(keys, key=lambda key: key not in words)[:most]
    cells = [_cell(features, key, words.get(key, [])) for key in keys]
    head = _head(features)
    lines = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    heights = [max(cell.height for cell in line) for line in lines]
    sheet = Image.new("RGB", (head.width, head.height + sum(heights)), PAPER)
    sheet.paste(head)
    top = head.height
    for line, height in zip(lines, heights, strict=True):
        for i, cell in enumerate(line):
            sheet.paste(cell, (i * cell.width, top))
        top += height
    return sheet


def _head(features: FeatureSet) -> Image.Image:
    manifest = features.manifest
    kinds = " · ".join(f"{kind} {describe(entry)}" for kind, entry in manifest["features"].items())
    counts = manifest["counts"]
    lines = [
        f"{manifest['name']}: {counts['media']} media, {counts['heldout']} held out, {counts['texts']} texts",
        f"{manifest['encoder']['name']} · {kinds}",
    ]
    image = Image.new("RGB", (COLUMNS * (2 * PICTURE + WORDS + 4 * MARGIN), 58), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 8), lines[0], font=ImageFont.load_default(17), fill=INK)
    draw.text((MARGIN, 34), lines[1], font=ImageFont.load_default(12), fill=FAINT)
    return image


def _cell(features: FeatureSet, key: str, words: list[str]) -> Image.Image:
    large: Any = ImageFont.load_default(13)
    small: Any = ImageFont.load_default(11)
    facts, chart = [], None
    for kind, entry in features.manifest["features"].items():
        norms = features.read(key, kind).float().norm(dim=-1)
        shown = f"{norms.item():.3g}" if norms.ndim == 0 else f"{norms.min():.3g} to {norms.max():.3g}"
        facts.append(f"{kind} norm {shown}")
        if kind == "patches" and "grid" in entry:
            chart = _chart(norms.view(*entry["grid"]))
    captions = [line for text in words[:3] for line in textwrap.wrap(text, LETTERS)[:4]] or ["(no words)"]
    origin = features.info(key)["origin"].encode(errors="replace").decode()
    rows = [(line, large, INK) for line in captions]
    rows += [(line, small, FAINT) for text in (*facts, origin) for line in textwrap.wrap(text, LETTERS)]
    height = max(PICTURE, sum(font.size + 4 for _, font, _ in rows)) + 2 * MARGIN
    cell = Image.new("RGB", (2 * PICTURE + WORDS + 4 * MARGIN, height), PAPER)
    _paste(cell, features.thumbnail(key), MARGIN)
    if chart is not None:
        cell.paste(chart, (2 * MARGIN + PICTURE, MARGIN))
    draw, y = ImageDraw.Draw(cell), MARGIN
    for line, font, colour in rows:
        draw.text((2 * PICTURE + 3 * MARGIN, y), line, font=font, fill=colour)
        y += font.size + 4
    return cell


def _paste(cell: Image.Image, thumbnail: Path | None, left: int) -> None:
    if thumbnail is None:
        ImageDraw.Draw(cell).rectangle((left, MARGIN, left + PICTURE, MARGIN + PICTURE), fill=NOTHING)
        return
    with Image.open(thumbnail, formats=("JPEG",)) as image:
        cell.paste(image.convert("RGB"), (left, MARGIN))


def _chart(norms: torch.Tensor) -> Image.Image:
    """(rows, columns) of norms as a grey picture of at most PICTURE pixels a side, black the least and white the
    most.
    """
    low, high = norms.min(), norms.max()
    grey = ((norms - low) / (high - low).clamp(min=1e-9) * 255).byte().numpy()
    scale = PICTURE / max(grey.shape)
    size = (max(1, int(grey.shape[1] * scale)), max(1, int(grey.shape[0] * scale)))
    return Image.fromarray(grey).resize(size, Image.Resampling.NEAREST).convert("RGB")
