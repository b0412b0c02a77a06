"""docs/tasks.md, made from benchmarks.toml."""

from collections.abc import Sequence

from periscope.evaluation.tasks.benchmarks import OWN, QUESTION, BenchmarkTask, benchmarks, systems

HEAD = """# Tasks

    python precompute.py --data vqav2/ --encoder clip-l-336 --out features/vqav2
    python eval.py --run runs/first --features features/vqav2 --task vqav2

A task is data: [evaluation/tasks/benchmarks.toml](../evaluation/tasks/benchmarks.toml) says which files it is made
from, how questions are asked, how answers are generated, and which scores it gets. The files are the benchmark's own,
in their published layout. `precompute.py` recognises them by their contents, keeps what the scores need in each text's
`meta` (people's ten answers, options, boxes, kinds of question), and marks the texts with the task. `--task` then asks
with the prompt of the system you compare with (`--prompt-of` chooses it; `own` is the adapter's own prompt), decodes as
the table says, and scores the splits that papers report. Without `--task`, texts marked with a task are scored as that
task does and asked with the adapter's own prompt. `python eval.py --tasks` lists the tasks.

Every task is tested from files in the published layout to a score worked out by hand, in
`tests/evaluation/test_tasks.py::test_a_task_from_its_files_to_its_score[NAME]`. The metrics are tested against the
output of the official programs in `tests/evaluation/test_metrics.py`. **No published system's result was reproduced
here**: that takes its weights, a GPU and the data.

In a prompt, `{}` stands for the question and, below it, its options if it has some, `{ocr}` for the words that were
read in the picture, where the files hold them. Sizes and licences are from memory
except where they are confirmed: read the licence before you use the data.

"""
FOOT = """
## Measures

| measure | what it computes |
| --- | --- |
| captions | CIDEr-D, BLEU-4, ROUGE-L of pycocoevalcap against all captions of a medium; F1 of the shared words |
| meteor | METEOR 1.5, if Java is installed |
| spice | SPICE 1.0, if Java and Stanford CoreNLP 3.6.0 are installed; else a note says what it lacks |
| `--clip-score` | CLIPScore with the encoder's own text tower (open_clip): comparable among adapters of one encoder |
| vqa | the ten-answer rule, normalised as in the official program: not where all ten people agree |
| vqa-always | the same, always normalised, as in LLaVA's results and lmms-eval (`vqa_always`) |
| vqa-m4c | the same, always normalised as in the program of TextVQA |
| vizwiz | the same as VizWiz's own program, which normalises the answer alone; F1 and AP of "unanswerable" |
| gqa | equal to the answer, after lower-casing and dropping a final period |
| gqa-bare | equal to the answer as it stands, after lower-casing and dropping all punctuation, as in Cobra's harness |
| exact | equal after VQA's normalisation of both, as in eP-ALM, unless that leaves nothing of an answer |
| letter | the option's letter |
| vsr | an answer counts as true unless it has the word "false" or "no" |
| pope | read as in the official program: accuracy, precision, recall, F1, share of yes; F1 of each of the three sets |
| boxes | four numbers in brackets, as fractions of the image; right from an IoU of 0.5 |

Each score has a 95% interval: 1,000 bootstrap draws of media, each with all its questions, because questions about one
medium aren't independent. Beside it stand its controls: the score with another medium's features (`shuffled`), with the
mean feature of up to 256 training media (`blank`; zeros would have a norm that no feature has), without a medium
(`none`), and of always giving the commonest answer of each kind of question (`majority`). The majority answers come
from the training texts if these have such questions. Otherwise they come from the references being scored, which is the
best that any fixed answer can do, and more than a model could know. `gain` is (real - shuffled) / (1 - shuffled), for
CIDEr and CLIPScore the difference. Answers that depend on the text alone are generated once per question, so `blank`
and `none` cost little.

## Finding bad captions

    python eval.py --loss-drop train --write good.jsonl
    python train.py --features features/photos --text good.jsonl ...

`--loss-drop` ranks texts by how much their loss drops when the model sees the medium: the loss per token with another
medium's features or without a medium, whichever is lower, minus the loss with its own features. For captions that don't
belong to their image it is near or below 0. `--write` leaves out texts below 0, or with `--drop 0.05` the worst 5%.
`gain.jsonl` in the run's folder has the whole ranking. Without `--loss-drop`, `--write` writes new captions for the
media of the feature set, or with `--data photos/` for those of a folder.

With the demo's trained adapter, a tenth of 300 held-out captions were exchanged among themselves: the worst tenth
contained 97% of the exchanged captions, and the texts below 0 were half of them and no others. Among 600 captions that
it was trained on, the worst tenth contained 95% (one seed; drawn scenes, whose captions are complete; real captions are
less regular).

This page is made by `python -m periscope.evaluation.tasks > docs/tasks.md`; a test checks that it is up to date.
"""


def page() -> str:
    """docs/tasks.md."""
    rows = ["| task | scored by | splits | answers | prompts of |", "| --- | --- | --- | --- | --- |"]
    parts = []
    anchors: list[str] = []
    for task in benchmarks().values():
        anchors.append(_anchor(task.title, anchors))
        how = f"{task.beams} beams" if task.beams > 1 else "greedy"
        kinds = f", by `{task.kinds}`" if task.kinds else ""
        others = "".join(f"; for {system} {', '.join(names)}" for system, names in task.measures_of.items())
        rows.append(f"| [`{task.name}`](#{anchors[-1]}) | {', '.join(task.measures)}{others}{kinds} "
                    f"| {', '.join(task.splits)} | {how}, {task.max_new_tokens} tokens "
                    f"| {', '.join([*task.prompts, OWN])} |")  # fmt: skip
        parts.append(f"### {task.title}\n\n`--task {task.name}`. --data: {task.files}. From {task.get}. {task.size}. "
                     f"Licence: {task.licence}.{f' Scored {task.note}.' if task.note else ''} "
                     f"{_sure(task)}\n")  # fmt: skip
        parts += [f"- {system}: {_shown(prompt)}" for system, prompt in task.prompts.items()]
        parts += [""] * bool(task.prompts)
    whose = [f"- `{name}`: {row['what']}. Options: `{row['option'].format(letter='A', choice='a dog')}`"
             for name, row in systems().items()]  # fmt: skip
    return HEAD + "\n".join([*rows, "", "## Systems", "", *whose, "", "## Benchmarks", "", *parts]) + FOOT


def _anchor(title: str, taken: Sequence[str]) -> str:
    name = "".join(mark for mark in title.lower().replace(" ", "-") if mark.isalnum() or mark == "-")
    return f"{name}-{taken.count(name)}" if name in taken else name


def _sure(task: BenchmarkTask) -> str:
    return f"Confirmed: {task.checked}." if task.checked else "Size and licence are from memory."


def _shown(prompt: str) -> str:
    return f"`{prompt}`".replace("\n", "\\n").replace(QUESTION, "{}")
