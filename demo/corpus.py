"""The demo language model's corpus: documents that begin with a description and go on with what follows from it.

A document reads `<s>Scene: {description}\\n`, then a caption or `Question: {question} Answer: {answer}`, then `</s>`.
The description names every object in telegraphic form, objects and attributes in any order, because an adapter's
tokens will stand in its place and come in an order of their own. For the same reason many descriptions are given not as
words but as blends: positions that hold a weighted sum of several words' embeddings, with noise. A model trained so
reads meanings in its context rather than exact words.
"""

import math
import random
import re
from dataclasses import dataclass, field
from functools import cached_property

import torch

from demo.scenes import caption, draw_ask, draw_questions, draw_scene, question
from scoring.tasks.scenes import ATTRIBUTES, PLACES, answer

OPEN, CLOSE = "Scene:", "\n"
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
PIECE = r" ?[A-Za-z]+(?:-[a-z]+)*| ?[^\sA-Za-z]|\s"
SEPARATORS = (",", ";", ".", " and", " |")
FAINT, ANSWER = 0.03, 3.0
SLOTS = 16
EXISTS = ("exists", "colour", "shape")
LISTINGS = ("What is there?", "What does the picture show?")


def prompt_of(question: str) -> str:
    """The text that stands before a question's answer."""
    return f"Question: {question} Answer:"


def describe(objects: list[dict], rng: random.Random, easy: bool = False) -> str:
    """A telegraphic description with a leading space: objects and attributes shuffled, separators of one kind, mixed
    or dropped; an easy one keeps the attributes in one order and a comma between objects."""
    if easy:
        told = rng.sample(objects, len(objects))
        return ",".join(" {size} {colour} {shape} {place}".format(**thing) for thing in told)
    kinds = rng.choice(((rng.choice(SEPARATORS),), SEPARATORS, (*SEPARATORS, ""), (",",)))
    order = rng.sample(ATTRIBUTES, len(ATTRIBUTES))
    same = rng.random() < 0.3
    text = ""
    for number, thing in enumerate(rng.sample(objects, len(objects))):
        if number:
            text += rng.choice(kinds)
        for name in order if same else rng.sample(ATTRIBUTES, len(ATTRIBUTES)):
            text += " " + thing[name]
    return text


def continuations(objects: list[dict], rng: random.Random, questions: int) -> list[tuple[str, str]]:
    """What may follow a description, as (prompt, target): one caption and up to `questions` questions."""
    found = [("", caption(objects, rng))]
    for _, wording, truth in draw_questions(objects, questions, rng):
        found.append((prompt_of(wording), " " + truth))
    return found


def existence(objects: list[dict], rng: random.Random) -> tuple[str, str]:
    """A question whether something is there, and its answer: the one kind that must tie a colour and a shape to one
    object and has one word to learn it from, so each document asks it once more.
    """
    ask = draw_ask(EXISTS, objects, rng)
    return prompt_of(question(ask, rng)), " " + answer(ask, objects)


def listing(objects: list[dict], rng: random.Random) -> str:
    """All objects again, in another order, as the answer to one of LISTINGS.

    After an object's first attribute the others can only be found by looking that one up in the description, which
    teaches looking up in a fraction of the steps that questions alone need.
    """
    told = rng.sample(objects, len(objects))
    return ",".join("".join(f" {thing[name]}" for name in rng.sample(ATTRIBUTES, len(ATTRIBUTES))) for thing in told)


def build_tokenizer():
    """A byte-level BPE tokenizer (PreTrainedTokenizerFast) trained on the corpus's own words, each of them one token.

    It adds `<s>` in front. Any text can be encoded; a piece never crosses a word's border, so segments encoded one by
    one give the ids of the whole.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random("corpus/tokenizer")
    texts = []
    for _ in range(3000):
        objects = draw_scene(rng, "train")
        texts.append(OPEN + describe(objects, rng) + CLOSE)
        texts += [prompt + target for prompt, target in continuations(objects, rng, 4)]
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
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


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
    """Draws batches of documents about scenes of the "train" split.

    `hardness`, from 0 to 1, is the share of documents whose descriptions are as hard as they come. The others keep what
    belongs to one object close together: without such a start, which word goes with which object is learnt late.
    """

    def __init__(self, tokenizer, seed: int):
        self.tokenizer = tokenizer
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

    def blend(self, row: Row, objects: list[dict], easy: bool) -> None:
        """Writes a description of blends into `row`: each object gets a few neighbouring positions among which its
        attributes are spread, the other positions hold separators, faint words or nothing."""
        rng = self.rng
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
            for name in rng.sample(ATTRIBUTES, len(ATTRIBUTES)):
                lean = min(range(run), key=lambda slot: (len(held[slot]), rng.random()))
                held[lean if rng.random() < 0.6 else rng.randrange(run)].append(thing[name])
            for names in held:
                if not names or rng.random() < 0.3:
                    names += [thing[rng.choice(ATTRIBUTES)] for _ in range(rng.randint(1, 2))]
                for name in names:
                    share = size * rng.uniform(0.6, 1.2) / max(1, len(names)) ** 0.5
                    row.blends.append((at, self.encode(" " + name)[0], share))
                at += 1
        self.gap(row, at, gaps[-1])

    def mix(self, row: Row, objects: list[dict], easy: bool) -> None:
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
                for name in ATTRIBUTES
            ]
            if max(share[at] for share in shares) < 0.7 and rng.random() < 0.3:
                held.append((self.encode(" " + rng.choice((*PLACES, *SEPARATORS)).strip())[0], rng.uniform(0.1, 0.8)))
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

    def row(self, questions: int) -> Row:
        """One document: a description as words, as noisy words or as blends, then its continuations."""
        rng = self.rng
        objects = draw_scene(rng, "train")
        row = Row()
        row.add([self.tokenizer.bos_token_id], 0.0)
        row.add(self.encode(OPEN), FAINT)
        easy = rng.random() >= self.hardness
        form = rng.choices(("words", "noisy", "blend", "mix"), (3, 1, 3, 4))[0]
        if form == "blend":
            self.blend(row, objects, easy)
        elif form == "mix":
            self.mix(row, objects, easy)
        else:
            start = len(row.ids)
            row.add(self.encode(describe(objects, rng, easy)), FAINT)
            if form == "noisy" and not easy:
                row.noise[start:] = [rng.uniform(0.0, 1.0)] * (len(row.ids) - start)
        row.add(self.encode(CLOSE), FAINT)
        start = len(row.ids)
        told = [*continuations(objects, rng, questions), existence(objects, rng)]
        parts = [(prompt, target, ANSWER if prompt else 1.0) for prompt, target in told]
        parts.append((prompt_of(rng.choice(LISTINGS)), listing(objects, rng), 1.0))
        for number, (prompt, target, weight) in enumerate(parts, 1):
            ids = self.encode(prompt)
            row.add(ids, FAINT, number, start)
            row.add([*self.encode(target), self.tokenizer.eos_token_id], weight, number, start + len(ids))
        return row

    def batch(self, rows: int, questions: int = 4) -> Batch:
        """A batch of `rows` documents with a caption and up to `questions` questions each."""
        drawn = [self.row(questions) for _ in range(rows)]
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
