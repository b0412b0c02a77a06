"""Answers as they are made: generation in a thread of its own, and token ids to pieces of text."""

from collections.abc import Callable, Collection, Generator, Sequence
from queue import SimpleQueue
from threading import Event, Thread
from typing import NamedTuple, cast

import torch
from transformers.generation.streamers import BaseStreamer

UNDECODED = "\ufffd"  # what a tokenizer shows for bytes that make no character, such as the first ones of one
MOST_UNDECODED = 3  # bytes of UTF-8 that a character may still be without its last one


class AnswerEnd(NamedTuple):
    """How an answer ended: its length, and whether the model ended it or it was as long as it may be."""

    tokens: int
    stopped: bool


class TextPieces:
    """Turns the growing ids of one answer into pieces of text that, joined, are `decode` of all ids.

    decode: ids -> text without white space at its ends · stop: ids that end the answer and don't belong to it.

    All ids are decoded each time, because what a token says depends on those before it: the space before a word, or the
    rest of a character. White space and half characters at the end wait for what follows.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Collection[int]):
        self._decode, self._stop = decode, frozenset(stop)
        self._ids: list[int] = []
        self._given = ""
        self.ended = False

    def add(self, ids: Sequence[int]) -> str:
        """The text that these ids complete; it may be empty."""
        for token in ids:
            self.ended = self.ended or token in self._stop
            if not self.ended:
                self._ids.append(token)
        text = self._decode(self._ids)
        complete = max(len(text.rstrip(UNDECODED)), len(text) - MOST_UNDECODED)
        return self._more(text[:complete].rstrip())

    def rest(self) -> str:
        """What is left when no more ids come."""
        return self._more(self._decode(self._ids))

    @property
    def end(self) -> AnswerEnd:
        """How the answer ended."""
        return AnswerEnd(len(self._ids), self.ended)

    def _more(self, text: str) -> str:
        if not text.startswith(self._given):
            return ""  # a tokenizer that changes what it said, such as a space before a comma: the next id decides
        piece, self._given = text[len(self._given) :], text
        return piece


class _Stopped(Exception):
    """Ends a generation that nobody listens to any more."""


class TokenQueue(BaseStreamer):
    """Hands on the ids that transformers' `generate` gives it, and ends the generation once `stopped` is set."""

    def __init__(self) -> None:
        self.ids: SimpleQueue[list[int] | BaseException | None] = SimpleQueue()
        self.stopped = Event()

    def put(self, value: torch.Tensor) -> None:
        if self.stopped.is_set():
            raise _Stopped
        self.ids.put(value.flatten().tolist())

    def end(self) -> None:
        """The thread itself says when it is done."""


def stream_text(generate: Callable[[TokenQueue], object], pieces: TextPieces) -> Generator[str, None, AnswerEnd]:
    """Run `generate` in a thread, yield its text as it comes, and return how it ended; pieces aren't empty.

    Closing the iterator, or an exception where it is waited for, such as Ctrl-C, ends the generation with the token
    that is being made. An exception of `generate` is raised here.
    """
    queue = TokenQueue()

    def run() -> None:
        try:
            generate(queue)
            queue.ids.put(None)
        except BaseException as error:  # raised again in the thread that waits for text
            queue.ids.put(error)

    thread = Thread(target=run, name="generate")
    thread.start()
    try:
        while (made := queue.ids.get()) is not None:
            if isinstance(made, BaseException):
                raise made
            if piece := pieces.add(cast(list[int], made)):
                yield piece
        if piece := pieces.rest():
            yield piece
        return pieces.end
    finally:
        queue.stopped.set()
        thread.join()
