"""Draws the demo's clips: one or two coloured shapes that move or stay, with captions and questions, all from a seed.

The splits follow from rules, not from draws, so they hold for any seed: a clip belongs to "new_pairs" when it shows a
pair of demo.scenes.NEW_PAIRS, to "heldout" when a hash of its objects' colours and shapes says so, and to "train"
otherwise. The encoder's and the adapter's trainings draw from "train".
"""

import argparse
import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

from periscope.demo import scenes
from periscope.demo.making import SPLITS, distinct_questions, lines_of, make_folder, split_by
from periscope.demo.scenes import NEW_PAIRS, RGB
from periscope.evaluation.tasks.clips import PACES, PLACES, WAYS, answer
from periscope.evaluation.tasks.scenes import COLOURS, SHAPES

PIXELS, FRAMES, RATE = 96, 16, 8  # of the files; RATE in frames per second
RADIUS = (12.5, 14.5)
TRAVEL = {"still": (0, 0), "slow": (5.5, 7.5), "fast": (14, 17)}  # pixels from the first frame to the last
STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "nowhere": (0, 0)}
FINE = 8  # how much finer than a pixel shapes are drawn and moved
FORMAT = 1

# (opening, what is said of an object that moves, and of one that doesn't)
CAPTIONS = (
    ("", "a {pace} {colour} {shape} moves {way} at the {place}", "a still {colour} {shape} stays at the {place}"),
    ("", "at the {place} a {pace} {colour} {shape} moves {way}", "at the {place} a still {colour} {shape} stays"),
    (
        "there is ",
        "a {pace} {colour} {shape} that moves {way} at the {place}",
        "a still {colour} {shape} that stays at the {place}",
    ),
    (
        "this clip shows ",
        "a {pace} {colour} {shape} that moves {way} at the {place}",
        "a still {colour} {shape} that stays at the {place}",
    ),
)

QUESTIONS = {
    ("way", "colour", "shape"): ("Which way does the {colour} {shape} move?", "Where does the {colour} {shape} go?"),
    ("way", "place"): ("Which way does the object at the {place} move?", "Where does the object at the {place} go?"),
    ("pace", "colour", "shape"): ("How fast is the {colour} {shape}?", "Is the {colour} {shape} still, slow or fast?"),
    ("pace", "place"): ("How fast is the object at the {place}?", "Is the object at the {place} still, slow or fast?"),
    ("colour", "shape"): ("What colour is the {shape}?", "Which colour does the {shape} have?"),
    ("colour", "place"): ("What colour is the object at the {place}?", "Which colour is at the {place}?"),
    ("shape", "colour"): ("What shape is {colour}?", "Which shape is the {colour} object?"),
    ("shape", "place"): ("What shape is at the {place}?", "Which shape is at the {place}?"),
    ("place", "colour", "shape"): ("Where is the {colour} {shape}?", "At which place is the {colour} {shape}?"),
    ("object", "way"): ("What moves {way}?", "Which object moves {way}?"),
    ("object", "pace"): ("What is {pace}?", "Which object is {pace}?"),
    ("count",): ("How many objects are there?", "How many objects does the clip show?"),
    ("count", "pace"): ("How many {pace} objects are there?", "How many objects are {pace}?"),
    ("exists", "pace"): ("Is anything {pace}?", "Is there anything {pace}?"),
    ("exists", "colour", "shape"): ("Is there {a} {colour} {shape}?", "Does the clip show {a} {colour} {shape}?"),
}
FORMS = tuple(QUESTIONS)


def pairs_of(movers: list[dict]) -> list[tuple[str, str]]:
    """The (colour, shape) pairs of a clip."""
    return [(mover["colour"], mover["shape"]) for mover in movers]


def split_of(movers: list[dict]) -> str:
    """The split a clip belongs to, by its objects' colours and shapes alone."""
    pairs = pairs_of(movers)
    return split_by(pairs, not NEW_PAIRS.isdisjoint(pairs), least=1)


def draw_clip(rng: random.Random, split: str) -> list[dict]:
    """One clip of `split`: 1 or 2 movers from top to bottom, no two of the same colour and shape."""
    while True:
        places = rng.choice((*((place,) for place in PLACES), PLACES, PLACES, PLACES, PLACES))
        pairs = [(rng.choice(COLOURS), rng.choice(SHAPES)) for _ in places]
        if split == "new_pairs" and not NEW_PAIRS & set(pairs):
            pairs[rng.randrange(len(pairs))] = rng.choice(sorted(NEW_PAIRS))
        movers = []
        for (colour, shape), place in zip(pairs, places, strict=True):
            way = rng.choice(WAYS)
            pace = "still" if way == "nowhere" else rng.choice(PACES[1:])
            movers.append({"colour": colour, "shape": shape, "pace": pace, "way": way, "place": place})
        if len(set(pairs)) == len(pairs) and split_of(movers) == split:
            return movers


def draw_clips(seed: int, n: int, split: str) -> list[list[dict]]:
    """`n` clips of `split` from a seed; the same seed gives the same ones, and another split others."""
    rng = random.Random(f"clips/{seed}/{split}")
    return [draw_clip(rng, split) for _ in range(n)]


def caption(movers: list[dict], rng: random.Random) -> str:
    """A sentence that describes every mover from top to bottom: colour, shape, pace, direction and place."""
    opening, moves, stays = rng.choice(CAPTIONS)
    told = [(stays if mover["pace"] == "still" else moves).format(**mover) for mover in movers]
    text = opening + " and ".join(told) + "."
    return text[0].upper() + text[1:]


def question(ask: dict, rng: random.Random) -> str:
    """A wording of the question `ask` (see evaluation.tasks.clips.answer)."""
    form = next(form for form in FORMS if form[0] == ask["kind"] and set(form[1:]) == set(ask) - {"kind"})
    article = "an" if ask.get("colour", "")[:1] in tuple("aeiou") else "a"
    return rng.choice(QUESTIONS[form]).format(**ask, a=article)


def draw_ask(form: tuple[str, ...], movers: list[dict], rng: random.Random) -> dict | None:
    """A question of one form about a clip, or None where the clip has no single answer to it.

    "exists" is true about half the time; a false one often joins the colour of one object to the shape of another, and
    pairs of NEW_PAIRS are asked for in clips of that split alone. Nothing is asked to move nowhere.
    """
    kind, given = form[0], form[1:]
    mover = rng.choice(movers)
    ask = {"kind": kind} | {name: mover[name] for name in given}
    if kind in ("count", "exists") and "pace" in given and rng.random() < 0.5:
        ask["pace"] = rng.choice([pace for pace in PACES if all(pace != mover["pace"] for mover in movers)])
    if kind == "exists" and "colour" in given and rng.random() < 0.5:
        shown = pairs_of(movers)
        while True:
            swapped = (rng.choice(movers)["colour"], rng.choice(movers)["shape"])
            some = (rng.choice(COLOURS), rng.choice(SHAPES))
            pair = rng.choice((swapped, some, (mover["colour"], some[1]), (some[0], mover["shape"])))
            if pair not in shown and (pair not in NEW_PAIRS or split_of(movers) == "new_pairs"):
                ask["colour"], ask["shape"] = pair
                break
    return None if ask.get("way") == "nowhere" or answer(ask, movers) is None else ask


def draw_questions(movers: list[dict], n: int, rng: random.Random) -> list[tuple[dict, str, str]]:
    """Up to `n` different questions on a clip as (ask, wording, answer), one of each form first, in random order."""

    def draw(form):
        ask = draw_ask(form, movers, rng)
        return None if ask is None else (ask, question(ask, rng), answer(ask, movers))

    return distinct_questions(FORMS, n, rng, draw)


def stencil(shape: str, radius: float) -> Image.Image:
    """A shape's mask ("L"), FINE times its final size, centred in a square with a margin of a pixel."""
    middle, reach = FINE * (int(radius) + 3), FINE * radius
    mask = Image.new("L", (2 * middle, 2 * middle))
    pen = ImageDraw.Draw(mask)
    box = (middle - reach, middle - reach, middle + reach, middle + reach)
    if shape == "circle":
        pen.ellipse(box, fill=255)
    elif shape == "ring":
        pen.ellipse(box, outline=255, width=round(reach * 0.36))
    elif shape == "moon":
        pen.ellipse(box, fill=255)
        bite, x = reach * 0.85, middle + reach * 0.55
        pen.ellipse((x - bite, middle - bite, x + bite, middle + bite), fill=0)
    else:
        pen.polygon([(middle + reach * x, middle + reach * y) for x, y in scenes._outline(shape)], fill=255)
    return mask


def render(movers: list[dict], rng: random.Random) -> list[Image.Image]:
    """A clip as FRAMES RGB images of PIXELS x PIXELS: each mover in its half, on a background as in demo.scenes, with
    jitter of place, size, colour and speed; it never leaves its half."""
    background = scenes.render([], rng, PIXELS)
    paths = []
    for mover in movers:
        radius, travel = rng.uniform(*RADIUS), rng.uniform(*TRAVEL[mover["pace"]])
        across, along = STEP[mover["way"]]
        top = PLACES.index(mover["place"]) * PIXELS / 2
        ends = []
        for step, low, high in ((across, 0, PIXELS), (along, top, top + PIXELS / 2)):
            low, high = low + radius + max(0, -step) * travel, high - radius - max(0, step) * travel
            ends.append(rng.uniform(low, max(low, high)))
        fill: tuple = tuple(min(255, max(0, value + rng.randint(-12, 12))) for value in RGB[mover["colour"]])
        paths.append((stencil(mover["shape"], radius), fill, ends, (across * travel, along * travel)))
    frames = []
    for number in range(FRAMES):
        frame = background.copy()
        share = number / (FRAMES - 1)
        for mask, fill, (x, y), (move_x, move_y) in paths:
            half = mask.width // FINE // 2
            left, above = x + share * move_x - half, y + share * move_y - half
            shift_x, shift_y = FINE * (left - int(left // 1)), FINE * (above - int(above // 1))
            size = 2 * half - 1
            box = (FINE - shift_x, FINE - shift_y, FINE - shift_x + FINE * size, FINE - shift_y + FINE * size)
            small = mask.resize((size, size), Image.Resampling.BOX, box)
            frame.paste(fill, (int(left // 1) + 1, int(above // 1) + 1), small)
        frames.append(frame)
    return frames


def mp4(frames: list[Image.Image]) -> bytes:
    """RGB images as the bytes of an MP4 file (H.264, RATE frames per second); deterministic."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # zerolatency: with x264's look-ahead one clip in fifty came out otherwise the second time, even on one thread
        options = {"crf": "22", "preset": "veryfast", "tune": "zerolatency", "threads": "1"}
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return buffer.getvalue()


def make(folder: Path, seed: int = 0, train: int = 4000, heldout: int = 200, new_pairs: int = 200) -> Path:
    """Draws the demo's clips and words into `folder`: clips/*.mp4, texts.jsonl and .clips.json (what was asked for).

    The train split has one caption per clip and no questions; the others one caption and up to 8 questions per clip.
    Every clip has its own generator, so a larger set begins with the same clips. For an existing folder see
    demo.making.make_folder. Returns `folder`.
    """
    counts = dict(zip(SPLITS, (train, heldout, new_pairs), strict=True))

    def lines(place: Path) -> Iterator[dict]:
        (place / "clips").mkdir()
        for split, n in counts.items():
            for number, movers in enumerate(draw_clips(seed, n, split)):
                rng = random.Random(f"clip/{seed}/{split}/{number}")
                name = f"clips/{split}-{number:06d}.mp4"
                (place / name).write_bytes(mp4(render(movers, rng)))
                asked = draw_questions(movers, 0 if split == "train" else 8, rng)
                yield from lines_of(name, split, {"movers": movers}, [caption(movers, rng)], asked)

    asked = {"format": FORMAT, "seed": seed, **counts, "pixels": PIXELS, "frames": FRAMES}
    return make_folder(Path(folder), "clips", asked, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the demo's clips with captions and questions.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make: clips/ and texts.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn")
    parser.add_argument("--train", type=int, default=4000, help="clips to train on, captions alone")
    parser.add_argument("--heldout", type=int, default=200, help="clips of new objects, with questions")
    parser.add_argument("--new-pairs", type=int, default=200, help="clips with colour-shape pairs never trained on")
    args = parser.parse_args()
    try:
        folder = make(args.out, args.seed, args.train, args.heldout, args.new_pairs)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{args.train + args.heldout + args.new_pairs} clips in {folder}")


if __name__ == "__main__":
    main()
