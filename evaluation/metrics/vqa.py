"""VQA accuracy: a short answer against the answers of ten people.

The rule is that of https://github.com/GT-Vision-Lab/VQA (Antol et al. 2015; Goyal et al. 2017): the accuracy of an
answer is min(1, matches / 3), averaged over the ten ways to leave one person out. Answers are normalised first
(punctuation, articles, numbers up to ten, contractions), with the quirks of that program, because scores depend on
them. Four variants are in use, and each score's note names its own:

- "official": nothing is normalised where all ten people agree, as in that program since 2021
- "always": both sides always, as lmms-eval does for VQAv2
- "m4c": the same after Pythia's word tokenisation, for TextVQA
- "vizwiz": the answer alone, against the people's answers as they stand, as VizWiz's own program does
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from periscope.evaluation.metrics.contractions import CONTRACTIONS
from periscope.evaluation.metrics.score import Clusters, Key, Score, mean, paired

Normalisation = Literal["official", "always", "m4c", "vizwiz"]
ARTICLES = {"a", "an", "the"}
COUNTING = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(COUNTING)}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"\.(?!\d)")
COMMA, COMMAS = re.compile(r"\d,\d"), re.compile(r"\d,+\d")
MAX_PERIODS = 32  # removed from an answer: the program passes re.UNICODE (32) in place of a count


def vqa_accuracy(
    predictions: Mapping[Key, str],
    references: Mapping[Key, Sequence[str]],
    normalise: Normalisation = "official",
    clusters: Clusters = None,
) -> Score:
    """Mean accuracy, from 0 to 1; references are the ten people's answers. Raises ScoreError as `score.paired`."""
    paired(predictions, references)
    each = {key: leave_one_out(*normalised(predictions[key], references[key], normalise)) for key in references}
    return mean(each, f"normalised: {normalise}", clusters)


def leave_one_out(answer: str, people: Sequence[str]) -> float:
    """The mean over people of min(1, matches among the others / 3)."""
    matches = sum(answer == one for one in people)
    return sum(min(1.0, (matches - (answer == one)) / 3) for one in people) / len(people)


def normalised(answer: str, people: Sequence[str], variant: Normalisation) -> tuple[str, list[str]]:
    """An answer and the people's answers, normalised."""
    if variant == "vizwiz":
        return normal_form(_clean(answer)), list(people)
    answer, people = _clean(answer), [_clean(one) for one in people]
    if variant == "m4c":
        answer, people = m4c_words(answer), [m4c_words(one) for one in people]
    if variant == "official" and len(set(people)) == 1:
        return answer, people
    comma = COMMA if variant == "official" else COMMAS
    return normal_form(answer, comma), [normal_form(one, comma) for one in people]


def normal_form(text: str, comma: re.Pattern = COMMA) -> str:
    """The program's processPunctuation, then its processDigitArticle. comma: finds a number with a comma; later ports
    also look for several commas in a row.
    """
    return _words(_punctuation(text, comma))


def m4c_words(text: str) -> str:
    """Pythia's word tokenisation (https://github.com/facebookresearch/mmf, EvalAIAnswerProcessor)."""
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def _clean(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str, comma: re.Pattern) -> str:
    """Remove a mark next to a space, or in a text that has a number with a comma; else replace it by a space."""
    found = text
    for mark in PUNCTUATION:
        drop = mark + " " in text or " " + mark in text or comma.search(text)
        found = found.replace(mark, "" if drop else " ")
    return PERIOD.sub("", found, count=MAX_PERIODS)


def _words(text: str) -> str:
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
