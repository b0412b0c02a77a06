"""One module for each scored task, and the table of what is scored in which."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from periscope.evaluation.tasks import clips, scenes, sounds


@dataclass(frozen=True)
class DemoTask:
    """How texts about one kind of medium are scored.

    attributes: what every thing has · answer: (question, things) -> the true answer or None · whole, correct: a
    caption's first score, (caption, things) -> whether it names just what there is · parts, recall: its second, the
    share it names.
    """

    attributes: tuple[str, ...]
    answer: Callable[[dict, list[dict]], str | None]
    whole: str
    correct: Callable[[str, list[dict]], bool]
    parts: str
    recall: Callable[[str, list[dict]], float]


# By the name under which a text's `meta` lists what its medium holds.
TASKS = {
    "objects": DemoTask(
        *(scenes.ATTRIBUTES, scenes.answer),
        *("caption_scene", scenes.scene_correct, "caption_objects", scenes.object_recall),
    ),
    "events": DemoTask(
        *(sounds.ATTRIBUTES, sounds.answer),
        *("caption_recording", sounds.recording_correct, "caption_events", sounds.event_recall),
    ),
    "movers": DemoTask(
        *(clips.ATTRIBUTES, clips.answer),
        *("caption_clip", clips.clip_correct, "caption_movers", clips.mover_recall),
    ),
}


def task_of(meta: Mapping) -> tuple[DemoTask, list[dict]] | None:
    """The task that a text's `meta` belongs to and the things it lists, or None where it lists none that a task knows
    (other people's data may have `objects` of their own)."""
    for name, task in TASKS.items():
        things = meta.get(name)
        listed = things if isinstance(things, list) else []
        if listed and all(isinstance(thing, dict) and thing.keys() >= set(task.attributes) for thing in listed):
            return task, listed
    return None
