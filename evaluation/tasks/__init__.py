"""Tasks: published benchmarks as data (`benchmarks`), and the demo's own scenes, sounds and videos."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from periscope.evaluation.tasks import clips, scenes, sounds


@dataclass(frozen=True)
class DemoTask:
    """How texts about one kind of demo media are scored.

    attributes: those of every object · answer: (question, objects) -> the true answer or None · whole, correct: name of
    a caption's first score, and (caption, objects) -> whether it names exactly these objects · parts, recall: name of
    its second score, and (caption, objects) -> the share it names.
    """

    attributes: tuple[str, ...]
    answer: Callable[[dict, list[dict]], str | None]
    whole: str
    correct: Callable[[str, list[dict]], bool]
    parts: str
    recall: Callable[[str, list[dict]], float]


# By the field of a text's `meta` that lists what its medium shows.
TASKS = {
    "objects": DemoTask(
        attributes=scenes.ATTRIBUTES,
        answer=scenes.answer,
        whole="caption_scene",
        correct=scenes.scene_correct,
        parts="caption_objects",
        recall=scenes.object_recall,
    ),
    "events": DemoTask(
        attributes=sounds.ATTRIBUTES,
        answer=sounds.answer,
        whole="caption_recording",
        correct=sounds.recording_correct,
        parts="caption_events",
        recall=sounds.event_recall,
    ),
    "movers": DemoTask(
        attributes=clips.ATTRIBUTES,
        answer=clips.answer,
        whole="caption_clip",
        correct=clips.clip_correct,
        parts="caption_movers",
        recall=clips.mover_recall,
    ),
}


def task_of(meta: Mapping) -> tuple[DemoTask, list[dict]] | None:
    """The demo task that a text's `meta` belongs to and the objects it lists, or None. Other data may have a field
    `objects` with something else in it.
    """
    for name, task in TASKS.items():
        objects = meta.get(name)
        listed = objects if isinstance(objects, list) else []
        if listed and all(isinstance(each, dict) and each.keys() >= set(task.attributes) for each in listed):
            return task, listed
    return None
