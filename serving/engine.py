"""Answers requests one at a time, in a thread of its own; those that wait or hang up cost nothing more."""

import asyncio
import hashlib
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass

import torch

from periscope.adapters.composed import modality_of
from periscope.adapters.generation.streaming import AnswerEnd
from periscope.errors import RequestError
from periscope.evaluation.config import ServerLimits
from periscope.inference import LoadedModel
from periscope.serving.requests import ChatRequest, Fetch, SentMedium, conversation_of
from periscope.serving.stand_ins import StandIns

READ_AT_ONCE = 4  # requests whose bodies are in memory: one that is answered, and the next ones
REMEMBERED = 32  # media whose features are kept, since every turn of a conversation sends them again


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompt and of the answer, and whether the model ended it or the limit did."""

    prompt: int
    answer: int
    stopped: bool


Event = str | Usage | Exception  # a piece of the answer; its end; why there is none


class Engine:
    """Loaded models by name, and the one thread that they answer in.

    limits: of a request and of the queue · fetch: gets the bytes at an address; None refuses addresses · stand_ins: of
    each model, features of other media by modality. Use as a context manager: leaving it waits for the answer that is
    being made.
    """

    def __init__(
        self,
        models: Mapping[str, LoadedModel],
        limits: ServerLimits,
        fetch: Fetch | None = None,
        stand_ins: Mapping[str, StandIns] | None = None,
    ):
        self.models, self.limits, self.fetch, self.stand_ins = dict(models), limits, fetch, dict(stand_ins or {})
        self.waiting = self.reading = 0  # requests without a place, and those with one
        self._places = asyncio.Semaphore(READ_AT_ONCE)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._features: OrderedDict[tuple[str, str, str], torch.Tensor] = OrderedDict()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, after the answer that is being made."""
        self._thread.shutdown(cancel_futures=True)

    def model(self, name: str) -> LoadedModel:
        """The model of that name. Raises RequestError for another name."""
        if name not in self.models:
            raise RequestError(f"there is no model {name!r} here; there is {', '.join(self.models)}", 404)
        return self.models[name]

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, before the body of a request is read. Raises RequestError when too many wait already."""
        if self.waiting >= self.limits.max_waiting and self._places.locked():
            raise RequestError(f"{self.waiting} requests wait already (--max-waiting); try again later", 503)
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.reading += 1
        try:
            yield
        finally:
            self.reading -= 1
            self._places.release()

    async def answer(self, request: ChatRequest, shuffled: bool = False) -> AsyncGenerator[Event]:
        """The answer's pieces as they are made, then a `Usage`; or an exception in their place.

        shuffled: answer from the features of other media, as the control of that name does. Closing the iterator ends
        the answer with the piece that is being made.
        """
        loop, events, gone = asyncio.get_running_loop(), asyncio.Queue[Event](), threading.Event()

        def put(event: Event) -> None:
            if not gone.is_set():
                loop.call_soon_threadsafe(events.put_nowait, event)

        self._thread.submit(self._answer, request, put, gone, shuffled)
        try:
            while True:
                event = await events.get()
                yield event
                if not isinstance(event, str):
                    return
        finally:
            gone.set()

    def _answer(
        self, request: ChatRequest, put: Callable[[Event], None], gone: threading.Event, shuffled: bool
    ) -> None:
        """In the model's thread: make an answer, unless nobody waits for it any more."""
        if gone.is_set():
            return
        try:
            put(self._speak(request, put, gone, shuffled))
        except Exception as error:
            put(error)

    def _speak(
        self, request: ChatRequest, put: Callable[[Event], None], gone: threading.Event, shuffled: bool
    ) -> Usage:
        model = self.model(request.model)
        conversation, sent = conversation_of(request.messages, model.prompt, self.limits.max_media)
        text, decoding = conversation.segments(model.prompt), request.decoding(self.limits.max_answer)
        length = model.model.length(text)
        model.room(text, decoding)  # refuses what is too long before media are encoded
        features = {slot: self._encoded(request.model, medium) for slot, medium in sent.items()}
        if shuffled:
            features = swapped(features, self.stand_ins.get(request.model, {}))
        if request.seed is not None:
            torch.manual_seed(request.seed)
        with closing(model.speak(text, features, decoding, stream=True)) as pieces:
            while not gone.is_set():
                try:
                    put(next(pieces))
                except StopIteration as over:
                    end = over.value if isinstance(over.value, AnswerEnd) else AnswerEnd(0, True)
                    return Usage(length, end.tokens, end.stopped)
        return Usage(length, 0, False)

    def _encoded(self, name: str, medium: SentMedium) -> torch.Tensor:
        """The features of a medium, kept for the next turn of its conversation."""
        data = medium.read(self.fetch)
        key = (name, medium.modality, hashlib.sha256(data).hexdigest())
        if key not in self._features:
            self._features[key] = self.models[name].features(data, medium.modality)
        self._features.move_to_end(key)
        while len(self._features) > REMEMBERED:
            self._features.popitem(last=False)
        return self._features[key]


def swapped(features: Mapping[str, torch.Tensor], others: StandIns) -> dict[str, torch.Tensor]:
    """Each slot's features replaced by those of another medium: of `others`, or of the other slots.

    Raises RequestError where there is no other medium.
    """
    found = {}
    for number, (slot, mine) in enumerate(features.items()):
        modality = modality_of(slot)
        pool = [*others.get(modality, ()), *(each for name, each in features.items() if modality_of(name) == modality)]
        unlike = [each for each in pool if each.shape == mine.shape and not torch.equal(each, mine)]
        if not unlike:
            raise RequestError(
                f"there is no other {modality} to answer from: the feature set that the run was trained on isn't here; "
                f"show another {modality} in this conversation"
            )
        found[slot] = unlike[number % len(unlike)]
    return found
