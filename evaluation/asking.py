"""How held-out texts are asked: the task they are of, its prompt and decoding, and the answers under each control."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

from periscope.adapters.model import AdaptedModel
from periscope.adapters.prompting.boxes import turn_text as in_words
from periscope.adapters.prompting.prompt import Prompt
from periscope.errors import RunError
from periscope.evaluation.answer import answer, blank_feature, caption_groups, conditions
from periscope.evaluation.controls import stand_ins
from periscope.evaluation.summary import REAL, Prediction
from periscope.evaluation.tasks.benchmarks import OWN, QUESTION, BenchmarkTask, benchmark_of, find_benchmark
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text
from periscope.training.data.dataset import TextFeatureDataset, medium_contents, question_of

MOST_TOKENS = 64


@dataclass(frozen=True)
class AskedTask:
    """How texts are asked and scored: the task, if they belong to one, whose prompt, and the decoding."""

    task: BenchmarkTask | None = None
    system: str = OWN
    prompt: str = QUESTION
    max_new_tokens: int = MOST_TOKENS
    beams: int = 1

    @property
    def kinds(self) -> str:
        """The field of a text's meta that groups questions; "" for the usual ones."""
        return self.task.kinds if self.task else ""

    def __str__(self) -> str:
        how = f"{self.beams} beams" if self.beams > 1 else "greedy"
        note = f"; scored {self.task.note}" if self.task and self.task.note else ""
        title = self.task.title if self.task else "none"
        return f"{title}, prompt of {self.system} {self.prompt!r}, {how}, at most {self.max_new_tokens} tokens{note}"

    def facts(self) -> dict:
        """For eval.json."""
        return {"task": self.task.name if self.task else None} | {
            name: getattr(self, name) for name in ("system", "prompt", "max_new_tokens", "beams")
        }


def choose(
    name: str, system: str, texts: Sequence[Text], max_new_tokens: int = 0, beams: int = 0
) -> tuple[AskedTask, list[Text]]:
    """The task called `name`, with its prompt and decoding, and which of the held-out texts it is about; or, without a
    name, the one that the texts say they are of: then they are scored as it does, and asked as the adapter was trained.

    Raises ScoreError for a name or a system's prompt that there isn't, RunError where none of the texts is of the task.
    """
    if not name:
        task = benchmark_of(text.meta for text in texts)
        if system and not task:
            raise RunError(f"--prompt-of {system}: these texts don't say which task they are of; name it with --task")
        system, prompt = task.prompt_of(system or OWN) if task else (OWN, QUESTION)
        return AskedTask(task, system, prompt, max_new_tokens or MOST_TOKENS, beams or 1), list(texts)
    task = find_benchmark(name)
    system, prompt = task.prompt_of(system)
    marked = [text for text in texts if text.meta.get("task") == name]
    if not marked and any("task" in text.meta for text in texts):
        found = sorted({str(text.meta.get("task")) for text in texts})
        raise RunError(f"no held-out text is of {name}; there are texts of {', '.join(found)}")
    asked = "captions" not in task.measures
    kept = [text for text in marked or texts if (question_of(text) is not None) == asked]
    splits = [split for split in task.splits if any(text.split == split for text in kept)]
    if not kept:
        raise RunError(f"{name} scores {'questions' if asked else 'captions'}, and none is held out")
    if splits:
        kept = [text for text in kept if text.split in splits]
    lacking = {"letter": lambda text: "letter" in text.meta, "boxes": lambda text: text.turns[-1].get("boxes")}
    if any(measure in lacking and not all(map(lacking[measure], kept)) for measure in task.measures):
        raise RunError(f"these texts don't hold what {name} is scored by; make the set from {task.files}")
    chosen = AskedTask(task, system, prompt, max_new_tokens or task.max_new_tokens, beams or task.beams)
    return chosen, kept


def by_split(texts: Sequence[Text], limit: int = 0) -> dict[str, list[Text]]:
    """The texts by split, of each the first `limit` (0: all); "heldout" is first, the others go by name."""
    splits = sorted({text.split for text in texts}, key=lambda split: (split != "heldout", split))
    return {split: [text for text in texts if text.split == split][: limit or None] for split in splits}


def prompted(model: AdaptedModel, chosen: AskedTask) -> Prompt:
    """The adapter's prompt in the form that the task asks for; with the adapter's own, as it is."""
    template = model.prompt.template
    if chosen.system == OWN:
        return model.prompt
    if QUESTION not in chosen.prompt:
        fields = {"question": "{}", "caption_prompt": chosen.prompt}
    else:
        fields = {"question": chosen.prompt.replace(QUESTION, "{}")}
    if template.style == "chat":
        fields = {"caption_prompt": chosen.prompt.strip()}
    prompt = copy(model.prompt)
    prompt.template = replace(template, **fields)
    return prompt


def posed(text: Text, chosen: AskedTask, style: str) -> Text:
    """The text as it is asked: with its options, and in a chat within the task's words."""
    turns = chosen.task.posed(text.turns, text.meta, chosen.system) if chosen.task else list(text.turns)
    asked = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=None)
    if style == "chat" and asked is not None and chosen.prompt != QUESTION:
        content = chosen.prompt.replace(QUESTION, turns[asked]["content"]).strip()
        turns[asked] = turns[asked] | {"content": content}
    return replace(text, turns=tuple(turns))


def prediction(text: Text, alike: Sequence[Text], chosen: AskedTask, decimals: int = 2) -> Prediction:
    """What is right for a text, or for all that are answered alike; not yet answered."""
    said = [in_words(one.turns[-1], decimals) for one in alike]
    references = said
    if chosen.task and question_of(text):
        references = chosen.task.references(text.turns[-1], text.meta, said[0])
    elif question_of(text) and len(text.meta.get("answers") or ()) > 1:
        references = text.meta["answers"]
    return Prediction(text.id, " ".join(text.media), question_of(text) or "", "", said[0], meta=text.meta,
                      references=references)  # fmt: skip


def predict(
    model: AdaptedModel,
    features: FeatureSet,
    texts: Sequence[Text],
    chosen: AskedTask,
    controls: Sequence[str],
    batch: int,
) -> list[Prediction]:
    """The answers to `texts` with their media and under each control; captions of one medium are one prediction."""
    encoded = TextFeatureDataset(features, prompted(model, chosen), model.adapter)
    contents = medium_contents(features, texts)
    stand_in = stand_ins(contents) if "shuffled" in controls else {}
    if "shuffled" in controls and not stand_in:
        why = "more than half show the same" if len(contents) > 1 else "there is no other"
        print(f"no shuffled features: of {len(contents)} media none can stand in for each, because {why}")
    blank = blank_feature(features, encoded.kind) if "blank" in controls else None
    groups = caption_groups(texts)
    template = encoded.prompt.template
    asked = [posed(text, chosen, template.style) for text, _ in groups]
    decoding = {"num_beams": chosen.beams} if chosen.beams > 1 else {}
    said = answer(
        model, encoded, asked, conditions(controls, blank, stand_in), batch, chosen.max_new_tokens, **decoding
    )
    meta = {key: text.meta for text in texts for key in text.media}
    rows = []
    for i, (text, alike) in enumerate(groups):
        row = prediction(text, alike, chosen, template.box_decimals)
        row.answer, row.control = said[REAL][i], said["shuffled"][i] if "shuffled" in said else None
        row.blank, row.none = (said[name][i] if name in said else None for name in ("blank", "none"))
        row.control_meta = meta.get(stand_in.get(text.media[0]), {})
        rows.append(row)
    return rows
