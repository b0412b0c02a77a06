"""A conversation with a loaded model that remembers what was said and shown.

chat = periscope.load("runs/first").chat("cat.jpg")
chat.send("What is on the table?")
chat.send("And what colour is it?")
for piece in chat.send("Describe it.", stream=True):
    print(piece, end="", flush=True)
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, overload

import torch

from periscope.adapters.composed import ComposedPrompt
from periscope.adapters.generation.conversation import Conversation, Message
from periscope.adapters.generation.decoding import Decoding
from periscope.adapters.generation.streaming import AnswerEnd
from periscope.adapters.prompting.segments import Segment
from periscope.errors import AdapterError

Pieces = Generator[str, None, AnswerEnd | None]  # of an answer, while it is made


class EncodedMedium(NamedTuple):
    """Something to talk about: its modality, what people call it, and its features as a shard would hold them."""

    modality: str
    name: str
    features: torch.Tensor


class Speaker(Protocol):
    """What a conversation needs of a loaded model (`inference.LoadedModel`)."""

    @property
    def prompt(self) -> ComposedPrompt:
        """What lays conversations out."""

    def encode(self, media: Any) -> list[EncodedMedium]:
        """Media one by one."""

    def speak(
        self, text: Sequence[Segment], features: Mapping[str, torch.Tensor], decoding: Decoding, stream: bool
    ) -> Pieces:
        """The answer to a prompt, as it is made, or in one piece unless `stream`."""


class ChatSession:
    """A conversation with a loaded model. Made by `LoadedModel.chat`, with the media that the first message shows.

    The model reads all that was said before, in the form that multi-turn data has in training. An answer that is
    stopped, by Ctrl-C or by leaving its stream, is remembered as far as it went. `decoding` may be changed at any time.
    """

    def __init__(self, model: Speaker, media: Any = (), system: str = "", decoding: Decoding | None = None):
        self.decoding = decoding or Decoding()
        self._model, self._system = model, system
        self._opening = self._numbered(media, 0)
        self._answering: Pieces | None = None
        self.clear()

    def __repr__(self) -> str:
        said = sum(message.role != "system" for message in self._conversation.messages)
        return f"ChatSession({said} messages, {len(self._shown)} media; {self.decoding})"

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was said, as {"role", "content"}, with the names of "media" where a message showed any."""
        return [
            {"role": message.role, "content": message.content}
            | ({"media": [self._shown[slot].name for slot in message.media]} if message.media else {})
            for message in self._conversation.messages
        ]

    def clear(self) -> None:
        """Forget what was said. The next message shows the media again that the conversation was opened with."""
        self._stop()
        self._conversation = Conversation((Message("system", self._system),) if self._system else ())
        self._shown: dict[str, EncodedMedium] = {}
        self._unshown = dict(self._opening)

    @overload
    def send(
        self, text: str = ..., media: Any = ..., *, image: Any = ..., audio: Any = ..., video: Any = ...,
        stream: Literal[False] = ...,
    ) -> str: ...  # fmt: skip
    @overload
    def send(
        self, text: str = ..., media: Any = ..., *, image: Any = ..., audio: Any = ..., video: Any = ...,
        stream: Literal[True],
    ) -> Pieces: ...  # fmt: skip
    @overload
    def send(
        self, text: str = ..., media: Any = ..., *, image: Any = ..., audio: Any = ..., video: Any = ...,
        stream: bool,
    ) -> str | Pieces: ...  # fmt: skip
    def send(
        self,
        text: str = "",
        media: Any = None,
        *,
        image: Any = None,
        audio: Any = None,
        video: Any = None,
        stream: bool = False,
    ) -> str | Pieces:
        """Say something and return the answer; without words, ask for a caption.

        What the message shows is `media`, as `LoadedModel.ask` takes them, or is named by modality (`image="dog.jpg"`).
        It stands before (or after, as in training) the message's words, or where `<image>` marks it. With `stream` the
        answer comes in pieces, as it is made; it ends when its iterator is left, or when the next message is sent.

        Raises AdapterError for marks that don't fit what is shown, and for a conversation longer than the language
        model reads; PrecomputeError for a file that can't be read. The message isn't remembered then.
        """
        self._stop()
        if not isinstance(text, str):
            raise AdapterError(f"the message is of type {type(text).__name__}; its words come first: send(text, media)")
        named = {"image": image, "audio": audio, "video": video}
        named = {modality: given for modality, given in named.items() if given is not None}
        if named and media is not None:
            raise AdapterError(f"name what the message shows once: as media, or as {next(iter(named))}=")
        shown = self._unshown | self._numbered(media if media is not None else named, len(self._shown | self._unshown))
        asked = self._conversation.ask(text, list(shown), self._model.prompt)
        features = {slot: medium.features for slot, medium in (self._shown | shown).items()}
        pieces = self._model.speak(asked.segments(self._model.prompt), features, self.decoding, stream)
        answer = self._remembered(asked, shown, pieces)
        if not stream:
            return "".join(answer)
        self._answering = answer
        return answer

    def _remembered(self, asked: Conversation, shown: Mapping[str, EncodedMedium], pieces: Pieces) -> Pieces:
        """The pieces of an answer, which is remembered with its question once it is over."""
        said: list[str] = []
        complete = False
        try:
            for piece in pieces:
                said.append(piece)
                yield piece
            complete = True
            return None
        finally:
            with closing(pieces):
                if said or complete:
                    self._conversation = asked.answer("".join(said).rstrip())
                    self._shown |= shown
                    self._unshown = {}

    def _numbered(self, media: Any, first: int) -> dict[str, EncodedMedium]:
        """The media by the slots that they get in the prompt."""
        return {f"{each.modality}:{i}": each for i, each in enumerate(self._model.encode(media), first)}

    def _stop(self) -> None:
        """End an answer that is still being made."""
        if self._answering is not None:
            with closing(self._answering):
                self._answering = None


def name_of(medium: Any) -> str:
    """What people call a medium: its path, or what it is."""
    if isinstance(medium, str | Path):
        return str(medium)
    name = getattr(medium, "name", None) or getattr(medium, "filename", None)
    return str(name) if name else f"<{type(medium).__name__}>"
