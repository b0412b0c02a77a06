"""Draws the demo's scenes: coloured shapes on a 3x3 grid, with captions and questions, all from a seed.

The splits follow from rules, not from draws, so they hold for any seed: a scene belongs to "new_pairs" when it shows a
pair of NEW_PAIRS, to "heldout" when a hash of its objects' colours and shapes says so, and to "train" otherwise. The
encoder's, the language model's and the adapter's trainings all draw from "train".
"""

import argparse
import random
import sys
from collections.abc import Iterator
from math import cos, pi, sin
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from periscope.demo.making import in_threads, lines_of, make_folder, split_by
from periscope.evaluation.tasks.scenes import COLOURS, PLACES, SHAPES, SIDES, SIZES, answer, true_objects

NEW_PAIRS = frozenset(
    [
        ("red", "heart"),
        ("orange", "ring"),
        ("green", "triangle"),
        ("blue", "moon"),
        ("purple", "square"),
        ("pink", "cross"),
    ]
)
PIXELS = 192
FORMAT = 1

RGB = {
    "red": (216, 32, 38),
    "orange": (247, 140, 20),
    "yellow": (244, 220, 40),
    "green": (36, 150, 62),
    "blue": (36, 84, 216),
    "purple": (120, 44, 166),
    "pink": (250, 150, 200),
    "black": (28, 28, 30),
}

CAPTIONS = (
    ("", "a {size} {colour} {shape} at the {place}", "."),
    ("there is ", "a {size} {colour} {shape} at the {place}", "."),
    ("this picture shows ", "a {size} {colour} {shape} at the {place}", "."),
    ("", "at the {place} a {size} {colour} {shape}", "."),
    ("", "at the {place} is a {size} {colour} {shape}", "."),
)

QUESTIONS = {
    ("colour", "shape"): ("What colour is the {shape}?", "Which colour does the {shape} have?"),
    ("colour", "place"): ("What colour is the object at the {place}?", "Which colour is at the {place}?"),
    ("shape", "colour"): ("What shape is {colour}?", "Which shape is the {colour} object?"),
    ("shape", "place"): ("What shape is at the {place}?", "Which shape is at the {place}?"),
    ("size", "colour", "shape"): ("What size is the {colour} {shape}?", "How big is the {colour} {shape}?"),
    ("size", "place"): ("What size is the object at the {place}?", "How big is the object at the {place}?"),
    ("place", "colour", "shape"): ("Where is the {colour} {shape}?", "At which place is the {colour} {shape}?"),
    ("place", "shape"): ("Where is the {shape}?", "At which place is the {shape}?"),
    ("count",): ("How many objects are there?", "How many objects does the picture show?"),
    ("count", "size"): ("How many {size} objects are there?", "How many {size} objects does the picture show?"),
    ("exists", "colour", "shape"): ("Is there {a} {colour} {shape}?", "Does the picture show {a} {colour} {shape}?"),
    ("relation", "side", "colour", "shape"): (
        "What is {side} the {colour} {shape}?",
        "Which object is {side} the {colour} {shape}?",
    ),
}
FORMS = tuple(QUESTIONS)


def split_of(objects: list[dict]) -> str:
    """The split a scene belongs to, by its objects' colours and shapes alone.

    Scenes of one object are never held out (unless the pair is new): there are too few of them.
    """
    pairs = list(true_objects(objects).elements())
    return split_by(pairs, not NEW_PAIRS.isdisjoint(pairs))


def draw_scene(rng: random.Random, split: str) -> list[dict]:
    """One scene of `split`: 1 to 3 objects (2 or 3 outside "train") in reading order, no two alike."""
    while True:
        count = rng.choices((1, 2, 3), (1, 4, 5))[0] if split == "train" else rng.choice((2, 3))
        places = sorted(rng.sample(range(len(PLACES)), count))
        pairs = [(rng.choice(COLOURS), rng.choice(SHAPES)) for _ in places]
        if count > 1 and rng.random() < 0.25:
            repeat = rng.randrange(2)
            pairs[1] = (pairs[0][0], pairs[1][1]) if repeat else (pairs[1][0], pairs[0][1])
        if split == "new_pairs" and not NEW_PAIRS & set(pairs):
            pairs[rng.randrange(count)] = rng.choice(sorted(NEW_PAIRS))
        objects = [
            {"colour": colour, "shape": shape, "size": rng.choice(SIZES), "place": PLACES[place]}
            for (colour, shape), place in zip(pairs, places, strict=True)
        ]
        if len(set(pairs)) == count and split_of(objects) == split:
            return objects


def draw_scenes(seed: int, n: int, split: str) -> list[list[dict]]:
    """`n` scenes of `split` from a seed; the same seed gives the same scenes, and another split others."""
    rng = random.Random(f"scenes/{seed}/{split}")
    return [draw_scene(rng, split) for _ in range(n)]


def caption(objects: list[dict], rng: random.Random) -> str:
    """A sentence that names every object in reading order with its colour, shape, size and place."""
    opening, phrase, end = rng.choice(CAPTIONS)
    phrases = [phrase.format(**thing) for thing in objects]
    listed = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
    text = opening + listed + end
    return text[0].upper() + text[1:]


def question(ask: dict, rng: random.Random) -> str:
    """A wording of the question `ask` (see evaluation.tasks.scenes.answer)."""
    form = next(form for form in FORMS if form[0] == ask["kind"] and set(form[1:]) == set(ask) - {"kind"})
    article = "an" if ask.get("colour", "")[:1] in tuple("aeiou") else "a"
    return rng.choice(QUESTIONS[form]).format(**ask, a=article)


def draw_ask(form: tuple[str, ...], objects: list[dict], rng: random.Random) -> dict | None:
    """A question of one form about a scene, or None where the scene has no single answer to it.

    "exists" is true half the time; a false one often joins the colour of one object to the shape of another, and pairs
    of NEW_PAIRS are asked for in scenes of that split alone.
    """
    kind, given = form[0], form[1:]
    thing = rng.choice(objects)
    ask = {"kind": kind} | {name: thing[name] for name in given if name in thing}
    if "side" in given:
        ask["side"] = rng.choice(SIDES)
    if kind == "count" and "size" in given:
        ask["size"] = rng.choice(SIZES)
    if kind == "exists" and rng.random() < 0.5:
        shown = true_objects(objects)
        while True:
            swapped = {"colour": rng.choice(objects)["colour"], "shape": rng.choice(objects)["shape"]}
            some = {"colour": rng.choice(COLOURS), "shape": rng.choice(SHAPES)}
            other = rng.choice((swapped, some, some | {"colour": thing["colour"]}, some | {"shape": thing["shape"]}))
            pair = other["colour"], other["shape"]
            if pair not in shown and (pair not in NEW_PAIRS or split_of(objects) == "new_pairs"):
                ask |= other
                break
    return ask if answer(ask, objects) is not None else None


def draw_questions(objects: list[dict], n: int, rng: random.Random) -> list[tuple[dict, str, str]]:
    """Up to `n` different questions on a scene as (ask, wording, answer), one of each form first, in random order."""
    drawn: list[tuple[dict, str, str]] = []
    forms: list = []
    for _ in range(8 * n):
        forms = forms or rng.sample(FORMS, len(FORMS))
        ask = draw_ask(forms.pop(), objects, rng)
        if ask is not None and all(ask != other for other, _, _ in drawn):
            drawn.append((ask, question(ask, rng), answer(ask, objects) or ""))
            if len(drawn) == n:
                break
    return drawn


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corner points of a shape in the unit circle, y downwards."""
    if shape == "square":
        return [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]
    if shape == "triangle":
        return [(0.0, -0.95), (0.95, 0.8), (-0.95, 0.8)]
    if shape == "star":
        radii = (1.0, 0.4)
        return [(radii[k % 2] * sin(k * pi / 5), -radii[k % 2] * cos(k * pi / 5)) for k in range(10)]
    if shape == "cross":
        a = 0.3
        corner = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a)]
        return [*corner, (-a, -a)]
    if shape == "heart":
        turns = [2 * pi * k / 60 for k in range(60)]
        return [(sin(t) ** 3, -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 15 + 0.1) for t in turns]
    raise ValueError(f"no outline for {shape}")


MOON_BITE, MOON_SHIFT = 0.85, 0.55  # radius of the circle that is cut out of a moon, and how far right it lies


def _extent(shape: str) -> tuple[float, float, float, float]:
    """The left, top, right and bottom edge of a shape in the unit circle, y downwards."""
    if shape in ("circle", "ring"):
        return -1.0, -1.0, 1.0, 1.0
    if shape == "moon":  # its horns are where both circles meet
        return -1.0, -1.0, (1 + MOON_SHIFT**2 - MOON_BITE**2) / (2 * MOON_SHIFT), 1.0
    across, down = zip(*_outline(shape), strict=True)
    return min(across), min(down), max(across), max(down)


class _Drawn(NamedTuple):
    """Where an object is drawn, in pixels, and its colour."""

    x: float
    y: float
    radius: float
    fill: tuple[int, ...]


class _Plan(NamedTuple):
    """How a scene is drawn: the background's two colours and the turn of its gradient, and the objects."""

    base: list[int]
    slope: list[int]
    turn: int
    objects: list[_Drawn]


def _plan(objects: list[dict], rng: random.Random, side: int) -> _Plan:
    cell = side / 3
    base = [rng.randint(218, 255) for _ in range(3)]
    slope = [max(0, value - rng.randint(0, 24)) for value in base]
    turn, drawn = rng.choice((0, 90, 180, 270)), []
    for thing in objects:
        row, column = divmod(PLACES.index(thing["place"]), 3)
        large = thing["size"] == "large"
        radius = cell * (rng.uniform(0.36, 0.42) if large else rng.uniform(0.21, 0.25))
        shake = cell * (0.06 if large else 0.15)
        x = (column + 0.5) * cell + rng.uniform(-shake, shake)
        y = (row + 0.5) * cell + rng.uniform(-shake, shake)
        fill = tuple(min(255, max(0, value + rng.randint(-12, 12))) for value in RGB[thing["colour"]])
        drawn.append(_Drawn(x, y, radius, fill))
    return _Plan(base, slope, turn, drawn)


def boxes(objects: list[dict], rng: random.Random) -> list[list[float]]:
    """The box around each object, [left, top, right, bottom] as fractions of the picture that `render` draws with a
    generator in the same state.
    """
    side, found = 2 * PIXELS, []
    for thing, (x, y, radius, _) in zip(objects, _plan(objects, rng, side).objects, strict=True):
        corners = (
            (centre + radius * edge) / side for centre, edge in zip((x, y, x, y), _extent(thing["shape"]), strict=True)
        )
        found.append([round(min(1.0, max(0.0, corner)), 4) for corner in corners])
    return found


def render(objects: list[dict], rng: random.Random, pixels: int = PIXELS) -> Image.Image:
    """A scene as an RGB image of `pixels` x `pixels`: pale background with a slight gradient, jittered places, sizes
    and colours, a little noise; drawn at twice the size and scaled down.
    """
    side = 2 * pixels
    base, slope, turn, drawn = _plan(objects, rng, side)
    ramp = Image.linear_gradient("L").rotate(turn).resize((side, side))
    picture = Image.composite(Image.new("RGB", ramp.size, tuple(slope)), Image.new("RGB", ramp.size, tuple(base)), ramp)
    draw = ImageDraw.Draw(picture)
    for thing, (x, y, radius, fill) in zip(objects, drawn, strict=True):
        box = (x - radius, y - radius, x + radius, y + radius)
        if thing["shape"] == "circle":
            draw.ellipse(box, fill=fill)
        elif thing["shape"] == "ring":
            draw.ellipse(box, outline=fill, width=round(radius * 0.36))
        elif thing["shape"] == "moon":
            stencil = Image.new("L", picture.size, 0)
            pen = ImageDraw.Draw(stencil)
            pen.ellipse(box, fill=255)
            bite, shift = radius * MOON_BITE, radius * MOON_SHIFT
            pen.ellipse((x + shift - bite, y - bite, x + shift + bite, y + bite), fill=0)
            picture.paste(fill, (0, 0), stencil)
        else:
            draw.polygon([(x + radius * dx, y + radius * dy) for dx, dy in _outline(thing["shape"])], fill=fill)
    picture = picture.resize((pixels, pixels), Image.Resampling.BOX)
    noise = Image.frombytes("L", (pixels, pixels), rng.randbytes(pixels * pixels)).convert("RGB")
    return Image.blend(picture, noise, 0.04)


def make(folder: Path, seed: int = 0, train: int = 12000, heldout: int = 300, new_pairs: int = 300) -> Path:
    """Draws the demo's media and words into `folder`: images/*.jpg, texts.jsonl and .scenes.json (what was asked for).

    The train split has one caption per image and no questions; the others one caption and up to 8 questions per image.
    Every image has its own generator, so a larger set begins with the same images. A finished folder made with the same
    numbers is reused; one made with others raises ValueError. Everything is written under a temporary
    name and renamed at the end. Returns `folder`.
    """
    counts = {"train": train, "heldout": heldout, "new_pairs": new_pairs}

    def lines(place: Path) -> Iterator[dict]:
        (place / "images").mkdir()

        def scene(drawn: tuple[str, int, list[dict]]) -> list[dict]:
            split, number, objects = drawn
            rng = random.Random(f"picture/{seed}/{split}/{number}")
            image = f"images/{split}-{number:06d}.jpg"
            render(objects, rng).save(place / image, quality=90)
            told = [caption(objects, rng)]
            asked = draw_questions(objects, 0 if split == "train" else 8, rng)
            return list(lines_of(image, split, {"objects": objects}, told, asked))

        for split, n in counts.items():
            numbered = enumerate(draw_scenes(seed, n, split))
            for of_scene in in_threads(scene, ((split, number, objects) for number, objects in numbered)):
                yield from of_scene

    return make_folder(Path(folder), "scenes", {"format": FORMAT, "seed": seed, **counts, "pixels": PIXELS}, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the demo's scenes with captions and questions.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make: images/ and texts.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn")
    parser.add_argument("--train", type=int, default=12000, help="pictures to train on, captions alone")
    parser.add_argument("--heldout", type=int, default=300, help="pictures of new scenes, with questions")
    parser.add_argument("--new-pairs", type=int, default=300, help="pictures with colour-shape pairs never trained on")
    args = parser.parse_args()
    try:
        folder = make(args.out, args.seed, args.train, args.heldout, args.new_pairs)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{args.train + args.heldout + args.new_pairs} scenes in {folder}")


if __name__ == "__main__":
    main()
