"""The corpus of the demo's language models: descriptions, each with texts that follow from it.

A document is `<s>Scene: {description}\\n`, then a caption or `Question: {question} Answer: {answer}`, then `</s>`. With
`Sound:` or `Clip:` it is about one of these; some documents are about a scene and a sound, in either order. The
description names every object in telegraphic form, with objects and attributes in any order, because an adapter's
tokens will take its place and have an order of their own. For the same reason many descriptions are not words but
blends: positions that hold a weighted sum of several word embeddings, with noise. A model trained on these reads
meanings in its context, not exact words.
"""

import json
import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from periscope.demo import clips, scenes, sounds
from periscope.evaluation.tasks import TASKS, DemoTask

CLOSE = "\n"
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
PIECE = r" ?[A-Za-z]+(?:-[a-z]+)*| ?[^\sA-Za-z]|\s"
SEPARATORS = (",", ";", ".", " and", " |")
FAINT, ANSWER = 0.03, 3.0
SLOTS = 16


@dataclass(frozen=True)
class Medium:
    """What documents about one kind of medium are made of.

    - `opening`: text before a description.
    - `draw`: (generator, split) -> the content of one medium.
    - `words`: the module that captions it and asks about it.
    - `task`: its correct answers.
    - `places`: the places where objects are.
    - `easy`: a description of one object with its attributes in a fixed order.
    - `exists`: the form of the question whether something is there.
    - `listings`: questions that ask for everything.
    """

    opening: str
    draw: Callable[[random.Random, str], list[dict]]
    words: Any  # a module of periscope.demo, or what stands in for one
    task: DemoTask
    places: tuple[str, ...]
    easy: str
    exists: tuple[str, ...]
    listings: tuple[str, ...]


MEDIA = {
    "image": Medium(
        *("Scene:", scenes.draw_scene, scenes, TASKS["objects"], scenes.PLACES),
        *(" {size} {colour} {shape} {place}", ("exists", "colour", "shape")),
        ("What is there?", "What does the picture show?"),
    ),
    "audio": Medium(
        *("Sound:", sounds.draw_sound, sounds, TASKS["events"], sounds.PLACES),
        *(" {loudness} {pitch} {sound} {place}", ("exists", "pitch", "sound")),
        ("What is heard?", "What does the recording hold?"),
    ),
    "video": Medium(
        *("Clip:", clips.draw_clip, clips, TASKS["movers"], clips.PLACES),
        *(" {pace} {colour} {shape} {way} {place}", ("exists", "colour", "shape")),
        ("What is there?", "What does the clip show?"),
    ),
}
SHARES = {("image",): 8, ("audio",): 8, ("video",): 4, ("image", "audio"): 1, ("audio", "image"): 1}


def prompt_of(question: str) -> str:
    """The text before a question's answer."""
    return f"Question: {question} Answer:"


def describe(medium: Medium, things: list[dict], rng: random.Random, easy: bool = False) -> str:
    """A telegraphic description with a leading space: objects and attributes shuffled, separators of one kind, mixed or
    omitted. An easy one keeps the attributes in one order and puts a comma between objects.
    """
    if easy:
        return ",".join(medium.easy.format(**thing) for thing in rng.sample(things, len(things)))
    attributes = medium.task.attributes
    kinds = rng.choice(((rng.choice(SEPARATORS),), SEPARATORS, (*SEPARATORS, ""), (",",)))
    order = rng.sample(attributes, len(attributes))
    same = rng.random() < 0.3
    text = ""
    for number, thing in enumerate(rng.sample(things, len(things))):
        if number:
            text += rng.choice(kinds)
        for name in order if same else rng.sample(attributes, len(attributes)):
            text += " " + thing[name]
    return text


def asked(medium: Medium, things: list[dict], rng: random.Random, questions: int) -> list[tuple[str, str]]:
    """Up to `questions` questions about one medium as (prompt, answer)."""
    found = medium.words.draw_questions(things, questions, rng)
    return [(prompt_of(wording), " " + truth) for _, wording, truth in found]


def existence(medium: Medium, things: list[dict], rng: random.Random) -> tuple[str, str]:
    """A question whether something is there, and its answer. It is the one kind that must bind two attributes to one
    object with a single word to learn it from, so each document asks it once more.
    """
    ask = medium.words.draw_ask(medium.exists, things, rng)
    answer = medium.task.answer(ask, things)
    assert answer, "whether something is there has an answer in every scene"
    return prompt_of(medium.words.question(ask, rng)), " " + answer


def listing(medium: Medium, things: list[dict], rng: random.Random) -> tuple[str, str]:
    """A question for everything; the answer is all objects again, in another order.

    After an object's first attribute, the others can only be found by looking that one up in the description. This
    teaches look-up in a fraction of the steps that questions alone need.
    """
    names = medium.task.attributes
    told = rng.sample(things, len(things))
    text = ",".join("".join(f" {thing[name]}" for name in rng.sample(names, len(names))) for thing in told)
    return prompt_of(rng.choice(medium.listings)), text


def sample_texts(medium: Medium, rng: random.Random, n: int) -> list[str]:
    """Descriptions, captions and questions with answers, of `n` media."""
    texts = []
    for _ in range(n):
        things = medium.draw(rng, "train")
        texts += [medium.opening + describe(medium, things, rng) + CLOSE, medium.words.caption(things, rng)]
        texts += [prompt + target for prompt, target in asked(medium, things, rng, 4)]
    return texts


def build_tokenizer():
    """A byte-level BPE tokenizer (PreTrainedTokenizerFast) trained on the corpus's words; each of them is one token.

    It prepends `<s>`. Any text can be encoded; a piece never crosses a word boundary, so segments encoded one by one
    give the ids of the whole. The words of sounds and clips come after those of scenes, whose ids existed first.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = sample_texts(MEDIA["image"], random.Random("corpus/tokenizer"), 3000)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    for name in ("audio", "video"):
        medium, rng = MEDIA[name], random.Random(f"corpus/tokenizer/{name}")
        texts = [*sample_texts(medium, rng, 1000), *map(prompt_of, medium.listings)]
        tokenizer = with_words(tokenizer, {piece for text in texts for piece in re.findall(PIECE, text)})
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def with_words(tokenizer, pieces: set[str]):
    """The tokenizers.Tokenizer `tokenizer` with each of `pieces` as one token; existing ids don't change.

    If a piece is several tokens, these are merged one after the other. New merges rank behind all existing ones, so
    that a piece that was one token stays one.
    """
    from tokenizers import Tokenizer

    for piece in sorted(pieces):
        whole, *rest = tokenizer.encode(piece, add_special_tokens=False).tokens
        if not rest:
            continue
        state = json.loads(tokenizer.to_str())
        vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
        for part in rest:
            merges.append([whole, part])
            whole += part
            vocabulary.setdefault(whole, len(vocabulary))
        tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


@dataclass
class Batch:
    """Rows of one description each with several continuations that see the description but not one another.

    ids, positions (rows, length) int64; weights (rows, length) float32, the loss weight of predicting that token;
    mask (rows, 1, length, length) bool; words (rows, length) float32, 0 where the position holds a blend instead of its
    id's embedding; blends: (flat position, id) pairs with their weights; noise, scale (rows, length) float32.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    weights: torch.Tensor
    mask: torch.Tensor
    words: torch.Tensor
    blend_at: torch.Tensor
    blend_ids: torch.Tensor
    blend_weights: torch.Tensor
    noise: torch.Tensor

    def embed(self, table: torch.Tensor) -> torch.Tensor:
        """The batch's input embeddings (rows, length, width) from an embedding table (vocabulary, width)."""
        rows, length = self.ids.shape
        spread = table.detach().square().mean().sqrt()
        embeds = (table[self.ids] * self.words[..., None]).reshape(rows * length, -1)
        embeds = embeds.index_add(0, self.blend_at, table[self.blend_ids] * self.blend_weights[:, None])
        embeds = embeds.view(rows, length, -1)
        return embeds + torch.randn_like(embeds) * (self.noise[..., None] * spread)


@dataclass
class Row:
    """One document being built: parallel lists over its positions."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    words: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    blends: list[tuple[int, int, float]] = field(default_factory=list)

    def add(self, ids: list[int], weight: float, segment: int = 0, start: int | None = None):
        start = len(self.ids) if start is None else start
        self.ids += ids
        self.positions += range(start, start + len(ids))
        self.weights += [weight] * len(ids)
        self.segments += [segment] * len(ids)
        self.words += [1.0] * len(ids)
        self.noise += [0.0] * len(ids)

    def add_slots(self, pad: int, slots: int, noise: float):
        """Adds positions that hold no word of their own, only what `blends` puts there, and noise."""
        start = len(self.ids)
        self.add([pad] * slots, 0.0)
        self.words[start:] = [0.0] * slots
        self.noise[start:] = [noise] * slots


class Corpus:
    """Draws batches of documents about media of the "train" splits.

    `shares` are the relative frequencies of documents by the media they are about. `hardness`, from 0 to 1, is the
    share of documents whose descriptions are of full difficulty. The others keep what belongs to one object close
    together; without such a start, which word belongs to which object is learnt late.
    """

    def __init__(self, tokenizer, seed: int, shares: Mapping[tuple[str, ...], float] = SHARES):
        self.tokenizer, self.shares = tokenizer, shares
        self.rng = random.Random(f"corpus/{seed}")
        self.pieces: dict[str, list[int]] = {}
        self.hardness = 1.0

    @cached_property
    def split(self):
        return re.compile(PIECE)

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens, from a memory of encoded words."""
        ids = []
        for piece in self.split.findall(text):
            if piece not in self.pieces:
                self.pieces[piece] = self.tokenizer.encode(piece, add_special_tokens=False)
            ids += self.pieces[piece]
        return ids

    def blend(self, row: Row, medium: Medium, objects: list[dict], easy: bool) -> None:
        """Writes a description of blends into `row`: each object gets a few neighbouring positions among which its
        attributes are spread, the other positions hold separators, faint words or nothing."""
        rng, attributes = self.rng, medium.task.attributes
        least = len(objects)
        slots = rng.choices((SLOTS, rng.randint(least, SLOTS), rng.randint(SLOTS, 40)), (6, 2, 2))[0]
        runs = [1] * least
        spare = 0 if easy else rng.randint(0, min(slots - least, 5 * least))
        for _ in range(spare):
            runs[rng.randrange(least)] += 1
        empty = slots - sum(runs)
        gaps = [0] * (least + 1)
        for _ in range(empty):
            gaps[rng.randrange(least + 1)] += 1
        level = rng.uniform(0.0, 0.1 if easy else 0.8)
        size = rng.uniform(0.6, 1.8)
        start = len(row.ids)
        row.add_slots(self.tokenizer.pad_token_id, slots, level)
        at = start
        for thing, run, gap in zip(rng.sample(objects, least), runs, gaps, strict=False):
            at += self.gap(row, at, gap)
            held: list[list[str]] = [[] for _ in range(run)]
            for name in rng.sample(attributes, len(attributes)):
                lean = min(range(run), key=lambda slot: (len(held[slot]), rng.random()))
                held[lean if rng.random() < 0.6 else rng.randrange(run)].append(thing[name])
            for names in held:
                if not names or rng.random() < 0.3:
                    names += [thing[rng.choice(attributes)] for _ in range(rng.randint(1, 2))]
                for name in names:
                    share = size * rng.uniform(0.6, 1.2) / max(1, len(names)) ** 0.5
                    row.blends.append((at, self.encode(" " + name)[0], share))
                at += 1
        self.gap(row, at, gaps[-1])

    def mix(self, row: Row, medium: Medium, objects: list[dict], easy: bool) -> None:
        """Writes a description of mixtures into `row`: every position may hold something of every object.

        An object has one or more positions of its own, anywhere, and a fainter share in the others, as in what a
        projector makes of one pooled vector. So an object found twice is one object, and words that are strong at the
        same positions belong together.
        """
        rng = self.rng
        slots = rng.choices((SLOTS, rng.randint(len(objects), SLOTS), rng.randint(SLOTS, 40)), (7, 2, 1))[0]
        shares = [[0.0] * slots for _ in objects]
        if easy or rng.random() < 0.6:
            leak = rng.uniform(0.0, 0.1 if easy else 0.7)
            homes = rng.sample(range(slots), len(objects))
            for share, home in zip(shares, homes, strict=True):
                others = [] if easy else rng.choices(range(slots), k=rng.choice((0, 1, 2, 4)))
                for at in range(slots):
                    share[at] = 1.0 if at == home or at in others else leak * rng.random()
        else:
            sharpness = rng.uniform(0.7, 4.0)
            for at in range(slots):
                drawn = [math.exp(sharpness * rng.gauss(0.0, 1.0)) for _ in objects]
                for share, value in zip(shares, drawn, strict=True):
                    share[at] = value / sum(drawn)
        start = len(row.ids)
        row.add_slots(self.tokenizer.pad_token_id, slots, rng.uniform(0.0, 0.1 if easy else 0.6))
        size, spread = rng.uniform(0.6, 1.8), 0.0 if easy else rng.uniform(0.0, 0.7)
        for at in range(slots):
            held = [
                (self.encode(" " + thing[name])[0], share[at] * rng.uniform(1 - spread, 1 + spread))
                for thing, share in zip(objects, shares, strict=True)
                for name in medium.task.attributes
            ]
            if max(share[at] for share in shares) < 0.7 and rng.random() < 0.3:
                filler = " " + rng.choice((*medium.places, *SEPARATORS)).strip()
                held.append((self.encode(filler)[0], rng.uniform(0.1, 0.8)))
            norm = math.hypot(*(weight for _, weight in held))
            full = rng.random() < 0.7
            for word, weight in held:
                row.blends.append((start + at, word, size * weight / (norm if full else max(norm, 2.0))))

    def gap(self, row: Row, at: int, count: int) -> int:
        """Fills `count` positions that carry no object; returns `count`."""
        for position in range(at, at + count):
            if self.rng.random() < 0.4:
                word = self.encode(self.rng.choice(SEPARATORS))[0]
                row.blends.append((position, word, self.rng.uniform(0.1, 1.0)))
        return count

    def choose(self, shares: Mapping[tuple[str, ...], float]) -> tuple[str, ...]:
        """Which media the next document is about."""
        return self.rng.choices(list(shares), list(shares.values()))[0]

    def tell(self, row: Row, medium: Medium, things: list[dict]) -> None:
        """Writes a description into `row`, as words, as noisy words, as blends or as mixtures."""
        rng = self.rng
        row.add(self.encode(medium.opening), FAINT)
        easy = rng.random() >= self.hardness
        form = rng.choices(("words", "noisy", "blend", "mix"), (3, 1, 3, 4))[0]
        if form == "blend":
            self.blend(row, medium, things, easy)
        elif form == "mix":
            self.mix(row, medium, things, easy)
        else:
            start = len(row.ids)
            row.add(self.encode(describe(medium, things, rng, easy)), FAINT)
            if form == "noisy" and not easy:
                row.noise[start:] = [rng.uniform(0.0, 1.0)] * (len(row.ids) - start)
        row.add(self.encode(CLOSE), FAINT)

    def row(self, names: tuple[str, ...], questions: int) -> Row:
        """One document: a description of each of the media `names`, then its continuations, of which the caption is of
        all of them."""
        rng = self.rng
        told = [(MEDIA[name], MEDIA[name].draw(rng, "train")) for name in names]
        row = Row()
        row.add([self.tokenizer.bos_token_id], 0.0)
        for medium, things in told:
            self.tell(row, medium, things)
        start = len(row.ids)
        parts = [("", " ".join(medium.words.caption(things, rng) for medium, things in told), 1.0)]
        for medium, things in told:
            questioned = [*asked(medium, things, rng, questions // len(told)), existence(medium, things, rng)]
            parts += [(prompt, target, ANSWER) for prompt, target in questioned]
            parts.append((*listing(medium, things, rng), 1.0))
        for number, (prompt, target, weight) in enumerate(parts, 1):
            ids = self.encode(prompt)
            row.add(ids, FAINT, number, start)
            row.add([*self.encode(target), self.tokenizer.eos_token_id], weight, number, start + len(ids))
        return row

    def batch(self, rows: int, questions: int = 4) -> Batch:
        """A batch of `rows` documents with a caption and up to `questions` questions each, and one of existence.

        All are about one medium, or all about several: short documents beside long ones would be padding.
        """
        several = len(self.choose(self.shares)) > 1
        shares = {names: share for names, share in self.shares.items() if (len(names) > 1) == several}
        drawn = [self.row(self.choose(shares), questions) for _ in range(rows)]
        length = max(len(row.ids) for row in drawn)

        def padded(name, fill, dtype):
            lists = [getattr(row, name) for row in drawn]
            return torch.tensor([values + [fill] * (length - len(values)) for values in lists], dtype=dtype)

        segments = padded("segments", -1, torch.long)
        mask = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
        mask &= torch.ones(length, length, dtype=torch.bool).tril()
        blends = [
            (number * length + at, word, share) for number, row in enumerate(drawn) for at, word, share in row.blends
        ]
        return Batch(
            ids=padded("ids", self.tokenizer.pad_token_id, torch.long),
            positions=padded("positions", 0, torch.long),
            weights=padded("weights", 0.0, torch.float32),
            mask=mask[:, None],
            words=padded("words", 1.0, torch.float32),
            blend_at=torch.tensor([at for at, _, _ in blends], dtype=torch.long),
            blend_ids=torch.tensor([word for _, word, _ in blends], dtype=torch.long),
            blend_weights=torch.tensor([share for _, _, share in blends]),
            noise=padded("noise", 0.0, torch.float32),
        )
