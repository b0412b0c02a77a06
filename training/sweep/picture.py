"""A sweep's runs as a picture: how the held-out loss fell, and where it came to."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#1f5fa8", "#d1602b", "#2f8f4e", "#8a4fa3", "#b8912a", "#3aa6a6", "#a83a5b", "#666666")
WIDTH, LINE, TOP, LEFT, PANEL = 1000, 24, 34, 60, 420
GREY, PALE = (120, 120, 120), (228, 228, 228)


def picture(rows: Sequence[dict]) -> Image.Image:
    """Left the held-out loss by step, a line for each run; right a bar for each with its lowest, in the rows' order.

    A hollow mark is the loss with another medium's features. Runs without a look at held-out texts are left out.
    """
    shown = [row for row in rows if row["curve"]]
    height = max(360, TOP + LINE * (len(shown) + 3))
    sheet = Image.new("RGB", (WIDTH, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    if not shown:
        draw.text((LEFT, TOP), "no run looked at held-out texts", fill="black", font=font)
        return sheet
    losses = [loss for row in shown for _, loss in row["curve"]]
    apart = [row["heldout"].get("shuffled", row["heldout"]["real"]) for row in shown]
    low, high = min(losses), max(losses)
    room = 0.05 * (high - low) or 0.05
    low, high = low - room, high + room
    steps = max(step for row in shown for step, _ in row["curve"])
    bottom = height - 2 * LINE

    def place(step: float, loss: float) -> tuple[float, float]:
        return LEFT + PANEL * step / steps, bottom - (bottom - TOP) * (loss - low) / (high - low)

    draw.text((LEFT, 6), "held-out loss by step", fill="black", font=font)
    for share in range(5):
        loss, step = low + (high - low) * share / 4, steps * share / 4
        draw.line((*place(0, loss), *place(steps, loss)), fill=PALE)
        draw.text((6, place(0, loss)[1] - 9), f"{loss:.3f}", fill=GREY, font=font)
        draw.text((place(step, low)[0] - 9, bottom + 6), f"{step:.0f}", fill=GREY, font=font)
    for number, row in enumerate(shown):
        points = [place(*point) for point in row["curve"]]
        draw.line(points, fill=COLOURS[number % len(COLOURS)], width=2)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=COLOURS[number % len(COLOURS)])
    start = LEFT + PANEL + 40
    draw.text((start, 6), "lowest held-out loss; hollow: with another medium's features", fill="black", font=font)
    words = max(draw.textlength(row["name"], font) for row in shown) + 12
    far, most = WIDTH - start - words - 60, max(*losses, *apart)
    for number, (row, control) in enumerate(zip(shown, apart, strict=True)):
        y, colour = TOP + LINE * number, COLOURS[number % len(COLOURS)]
        draw.text((start, y), row["name"], fill="black", font=font)
        end = start + words + far * row["heldout"]["real"] / most
        draw.rectangle((start + words, y + 3, end, y + LINE - 5), fill=colour)
        mark = start + words + far * control / most
        draw.ellipse((mark - 4, y + 6, mark + 4, y + 14), outline=colour, width=2)
        draw.text((max(end, mark) + 8, y), f"{row['heldout']['real']:.3f}", fill=GREY, font=font)
    return sheet
