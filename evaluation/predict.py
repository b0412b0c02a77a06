"""How held-out texts are asked: the task they belong to, its prompt and decoding, and the predictions that result."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from periscope.adapters.generation.decoding import Decoding
from periscope.adapters.generation.ranking import by_first_token, candidates_of, likeliest
from periscope.adapters.model import AdaptedModel, Features
from periscope.adapters.model import Texts as Prompts
from periscope.adapters.prompting.boxes import turn_text as box_words
from periscope.adapters.prompting.prompt import Prompt
from periscope.errors import RunError
from periscope.evaluation.answer import Respond, answer_each, caption_groups
from periscope.evaluation.config import DecodingOptions
from periscope.evaluation.controls import blank_feature, conditions, stand_ins
from periscope.evaluation.scoring.prediction import Prediction, split_order
from periscope.evaluation.tasks.benchmarks import OWN, QUESTION, BenchmarkTask, benchmark_of, find_benchmark
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text
from periscope.training.data.dataset import TextFeatureDataset, medium_contents, question_of

MAX_NEW_TOKENS = 64

# What a text must hold to be scored by these measures.
NEEDED: Mapping[str, Callable[[Text], object]] = {
    "letter": lambda text: "letter" in text.meta,
    "boxes": lambda text: text.turns[-1].get("boxes"),
}


@dataclass(frozen=True)
class AskedTask:
    """How texts are asked and scored: the task, if they belong to one, whose prompt, and the decoding.

    choices: answers of which the one with the likelier first token is taken · answers: of which the likeliest is.
    """

    task: BenchmarkTask | None = None
    system: str = OWN
    prompt: str = QUESTION
    decoding: Decoding = field(default_factory=lambda: Decoding(MAX_NEW_TOKENS))
    choices: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()

    @property
    def how(self) -> str:
        """How answers come about, for people."""
        if self.answers:
            return f"the likeliest of {len(self.answers)} answers"
        if self.choices:
            return f"the likelier first token of {' and '.join(self.choices)}"
        return f"{self.decoding}, at most {self.decoding.max_new_tokens} tokens"

    def responder(self, model: AdaptedModel, prompt: Prompt) -> Respond | None:
        """What chooses among the answers; None where they are generated."""
        if self.answers:
            return partial(likeliest, model, candidates=candidates_of(prompt, self.answers))
        if not self.choices:
            return None
        candidates = candidates_of(prompt, self.choices)

        def choose(texts: Prompts, features: Features) -> list[str]:
            best = by_first_token(model, texts, features, candidates).argmax(-1).tolist()
            return [self.choices[i] for i in best]

        return choose

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures; () for the usual ones."""
        return self.task.measured_by(self.system) if self.task else ()

    @property
    def kinds(self) -> str:
        """The field of a text's meta that groups questions; "" for the usual ones."""
        return self.task.kinds if self.task else ""

    def __str__(self) -> str:
        note = f"; scored {self.task.note}" if self.task and self.task.note else ""
        title = self.task.title if self.task else "none"
        return f"{title}, prompt of {self.system} {self.prompt!r}, {self.how}{note}"

    def facts(self) -> dict:
        """What eval.json says of it."""
        return {
            "task": self.task.name if self.task else None,
            "system": self.system,
            "prompt": self.prompt,
            "max_new_tokens": self.decoding.max_new_tokens,
            "beams": self.decoding.beams,
            "temperature": self.decoding.temperature,
            "top_p": self.decoding.top_p,
            **({"top_k": self.decoding.top_k} if self.decoding.top_k else {}),
            **({"chosen": self.how} if self.choices or self.answers else {}),
        }


def choose_task(
    name: str,
    system: str,
    texts: Sequence[Text],
    answers: DecodingOptions | None = None,
    candidates: Sequence[str] = (),
) -> tuple[AskedTask, list[Text]]:
    """The task called `name` with its prompt and decoding, and those of the held-out texts that it scores.

    Without a name it is the task that the texts say they belong to: they are then scored as it does, and asked as the
    adapter was trained. What `answers` leaves open is as the task has it. Of `candidates` the likeliest is the answer.

    Raises ScoreError for an unknown task or system, RunError where no text belongs to the task.
    """
    answers = answers or DecodingOptions()
    if not name:
        task = benchmark_of(text.meta for text in texts)
        if system and not task:
            raise RunError(f"--prompt-of {system}: these texts don't say which task they are of; name it with --task")
        system, prompt = task.prompt_of(system or OWN) if task else (OWN, QUESTION)
        choices = task.choices_of(system) if task and not candidates else ()
        decoding = answers.decoding(MAX_NEW_TOKENS)
        return AskedTask(task, system, prompt, decoding, choices, tuple(candidates)), list(texts)
    task = find_benchmark(name)
    system, prompt = task.prompt_of(system)
    kept = _texts_of(task, texts)
    choices = task.choices_of(system) if not candidates else ()
    decoding = answers.decoding(task.max_new_tokens, task.beams)
    return AskedTask(task, system, prompt, decoding, choices, tuple(candidates)), kept


def _texts_of(task: BenchmarkTask, texts: Sequence[Text]) -> list[Text]:
    """The texts that a task scores: those marked with it, of its sort, and of its splits where there are such."""
    marked = [text for text in texts if text.meta.get("task") == task.name]
    if not marked and any("task" in text.meta for text in texts):
        found = sorted({str(text.meta.get("task")) for text in texts})
        raise RunError(f"no held-out text is of {task.name}; there are texts of {', '.join(found)}")
    wants_questions = "captions" not in task.measures
    kept = [text for text in marked or texts if (question_of(text) is not None) == wants_questions]
    if not kept:
        sort = "questions" if wants_questions else "captions"
        raise RunError(f"{task.name} scores {sort}, and none is held out")
    if of_split := [text for text in kept if text.split in task.splits]:
        kept = of_split
    if any(name in NEEDED and not all(map(NEEDED[name], kept)) for name in task.measures):
        raise RunError(f"these texts don't hold what {task.name} is scored by; make the set from {task.files}")
    return kept


def read_answers(path: Path) -> list[str]:
    """The answers in a file, a JSON list or one per line, each once. Raises RunError for a file that holds none."""
    try:
        words = path.read_text(encoding="utf-8-sig")
        found = json.loads(words) if words.lstrip().startswith("[") else words.splitlines()
    except (OSError, ValueError) as error:
        raise RunError(f"--answers {path} can't be read: {error}") from None
    answers = list(dict.fromkeys(each.strip() for each in found if isinstance(each, str) and each.strip()))
    if len(answers) < 2:
        raise RunError(f"--answers {path} holds {len(answers)} answers; name a JSON list, or a file with one per line")
    return answers


def by_split(texts: Sequence[Text], limit: int = 0) -> dict[str, list[Text]]:
    """The texts by split, the first `limit` of each (0: all), in the order of `split_order`."""
    splits = split_order({text.split for text in texts})
    return {split: [text for text in texts if text.split == split][: limit or None] for split in splits}


def task_prompt(model: AdaptedModel, chosen: AskedTask) -> Prompt:
    """The adapter's prompt, with the task's wording unless that is the adapter's own."""
    template = model.prompt.template
    if chosen.system == OWN:
        return model.prompt
    if template.style == "chat":
        fields: dict[str, Any] = {"caption_prompt": chosen.prompt.strip()}
    elif QUESTION in chosen.prompt:
        fields = {"question": chosen.prompt.replace(QUESTION, "{}")}
    else:
        fields = {"question": "{}", "caption_form": "{}", "caption_prompt": chosen.prompt}
    if template.requests == "keep":
        fields["requests"] = "drop"  # the task's wording takes the place of the rows' own
    return model.prompt.with_template(replace(template, **fields))


def task_text(text: Text, chosen: AskedTask, style: str) -> Text:
    """The text as the task asks it: with its options and the words in the picture, in a chat with its whole prompt."""
    turns = chosen.task.asked_turns(text.turns, text.meta, chosen.system) if chosen.task else list(text.turns)
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=None)
    if style == "chat" and last is not None and chosen.prompt != QUESTION:
        content = chosen.prompt.replace(QUESTION, turns[last]["content"]).strip()
        turns[last] = turns[last] | {"content": content}
    return replace(text, turns=tuple(turns))


def unanswered(text: Text, group: Sequence[Text], chosen: AskedTask, decimals: int = 2) -> Prediction:
    """A prediction with the references of a text, or of all texts in its group (see `caption_groups`), and no answer.

    decimals: of a box's coordinates.
    """
    references = [box_words(each.turns[-1], decimals) for each in group]
    first, question = references[0], question_of(text)
    if chosen.task and question:
        references = chosen.task.references(text.turns[-1], text.meta, first)
    elif question and len(text.meta.get("answers") or ()) > 1:
        references = text.meta["answers"]
    media = " ".join(text.media)
    return Prediction(text.id, media, question or "", "", first, meta=text.meta, references=references)


def stand_ins_of(features: FeatureSet, texts: Sequence[Text]) -> dict[str, str]:
    """For each medium of `texts` the one whose features it gets under "shuffled"; empty, with a note, without such."""
    contents = medium_contents(features, texts)
    stand_in = stand_ins(contents)
    if not stand_in:
        why = "more than half show the same" if len(contents) > 1 else "there is no other"
        print(f"no shuffled features: of {len(contents)} media none can stand in for each, because {why}")
    return stand_in


def predict(
    model: AdaptedModel,
    features: FeatureSet,
    texts: Sequence[Text],
    chosen: AskedTask,
    controls: Sequence[str],
    batch: int,
    stand_in: Mapping[str, str],
) -> Iterator[tuple[str, list[Prediction]]]:
    """The answers to `texts` with their media and under each control; captions of one medium are one prediction.

    Yields each condition as soon as it is answered, with the same predictions, which then have its answers. stand_in:
    as `stand_ins_of` returns.
    """
    dataset = TextFeatureDataset(features, task_prompt(model, chosen), model.adapter)
    blank = blank_feature(features, dataset.kind) if "blank" in controls else None
    groups = caption_groups(texts)
    template = dataset.prompt.template
    asked = [task_text(text, chosen, template.style) for text, _ in groups]
    decoding = chosen.decoding.arguments()
    if chosen.decoding.temperature:
        torch.manual_seed(0)  # so that the same run gets the same scores again
    meta = {key: text.meta for text in texts for key in text.media}
    rows = []
    for text, group in groups:
        row = unanswered(text, group, chosen, template.box_decimals)
        row.control_meta = meta.get(stand_in.get(text.media[0], ""), {}) if "shuffled" in controls else {}
        rows.append(row)
    under = conditions(controls, stand_in, blank)
    respond, length = chosen.responder(model, dataset.prompt), chosen.decoding.max_new_tokens
    for name, answers in answer_each(model, dataset, asked, under, batch, length, respond, **decoding):
        for row, words in zip(rows, answers, strict=True):
            row.set_answer(name, words)
        yield name, rows
