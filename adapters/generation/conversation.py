"""A conversation about media: what was said so far, as the turns that training has."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from periscope.adapters.composed import ComposedPrompt, modality_of
from periscope.adapters.prompting.prompt import Turn
from periscope.adapters.prompting.segments import Segment, mark_of
from periscope.adapters.prompting.template import Template
from periscope.errors import AdapterError


@dataclass(frozen=True)
class Message:
    """Somebody's words. role: "system", "user" or "assistant" · media: slots of what a user showed with them."""

    role: str
    content: str
    media: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """Messages in the order they were said. Each of its methods returns a longer conversation and changes nothing.

    Its prompt is made by the same code as that of a text to train on, from the same turns: what was said before an
    answer has the ids that it has in training.
    """

    messages: tuple[Message, ...] = ()

    def ask(self, words: str, media: Sequence[str], prompt: ComposedPrompt) -> "Conversation":
        """With the user's words, and the slots of what is shown with them. No words ask for a caption.

        Raises AdapterError for marks (`<image>`) in the words that don't fit what is shown with them.
        """
        marks = {mark for one in prompt.prompts.values() for mark in one.marks}
        found = re.findall("|".join(map(re.escape, sorted(marks))), words)
        if found and len(found) != len(media):
            raise AdapterError(
                f"a message has {len(found)} marks ({', '.join(found)}), and {len(media)} media were given with it; "
                "mark each of them, or none"
            )
        if not words.strip() and not media and not self.media:
            raise AdapterError("there is nothing to caption yet: say something, or give a medium with the message")
        return self._with(Message("user", words.strip(), tuple(media)))

    def answer(self, words: str) -> "Conversation":
        """With the model's answer."""
        return self._with(Message("assistant", words))

    def turns(self, prompt: ComposedPrompt) -> list[Turn]:
        """The turns, in which every medium has a mark: the one that stands where a medium without a mark would."""
        template = self._template(prompt)
        turns: list[Turn] = []
        for message in self.messages:
            words = message.content
            if message.role == "user":
                words = words or template.caption_prompt
                marks = [mark_of(modality_of(name)) for name in message.media]
                if not any(mark in words for mark in ("<image>", *marks)):
                    shown = "".join(marks)
                    words = f"{words} {shown}" if template.media == "after" and shown else shown + words
            turns.append({"role": message.role, "content": words})
        return turns

    def segments(self, prompt: ComposedPrompt) -> list[Segment]:
        """The prompt for the next answer."""
        return prompt.segments(self.turns(prompt), self.media, answer=False)

    @property
    def media(self) -> list[str]:
        """The slots of everything that was shown."""
        return [name for message in self.messages for name in message.media]

    def _with(self, message: Message) -> "Conversation":
        return replace(self, messages=(*self.messages, message))

    def _template(self, prompt: ComposedPrompt) -> Template:
        """The template of the only modality that is shown, or the first one, which forms mixed texts."""
        modalities = {modality_of(name) for name in self.media}
        return prompt.prompts[modalities.pop()].template if len(modalities) == 1 else prompt.template
