"""A chart of a sweep: the held-out loss of each run by step, and its lowest value."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#1f5fa8", "#d1602b", "#2f8f4e", "#8a4fa3", "#b8912a", "#3aa6a6", "#a83a5b", "#666666")
WIDTH, LINE, TOP, LEFT, PANEL = 1000, 24, 34, 60, 420
GREY, PALE = (120, 120, 120), (228, 228, 228)


def picture(rows: Sequence[dict]) -> Image.Image:
    """Left: a line per run, the held-out loss by step. Right: a bar per run, its lowest loss, in the order of `rows`.

    A hollow mark is the loss with another medium's features. Runs without an evaluation are left out.
    """
    plotted = [row for row in rows if row["curve"]]
    height = max(360, TOP + LINE * (len(plotted) + 3))
    image = Image.new("RGB", (WIDTH, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    if not plotted:
        draw.text((LEFT, TOP), "no run evaluated held-out texts", fill="black", font=font)
        return image
    losses = [loss for row in plotted for _, loss in row["curve"]]
    controls = [row["heldout"].get("shuffled", row["heldout"]["real"]) for row in plotted]
    low, high = min(losses), max(losses)
    margin = 0.05 * (high - low) or 0.05
    low, high = low - margin, high + margin
    steps = max(step for row in plotted for step, _ in row["curve"])
    bottom = height - 2 * LINE

    def position(step: float, loss: float) -> tuple[float, float]:
        return LEFT + PANEL * step / steps, bottom - (bottom - TOP) * (loss - low) / (high - low)

    draw.text((LEFT, 6), "held-out loss by step", fill="black", font=font)
    for share in range(5):
        loss, step = low + (high - low) * share / 4, steps * share / 4
        draw.line((*position(0, loss), *position(steps, loss)), fill=PALE)
        draw.text((6, position(0, loss)[1] - 9), f"{loss:.3f}", fill=GREY, font=font)
        draw.text((position(step, low)[0] - 9, bottom + 6), f"{step:.0f}", fill=GREY, font=font)
    for number, row in enumerate(plotted):
        points = [position(*point) for point in row["curve"]]
        draw.line(points, fill=COLOURS[number % len(COLOURS)], width=2)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=COLOURS[number % len(COLOURS)])
    start = LEFT + PANEL + 40
    draw.text((start, 6), "lowest held-out loss; hollow: with another medium's features", fill="black", font=font)
    name_width = max(draw.textlength(row["name"], font) for row in plotted) + 12
    bar_width, highest = WIDTH - start - name_width - 60, max(*losses, *controls)
    for number, (row, control) in enumerate(zip(plotted, controls, strict=True)):
        y, colour = TOP + LINE * number, COLOURS[number % len(COLOURS)]
        draw.text((start, y), row["name"], fill="black", font=font)
        end = start + name_width + bar_width * row["heldout"]["real"] / highest
        draw.rectangle((start + name_width, y + 3, end, y + LINE - 5), fill=colour)
        mark = start + name_width + bar_width * control / highest
        draw.ellipse((mark - 4, y + 6, mark + 4, y + 14), outline=colour, width=2)
        draw.text((max(end, mark) + 8, y), f"{row['heldout']['real']:.3f}", fill=GREY, font=font)
    return image
