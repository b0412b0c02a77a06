"""Scores of captions against several references, computed by the programs behind published numbers.

CIDEr-D (Vedantam et al. 2015), BLEU (Papineni et al. 2002), ROUGE-L (Lin 2004) and METEOR (Denkowski & Lavie 2014) are
those of pycocoevalcap (https://github.com/salaniz/pycocoevalcap). Its scorers are called one by one, because its own
`evaluate()` always builds SPICE, which downloads. It includes Java programs for METEOR and for the tokenisation used in
published scores; without Java a plain tokenisation is used instead. SPICE (Anderson et al. 2016, arXiv 1607.08822) is
another Java program, and parses with Stanford CoreNLP, which isn't part of that package. Captions in scripts that put
no spaces between words (Chinese, Japanese, Thai ...) are one word to both, so they are split into characters. The
score's note names the tokenisation.
"""

import contextlib
import io
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np

from periscope.errors import ScoreError
from periscope.evaluation.metrics.answers import has_unspaced, words
from periscope.evaluation.metrics.score import Clusters, Key, Score, drawn, interval, mean, paired

FEW = 100
PTB, PLAIN = "PTB tokenisation", "plain tokenisation, because there is no Java: not comparable with published scores"
BY_CHARACTER = "by character in scripts without spaces (CIDEr, BLEU and ROUGE-L count characters there)"
CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")  # nlp.stanford.edu/software, 2015-12-09
TINY, SMALL = 1e-15, 1e-9  # against division by zero, as in pycocoevalcap's BLEU

Captions = Mapping[Key, str]
References = Mapping[Key, str | Sequence[str]]
Tokens = dict[Key, list[str]]

_tokens: dict[str, str] = {}  # caption -> its tokens


def cider(predictions: Captions, references: References, clusters: Clusters = None) -> Score:
    """CIDEr-D, from 0 to 10 (papers report it times 100).

    Word frequencies come from the references given, so it means nothing for few items; warns below 100. Raises
    ScoreError as `paired`, or without pycocoevalcap.
    """
    scorer = _scorer("cider.cider", "Cider")
    said, true, note = tokenise(predictions, references, "CIDEr")
    _, each = scorer().compute_score(true, said)
    return mean(dict(zip(true, map(float, each), strict=True)), note, clusters)


def rouge_l(predictions: Captions, references: References, clusters: Clusters = None) -> Score:
    """ROUGE-L's F-measure with beta 1.2, from 0 to 1. Raises ScoreError as `cider`."""
    scorer = _scorer("rouge.rouge", "Rouge")
    said, true, note = tokenise(predictions, references)
    _, each = scorer().compute_score(true, said)
    return mean(dict(zip(true, map(float, each), strict=True)), note, clusters)


def bleu(predictions: Captions, references: References, order: int = 4, clusters: Clusters = None) -> Score:
    """Corpus BLEU of n-grams up to `order`, against the reference nearest in length, from 0 to 1. It isn't a mean of
    items, so the score has no `each`. Raises ScoreError as `cider`.
    """
    scorer = _scorer("bleu.bleu_scorer", "BleuScorer")(n=order)
    said, true, note = tokenise(predictions, references)
    for key in true:
        scorer += (said[key][0], true[key])
    with contextlib.redirect_stdout(io.StringIO()):
        values, _ = scorer.compute_score(option="closest", verbose=0)
    rows = [
        [*row["guess"][:order], *row["correct"][:order], row["testlen"], _nearest(row["reflen"], row["testlen"])]
        for row in scorer.ctest
    ]
    counts = np.array(rows)
    low, high = interval(counts, lambda sums: _bleu(sums, order), drawn(true, clusters))
    return Score(float(values[order - 1]), low, high, len(counts), note)


def meteor(predictions: Captions, references: References, clusters: Clusters = None) -> Score:
    """METEOR 1.5, from 0 to 1. It isn't a mean of items; its interval is that of the items' mean, shifted to its value.
    Raises ScoreError as `cider`, and without Java.
    """
    if not has_java():
        raise ScoreError("METEOR is a Java program and there is no java here: install a Java runtime, or leave it out")
    scorer = _scorer("meteor.meteor", "Meteor")
    said, true, note = tokenise(predictions, references)
    value, each = scorer().compute_score(true, said)
    items = mean(dict(zip(true, each, strict=True)), note, clusters)
    moved = value - items.value
    return Score(float(value), items.low + moved, items.high + moved, items.n, note, items.each)


def spice(predictions: Captions, references: References, clusters: Clusters = None) -> Score:
    """SPICE's F-measure over objects, attributes and relations, from 0 to 1. Raises ScoreError as `cider`, and where
    `spice_lacks` something, because pycocoevalcap would download it.
    """
    if lacking := spice_lacks():
        raise ScoreError(f"SPICE {lacking}, or leave it out")
    said, true, note = tokenise(predictions, references)
    rows = list(true)  # its own program takes whole numbers for names
    try:
        _, each = _scorer("spice.spice", "Spice")().compute_score(
            {row: true[key] for row, key in enumerate(rows)}, {row: said[key] for row, key in enumerate(rows)}
        )
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise ScoreError(f"SPICE's program failed ({error}); leave it out") from error
    return mean({key: float(scores["All"]["f"]) for key, scores in zip(rows, each, strict=True)}, note, clusters)


def spice_lacks() -> str:
    """What SPICE lacks here, to be continued after its name; "" for nothing."""
    if not has_java():
        return "is a Java program and there is no java here: install a Java runtime"
    if not available():
        return "needs pycocoevalcap: pip install 'periscope-adapters[scores]'"
    folder = Path(_imported_from("spice")) / "lib"
    missing = [name for name in CORENLP if not (folder / name).is_file()]
    return f"needs {missing[0]} of Stanford CoreNLP 3.6.0: put it into {folder}" if missing else ""


def tokenise(predictions: Captions, references: References, name: str = "") -> tuple[Tokens, Tokens, str]:
    """The inputs of the scorers: key -> [tokenised prediction], key -> tokenised references, both in the order of
    `references`, and how they were tokenised.

    Line breaks inside a caption become spaces first, because the official tokeniser would shift all later captions.
    Raises ScoreError as `paired`.
    """
    paired(predictions, references, FEW if name else 0, name)
    said = {key: [_one_line(predictions[key])] for key in references}
    true = {key: [_one_line(text) for text in _listed(texts)] for key, texts in references.items()}
    if empty := [key for key, texts in true.items() if not texts]:
        raise ScoreError(f"{len(empty)} items have no reference ({empty[0]!r}): leave them out")
    every = [text for captions in (said, true) for listed in captions.values() for text in listed]
    java, unspaced = has_java(), sum(map(has_unspaced, every))
    prepare(every)

    def tokens(text: str) -> str:
        if has_unspaced(text):
            return " ".join(words(text))
        return _tokens[text] if java else _plain(text)

    said, true = ({key: [tokens(text) for text in listed] for key, listed in texts.items()} for texts in (said, true))
    notes = [PTB if java else PLAIN] * (unspaced < len(every)) + [BY_CHARACTER] * bool(unspaced)
    return said, true, ", ".join(notes)


def prepare(texts: Iterable[str]) -> None:
    """Tokenise captions in advance and cache them. Starting Java takes half a second, so pass everything at once."""
    lines_of = (line for one in texts if not has_unspaced(line := _one_line(one)))
    wanted = dict.fromkeys(line for line in lines_of if line not in _tokens)
    if wanted and available() and has_java():
        lines = dict(enumerate(wanted))
        with TemporaryFile() as said:
            with _java_speaks_into(said):
                found = _scorer("tokenizer.ptbtokenizer", "PTBTokenizer")().tokenize(
                    {key: [{"caption": line}] for key, line in lines.items()}
                )
            if len(found) < len(lines):
                said.seek(0)
                raise ScoreError(f"Java's tokenizer failed: {said.read().decode(errors='replace').strip()[-200:]}")
        _tokens.update({line: found[key][0] for key, line in lines.items()})


@contextlib.contextmanager
def _java_speaks_into(file: IO[bytes]) -> Iterator[None]:
    """What programs that are started meanwhile write to stderr goes into `file`: Java's tokenizer tells how fast it
    was, whoever asks.
    """
    sys.stderr.flush()
    before = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def available() -> bool:
    """Whether pycocoevalcap is installed."""
    return find_spec("pycocoevalcap") is not None


def has_java() -> bool:
    """Whether Java is installed, which METEOR and the Penn Treebank tokenisation need."""
    return shutil.which("java") is not None


def _scorer(module: str, name: str) -> type:
    if not available():
        raise ScoreError("caption scores need pycocoevalcap: pip install 'periscope-adapters[scores]'")
    return _imported(module, name)


@cache
def _imported(module: str, name: str) -> type:
    from importlib import import_module

    return getattr(import_module(f"pycocoevalcap.{module}"), name)


def _imported_from(module: str) -> str:
    """The folder of a package of pycocoevalcap."""
    spec = find_spec(f"pycocoevalcap.{module}")
    assert spec is not None and spec.submodule_search_locations
    return spec.submodule_search_locations[0]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _listed(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts


def _plain(text: str) -> str:
    """Lower-cased words and numbers without punctuation, with `'s` and `n't` split off as in the Penn Treebank."""
    apart = re.sub(r"(n't|'\w+)\b", r" \1", text.lower())
    return " ".join(re.findall(r"n't|'\w+|\w+(?:-\w+)*", apart))


def _nearest(lengths: Sequence[int], length: int) -> int:
    return min((abs(one - length), one) for one in lengths)[1]


def _bleu(counts: np.ndarray, order: int) -> np.ndarray:
    """pycocoevalcap's formula. counts: `(draws, 2 * order + 2)` sums of guesses and matches of each order, and of both
    lengths.
    """
    guess, correct = counts[:, :order], counts[:, order : 2 * order]
    value = np.prod((correct + TINY) / (guess + SMALL), axis=1) ** (1 / order)
    ratio = (counts[:, -2] + TINY) / (counts[:, -1] + SMALL)
    return value * np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, math.inf)), 1.0)
