"""Draws the demo's sounds: one to three consecutive events, with captions and questions, all from a seed.

The splits follow from rules, not from draws, so they hold for any seed: a recording belongs to "new_pairs" when both
sounds of a pair of NEW_PAIRS are heard, to "heldout" when a hash of its pitches and sounds (whatever their order) says
so, and to "train" otherwise. The encoder's and the adapter's trainings draw from "train".

New pairs are of sounds that training never plays in one recording. They aren't of pitch and sound, as in scenes of
colour and shape: with two pitches, a drum that is never heard high teaches that a drum is low.
"""

import argparse
import io
import random
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from periscope.demo.making import SPLITS, distinct_questions, lines_of, make_folder, split_by
from periscope.evaluation.tasks.sounds import LOUDNESSES, PITCHES, PLACES, SIDES, SOUNDS, answer, true_sounds

NEW_PAIRS = frozenset([("bell", "drum"), ("click", "whistle"), ("buzz", "chirp"), ("hiss", "siren")])
RATE, SECONDS = 16000, 2.0
SLOT = 0.64  # seconds from one event's place to the next
BASE = {"low": (240, 320), "high": (950, 1250)}  # Hz
LEVEL = {"soft": (0.06, 0.10), "loud": (0.45, 0.7)}  # highest amplitude
FORMAT = 1

CAPTIONS = (
    ("", "a {loudness} {pitch} {sound}", (", then ", ", then "), "."),
    ("first ", "a {loudness} {pitch} {sound}", (", second ", ", third "), "."),
    ("there is ", "a {loudness} {pitch} {sound}", (" before ", " before "), "."),
    ("this recording holds ", "a {loudness} {pitch} {sound}", (", then ", ", then "), "."),
    ("", "a {pitch} {sound} that is {loudness}", (", after it ", ", after it "), "."),
)

QUESTIONS = {
    ("sound", "place"): ("What sound is {place}?", "Which sound comes {place}?"),
    ("sound", "pitch"): ("What sound is {pitch}?", "Which sound is the {pitch} one?"),
    ("sound", "loudness"): ("What sound is {loudness}?", "Which sound is the {loudness} one?"),
    ("pitch", "sound"): ("Is the {sound} low or high?", "What pitch does the {sound} have?"),
    ("pitch", "place"): ("Is the {place} sound low or high?", "What pitch does the {place} sound have?"),
    ("loudness", "sound"): ("Is the {sound} soft or loud?", "How loud is the {sound}?"),
    ("loudness", "place"): ("Is the {place} sound soft or loud?", "How loud is the {place} sound?"),
    ("place", "sound"): ("When is the {sound} heard?", "At which place comes the {sound}?"),
    ("place", "pitch", "sound"): ("When is the {pitch} {sound} heard?", "At which place comes the {pitch} {sound}?"),
    ("count",): ("How many sounds are there?", "How many sounds does the recording hold?"),
    ("count", "loudness"): ("How many {loudness} sounds are there?", "How many sounds are {loudness}?"),
    ("exists", "pitch", "sound"): ("Is there a {pitch} {sound}?", "Is a {pitch} {sound} heard?"),
    ("relation", "side", "sound"): ("What comes {side} the {sound}?", "Which sound comes {side} the {sound}?"),
}
FORMS = tuple(QUESTIONS)


def split_of(events: list[dict]) -> str:
    """The split a recording belongs to, by its events' pitches and sounds alone; one event is never held out."""
    heard = {event["sound"] for event in events}
    return split_by(true_sounds(events), any(heard.issuperset(pair) for pair in NEW_PAIRS))


def draw_sound(rng: random.Random, split: str) -> list[dict]:
    """One recording of `split`: 1 to 3 events (2 or 3 outside "train") in order of time, no two alike."""
    while True:
        count = rng.choices((1, 2, 3), (1, 4, 5))[0] if split == "train" else rng.choice((2, 3))
        pairs = [(rng.choice(PITCHES), rng.choice(SOUNDS)) for _ in range(count)]
        if split == "new_pairs":
            places = rng.sample(range(count), 2)
            for place, sound in zip(places, rng.choice(sorted(NEW_PAIRS)), strict=True):
                pairs[place] = (rng.choice(PITCHES), sound)
        events = [
            {"sound": sound, "pitch": pitch, "loudness": rng.choice(LOUDNESSES), "place": place}
            for (pitch, sound), place in zip(pairs, PLACES, strict=False)
        ]
        if len(set(pairs)) == count and split_of(events) == split:
            return events


def draw_sounds(seed: int, n: int, split: str) -> list[list[dict]]:
    """`n` recordings of `split` from a seed; the same seed gives the same ones, and another split others."""
    rng = random.Random(f"sounds/{seed}/{split}")
    return [draw_sound(rng, split) for _ in range(n)]


def caption(events: list[dict], rng: random.Random) -> str:
    """A sentence that describes every event in order of time: sound, pitch and loudness."""
    opening, phrase, joints, end = rng.choice(CAPTIONS)
    text = opening + phrase.format(**events[0])
    text += "".join(joint + phrase.format(**event) for joint, event in zip(joints, events[1:], strict=False)) + end
    return text[0].upper() + text[1:]


def question(ask: dict, rng: random.Random) -> str:
    """A wording of the question `ask` (see evaluation.tasks.sounds.answer)."""
    form = next(form for form in FORMS if form[0] == ask["kind"] and set(form[1:]) == set(ask) - {"kind"})
    return rng.choice(QUESTIONS[form]).format(**ask)


def draw_ask(form: tuple[str, ...], events: list[dict], rng: random.Random) -> dict | None:
    """A question of one form about a recording, or None where the recording has no single answer to it.

    "exists" is true half the time; a false one often asks for a sound that is heard, at the other pitch.
    """
    kind, given = form[0], form[1:]
    event = rng.choice(events)
    ask = {"kind": kind} | {name: event[name] for name in given if name in event}
    if "side" in given:
        ask["side"] = rng.choice(SIDES)
    if kind == "count" and "loudness" in given:
        ask["loudness"] = rng.choice(LOUDNESSES)
    if kind == "exists" and rng.random() < 0.5:
        heard = true_sounds(events)
        while True:
            near = (rng.choice(PITCHES), event["sound"])
            pair = rng.choice((near, (rng.choice(PITCHES), rng.choice(SOUNDS))))
            if pair not in heard:
                ask["pitch"], ask["sound"] = pair
                break
    return ask if answer(ask, events) is not None else None


def draw_questions(events: list[dict], n: int, rng: random.Random) -> list[tuple[dict, str, str]]:
    """Up to `n` different questions on a recording as (ask, wording, answer), one of each form first."""

    def draw(form):
        ask = draw_ask(form, events, rng)
        return None if ask is None else (ask, question(ask, rng), answer(ask, events))

    return distinct_questions(FORMS, n, rng, draw)


def tone(sound: str, base: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """One event at full loudness: float64 `(samples,)` at RATE, about `base` Hz, peak amplitude 1."""
    t = np.arange(round(seconds * RATE)) / RATE
    turn = 2 * np.pi * base * t
    if sound == "bell":
        partials = ((1.0, 1.0, 3), (2.0, 0.6, 5), (2.76, 0.5, 6), (5.4, 0.25, 9))
        heard = sum(share * np.sin(ratio * turn) * np.exp(-fall * t / seconds) for ratio, share, fall in partials)
    elif sound == "drum":
        bend = 2 * np.pi * base * (t + 0.02 * (1 - np.exp(-t / 0.02)))
        heard = np.sin(bend) * np.exp(-t / 0.06) + 0.6 * rng.standard_normal(len(t)) * np.exp(-t / 0.012)
    elif sound == "whistle":
        heard = np.sin(turn + 1.5 * np.sin(2 * np.pi * rng.uniform(5, 7) * t)) * np.minimum(1, t / 0.05)
    elif sound == "buzz":
        overtones = np.arange(1, int(7000 / base) + 1)
        heard = sum(np.sin(n * turn) / n**0.7 for n in overtones) * (1 + 0.5 * np.sign(np.sin(2 * np.pi * 30 * t)))
    elif sound == "click":
        since = np.mod(t, seconds / 5)
        heard = np.sin(2 * np.pi * 2 * base * since) * np.exp(-since / 0.004)
    elif sound == "siren":
        speed = rng.uniform(3.5, 4.5)
        sweep = turn - base * 0.4 / speed * (np.cos(2 * np.pi * speed * t) - 1)
        heard = np.sin(sweep) + 0.4 * np.sin(3 * sweep) + 0.2 * np.sin(5 * sweep)
    elif sound == "chirp":
        length = seconds / 3
        since = np.mod(t, length)
        heard = np.sin(2 * np.pi * base * (since + since**2 / length)) * np.sin(np.pi * since / length) ** 2
    elif sound == "hiss":
        spectrum = np.fft.rfft(rng.standard_normal(len(t)))
        pitch = np.fft.rfftfreq(len(t), 1 / RATE)
        heard = np.fft.irfft(spectrum * np.exp(-((np.log2((pitch + 1) / (2 * base)) / 0.35) ** 2)), len(t))
    else:
        raise ValueError(f"no sound is called {sound}")
    fade = np.minimum(1, np.minimum(t, seconds - t) / 0.01)
    heard = heard * fade
    return heard / np.abs(heard).max()


def render(events: list[dict], rng: random.Random) -> np.ndarray:
    """A recording as float32 `(samples,)`, SECONDS long at RATE, in [-1, 1]: each event in its third, with jitter of
    time, length, pitch and level, over faint noise."""
    numbers = np.random.default_rng(rng.getrandbits(64))
    heard = numbers.uniform(0.0005, 0.002) * numbers.standard_normal(round(SECONDS * RATE))
    for event in events:
        seconds = rng.uniform(0.34, 0.46)
        start = SLOT * PLACES.index(event["place"]) + rng.uniform(0.02, SLOT - seconds - 0.02)
        sound = tone(event["sound"], rng.uniform(*BASE[event["pitch"]]), seconds, numbers)
        at = round(start * RATE)
        heard[at : at + len(sound)] += rng.uniform(*LEVEL[event["loudness"]]) * sound
    return np.clip(heard, -1, 1).astype(np.float32)


def wav(samples: np.ndarray) -> bytes:
    """float samples (samples,) as the bytes of a 16-bit mono WAV file at RATE."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def make(folder: Path, seed: int = 0, train: int = 4000, heldout: int = 200, new_pairs: int = 200) -> Path:
    """Draws the demo's sounds and words into `folder`: sounds/*.wav, texts.jsonl and .sounds.json (what was asked for).

    The train split has one caption per recording and no questions; the others one caption and up to 8 questions.
    Every recording has its own generator, so a larger set begins with the same recordings. For an existing folder see
    demo.making.make_folder. Returns `folder`.
    """
    counts = dict(zip(SPLITS, (train, heldout, new_pairs), strict=True))

    def lines(place: Path) -> Iterator[dict]:
        (place / "sounds").mkdir()
        for split, n in counts.items():
            for number, events in enumerate(draw_sounds(seed, n, split)):
                rng = random.Random(f"recording/{seed}/{split}/{number}")
                name = f"sounds/{split}-{number:06d}.wav"
                (place / name).write_bytes(wav(render(events, rng)))
                asked = draw_questions(events, 0 if split == "train" else 8, rng)
                yield from lines_of(name, split, {"events": events}, [caption(events, rng)], asked)

    asked = {"format": FORMAT, "seed": seed, **counts, "rate": RATE, "seconds": SECONDS}
    return make_folder(Path(folder), "sounds", asked, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the demo's sounds with captions and questions.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make: sounds/ and texts.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn")
    parser.add_argument("--train", type=int, default=4000, help="recordings to train on, captions alone")
    parser.add_argument("--heldout", type=int, default=200, help="recordings of new sequences, with questions")
    parser.add_argument("--new-pairs", type=int, default=200, help="recordings with pairs never trained on")
    args = parser.parse_args()
    try:
        folder = make(args.out, args.seed, args.train, args.heldout, args.new_pairs)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{args.train + args.heldout + args.new_pairs} sounds in {folder}")


if __name__ == "__main__":
    main()
