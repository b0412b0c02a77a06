"""What `/v1/chat/completions` is sent, read strictly, and the conversation that it holds."""

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from periscope.adapters.composed import ComposedPrompt
from periscope.adapters.generation.conversation import Conversation, Message
from periscope.adapters.generation.decoding import Decoding
from periscope.adapters.prompting.segments import mark_of
from periscope.errors import RequestError

USUAL_TOKENS = 256  # of an answer whose request doesn't say
DATA_URL = re.compile(r"data:[^,;]*(?:;[^,;]+)*;base64,", re.I)
# Options that would change the answer and can't be obeyed: name -> the values that change nothing.
IGNORED: dict[str, tuple[Any, ...]] = {
    "stop": (None, "", []),
    "tools": (None, []),
    "functions": (None, []),
    "logprobs": (None, False),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
}
Fetch = Callable[[str], bytes]


@dataclass(frozen=True)
class SentMedium:
    """A picture, sound or clip of a request. place: its data: URL or address, or base64 alone."""

    modality: str
    place: str

    def read(self, fetch: Fetch | None) -> bytes:
        """Its bytes. fetch: gets those at an address; None refuses one. Raises RequestError for what can't be read."""
        if self.place.lower().startswith(("http://", "https://")):
            if fetch is None:
                raise RequestError(
                    "addresses aren't fetched: send the medium itself as a data: URL, or start the server with "
                    "--fetch-urls"
                )
            return fetch(self.place)
        head = DATA_URL.match(self.place[:256])
        data = self.place[head.end() :] if head else self.place
        if not head and ":" in data[:256]:
            raise RequestError(f"media are sent as data:...;base64,... URLs, and this one begins with {data[:24]!r}")
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError(f"the {self.modality}'s data isn't base64: {error}") from None


class Place(Struct):
    """Where a medium is."""

    url: str


class Sound(Struct):
    """A sound's base64; its format is told by its bytes."""

    data: str


class TextPart(Struct, tag_field="type", tag="text"):
    """Words of a message."""

    text: str


class ImagePart(Struct, tag_field="type", tag="image_url"):
    """A picture of a message."""

    image_url: Place

    @property
    def medium(self) -> SentMedium:
        return SentMedium("image", self.image_url.url)


class AudioPart(Struct, tag_field="type", tag="input_audio"):
    """A sound of a message."""

    input_audio: Sound

    @property
    def medium(self) -> SentMedium:
        return SentMedium("audio", self.input_audio.data)


class VideoPart(Struct, tag_field="type", tag="video_url"):
    """A clip of a message, in the form that vLLM has."""

    video_url: Place

    @property
    def medium(self) -> SentMedium:
        return SentMedium("video", self.video_url.url)


Part = TextPart | ImagePart | AudioPart | VideoPart


class ChatMessage(Struct):
    """A message: words, or parts of words and media."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None

    def parts(self) -> list[Part]:
        """The parts of the message."""
        content = self.content or ""
        return [TextPart(content)] if isinstance(content, str) else content


class StreamOptions(Struct):
    """What a stream adds."""

    include_usage: bool = False


class ChatRequest(Struct):
    """The body of a request. `top_k` and `video_url` parts aren't OpenAI's; what isn't named here is left unread."""

    model: str
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=1000)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] = 0
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=1)] | None = None
    stop: Any = None
    tools: Any = None
    functions: Any = None
    logprobs: Any = None
    logit_bias: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    response_format: Any = None

    def decoding(self, most: int) -> Decoding:
        """How to decode the answer, of at most `most` tokens. Without a temperature it is the likeliest one."""
        tokens = self.max_completion_tokens or self.max_tokens or USUAL_TOKENS
        drawn = (self.top_p or 1) < 1 or self.top_k
        temperature = self.temperature if self.temperature is not None else float(bool(drawn))
        if not temperature:
            return Decoding(min(tokens, most))
        return Decoding(min(tokens, most), temperature, self.top_p or 1.0, top_k=self.top_k)

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


def read_request(body: bytes) -> ChatRequest:
    """The request in a body. Raises RequestError for anything else, and for options that can't be obeyed."""
    try:
        request = msgspec.json.decode(body, type=ChatRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the request can't be read: {str(error).replace('`', '')}") from None
    for name, harmless in IGNORED.items():
        if getattr(request, name) not in harmless:
            raise RequestError(f"{name} isn't supported here; leave it out")
    return request


def conversation_of(
    messages: Sequence[ChatMessage], prompt: ComposedPrompt, most: int
) -> tuple[Conversation, dict[str, SentMedium]]:
    """The conversation in a request's messages, and its media by the slots that they have there.

    most: media that are accepted. Raises RequestError for media that the model doesn't read, AdapterError for marks
    that don't fit the media.
    """
    conversation, sent = Conversation(), dict[str, SentMedium]()
    for message in messages:
        words, media = _words_and_media(message.parts())
        if media and message.role != "user":
            raise RequestError(f"only the user's messages show media, and one of the {message.role} does")
        if len(sent) + len(media) > most:
            raise RequestError(f"a request has at most {most} pictures, sounds and clips (--max-media)")
        for medium in media:
            if medium.modality not in prompt.prompts:
                raise RequestError(
                    f"this model reads {' and '.join(prompt.prompts)}, and the request has {medium.modality}"
                )
        shown = {f"{medium.modality}:{number}": medium for number, medium in enumerate(media, len(sent))}
        sent |= shown
        if message.role == "user":
            conversation = conversation.ask(words, list(shown), prompt)
        elif message.role == "assistant":
            conversation = conversation.answer(words)
        else:
            conversation = Conversation((*conversation.messages, Message("system", words)))
    if messages[-1].role != "user":
        raise RequestError("the last message must be the user's")
    return conversation, sent


def _words_and_media(parts: Sequence[Part]) -> tuple[str, list[SentMedium]]:
    """A message's words, with a mark for each medium where one stands among them, and its media."""
    texts, media = [""], list[SentMedium]()
    for part in parts:
        if isinstance(part, TextPart):
            texts[-1] = f"{texts[-1]}\n{part.text}" if texts[-1] else part.text
        else:
            media.append(part.medium)
            texts.append("")
    if sum(bool(text.strip()) for text in texts) < 2:
        return "".join(texts), media  # all at the edges: they stand where the adapter was trained to have them
    marks = [f" {mark_of(medium.modality)} " for medium in media]
    return "".join(text.strip() + mark for text, mark in zip(texts, [*marks, ""], strict=True)), media
