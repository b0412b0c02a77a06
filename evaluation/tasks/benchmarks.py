"""The published tasks, as the data of benchmarks.toml says: prompts, decoding, references, scores."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from periscope.errors import ScoreError

TABLE = Path(__file__).parent / "benchmarks.toml"
OWN, QUESTION = "own", "{question}"
LETTERS = "ABCDEFGHIJ"
BOX_MARK = "<box>"

HEAD = """# Tasks

    python precompute.py --data vqav2/ --encoder clip-l-336 --out features/vqav2
    python eval.py --run runs/first --features features/vqav2 --task vqav2

A task is data: [scoring/benchmarks.toml](../scoring/benchmarks.toml) says which files it is made from, how a question
is put, how an answer is found, and which scores it gets. The files are the benchmark's own, as they are published;
`precompute.py` knows them by what is in them, keeps in each text's `meta` all that the score needs (people's ten
answers, options, boxes, kinds of question), and marks the texts with the task. `--task` then asks with the words of
the system that one compares with (`--prompt-of` chooses, `own` is the adapter's own form), decodes as the table says,
and scores the splits that papers report. Without `--task` texts that say which task they are of are scored as it does
and asked in the adapter's own form. `python eval.py --tasks` lists them.

Every task is tried, from files in the published layout to a score worked out by hand, in
`tests/test_tasks.py::test_a_task_from_its_files_to_its_score[NAME]`. The scores themselves are held to the official
programs' output in `tests/test_scores.py`. **No published system's figure was reproduced here**: that takes its
weights, a GPU and the data.

In `{}` stands the question, and below it the options of a question that has some. Sizes and licences are from memory,
but for what is said to be confirmed: read the licence before you use the data.

"""
FOOT = """
## The measures

| measure | what |
| --- | --- |
| captions | CIDEr-D, BLEU-4, ROUGE-L of pycocoevalcap against all captions of a medium; F1 of the words shared |
| meteor | METEOR 1.5, where Java is |
| `--clip-score` | CLIPScore by the encoder's own text tower (open_clip's): comparable among adapters of one encoder |
| vqa | the ten-answer rule, normalised as the official program does: not where all ten agree |
| vqa-always | the same, normalised always, as LLaVA's figures and lmms-eval's are (`vqa_always`) |
| vqa-m4c | the same, normalised always as the program of TextVQA and VizWiz does |
| gqa | equal to the answer, after a final period goes and letters become small |
| exact | equal after VQA's normalisation of both, as eP-ALM counts |
| letter | the option's letter |
| vsr | everything but an answer with "false" or "no" counts as true |
| pope | read as the official program does: accuracy, precision, recall, F1, share of yes; F1 by the three sets too |
| boxes | four numbers in brackets, shares of the picture; right from an IoU of 0.5 on |

Beside each stands its 95% interval (1,000 bootstrap draws of media, each with all its questions, which aren't
independent), and what is right without the picture: with another medium's features (`shuffled`), with the mean of up to
256 media that aren't held out (`blank`: zeros would have a norm that no feature has), with no medium (`none`), and by
always giving the commonest answer of each kind of question (`majority`). The last comes from the training texts where
they have such questions, else from the references scored themselves: the most that any one answer could get, and more
than a model could know. `gain` is (real - shuffled) / (1 - shuffled), of CIDEr and CLIPScore the difference. Answers
that depend on the words alone are generated once for each question, so `blank` and `none` cost little.

## Which captions are bad

    python eval.py --gain train --write good.jsonl
    python train.py --features features/photos --text good.jsonl ...

`--gain` ranks texts by what looking gains on each: the loss per token with another medium's features or with none,
whichever is less, minus that with its own. Of captions that don't belong to their picture it is near or below 0.
`--write` leaves out those below 0, or with `--drop 0.05` the worst 5%; `gain.jsonl` in the run's folder has them all.
Without `--gain`, `--write` makes new captions of the set's media, or of a folder's with `--data photos/`.

On the demo's trained adapter, with a tenth of 300 held-out captions exchanged among themselves: the worst tenth held
97% of the exchanged ones; below 0 were half of them and nothing else. With 600 captions it had learnt from, 95% (one
seed, drawn scenes, whose captions leave nothing out; real ones are less regular).

This page is made by `python -m scoring`; a test holds it to that.
"""


@dataclass(frozen=True)
class BenchmarkTask:
    """A task; fields as in benchmarks.toml, which explains them."""

    name: str
    title: str
    files: str
    get: str
    size: str
    licence: str
    layout: str
    splits: tuple[str, ...]
    measures: tuple[str, ...]
    max_new_tokens: int
    kinds: str = ""
    beams: int = 1
    note: str = ""
    checked: str = ""
    prompts: dict[str, str] = field(default_factory=dict)

    def prompt_of(self, system: str = "") -> tuple[str, str]:
        """(system, prompt): that of `system`, by default of the first that the task names. Raises ScoreError where it
        has none of this name.
        """
        prompts = self.prompts | {OWN: QUESTION if "captions" not in self.measures else ""}
        system = system or next(iter(prompts))
        if system not in prompts:
            raise ScoreError(f"{self.name} has no prompt of {system!r}; it has {', '.join(prompts)}")
        return system, prompts[system]

    def posed(self, turns: Sequence[dict], meta: Mapping, system: str) -> list[dict]:
        """The turns of a text with the options that its `meta` lists below the question, in the system's form; boxes
        among them stand as `<box>` marks with the turn's `boxes`.
        """
        choices = meta.get("choices") or ()
        asked = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=None)
        if not choices or asked is None:
            return list(turns)
        form = systems()[system]["option"]
        options = [
            form.format(letter=letter, choice=choice if isinstance(choice, str) else BOX_MARK)
            for letter, choice in zip(LETTERS, choices, strict=False)
        ]
        boxes = [choice for choice in choices if not isinstance(choice, str)]
        turn = {**turns[asked], "content": "\n".join([turns[asked]["content"], *options])}
        return [*turns[:asked], turn | ({"boxes": boxes} if boxes else {}), *turns[asked + 1 :]]

    def references(self, turn: Mapping, meta: Mapping, said: str) -> list:
        """All that is right, in the form that the task's scores take: the letter, the box, people's answers, or what
        the text's last turn says (`said`).
        """
        if "letter" in self.measures:
            return [meta["letter"]]
        if "boxes" in self.measures:
            return [list(turn["boxes"][0])]
        return list(meta.get("answers") or [said])


@cache
def benchmarks() -> dict[str, BenchmarkTask]:
    """All tasks by name."""
    return {
        name: BenchmarkTask(
            name, **{key: tuple(given) if isinstance(given, list) else given for key, given in row.items()}
        )
        for name, row in _table()["tasks"].items()
    }


def systems() -> dict[str, dict[str, str]]:
    """Whose prompts there are: name -> {"what", "option"}."""
    return _table()["systems"]


def find_benchmark(name: str) -> BenchmarkTask:
    """The task of that name. Raises ScoreError naming the nearest."""
    if name not in benchmarks():
        near = difflib.get_close_matches(name, benchmarks(), 3)
        raise ScoreError(f"there is no task {name!r}{': did you mean ' + ' or '.join(near) + '?' if near else ''} "
                         f"The tasks: {', '.join(benchmarks())}")  # fmt: skip
    return benchmarks()[name]


def benchmark_of(metas: Iterable[Mapping]) -> BenchmarkTask | None:
    """The task that texts with these metas all belong to, as their source says, if it is one of the table."""
    named = {meta.get("task") for meta in metas}
    return benchmarks().get(next(iter(named))) if len(named) == 1 and None not in named else None


def listing() -> str:
    """A line for each task: what to do to be scored on it."""
    lines = []
    for task in benchmarks().values():
        prompts = ", ".join([*task.prompts, OWN])
        lines.append(f"{task.name:<11}{task.title}: {', '.join(task.measures)}; {task.size}; prompts of {prompts}")
        lines.append(f"{'':<11}--data: {task.files}")
        lines.append(f"{'':<11}from {task.get}")
    return "\n".join(lines)


def page() -> str:
    """docs/tasks.md."""
    rows = ["| task | scored by | splits | answers | prompts of |", "| --- | --- | --- | --- | --- |"]
    parts = []
    anchors: list[str] = []
    for task in benchmarks().values():
        anchors.append(_anchor(task.title, anchors))
        how = f"{task.beams} beams" if task.beams > 1 else "greedy"
        kinds = f", by `{task.kinds}`" if task.kinds else ""
        rows.append(f"| [`{task.name}`](#{anchors[-1]}) | {', '.join(task.measures)}{kinds} "
                    f"| {', '.join(task.splits)} | {how}, {task.max_new_tokens} tokens "
                    f"| {', '.join([*task.prompts, OWN])} |")  # fmt: skip
        parts.append(f"### {task.title}\n\n`--task {task.name}`. --data: {task.files}. From {task.get}. {task.size}. "
                     f"Licence: {task.licence}.{f' Scored {task.note}.' if task.note else ''} "
                     f"{_sure(task)}\n")  # fmt: skip
        parts += [f"- {system}: {_shown(prompt)}" for system, prompt in task.prompts.items()]
        parts += [""] * bool(task.prompts)
    whose = [f"- `{name}`: {row['what']}. Options: `{row['option'].format(letter='A', choice='a dog')}`"
             for name, row in systems().items()]  # fmt: skip
    return HEAD + "\n".join([*rows, "", "## Whose prompts", "", *whose, "", "## Each of them", "", *parts]) + FOOT


def _anchor(title: str, taken: Sequence[str]) -> str:
    name = "".join(mark for mark in title.lower().replace(" ", "-") if mark.isalnum() or mark == "-")
    return f"{name}-{taken.count(name)}" if name in taken else name


def _sure(task: BenchmarkTask) -> str:
    return f"Confirmed: {task.checked}." if task.checked else "Not confirmed: size and licence are from memory."


def _shown(prompt: str) -> str:
    return f"`{prompt}`".replace("\n", "\\n").replace(QUESTION, "{}")


@cache
def _table() -> dict:
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))
