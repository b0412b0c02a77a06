"""What is sent back, in OpenAI's form."""

import time
import uuid
from collections.abc import Iterable
from typing import Any

from periscope.errors import AdapterError, PrecomputeError, RequestError, UserError
from periscope.serving.engine import Usage

OWNER = "periscope"
DONE = "[DONE]"


class Reply:
    """One answer: what all of its messages have in common. model: its name."""

    def __init__(self, model: str):
        self.model, self.id, self.created = model, f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def whole(self, words: str, usage: Usage) -> dict[str, Any]:
        """The answer at once."""
        message = {"role": "assistant", "content": words}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(usage)}
        return self._object("chat.completion", [choice]) | {"usage": _counted(usage)}

    def begin(self) -> dict[str, Any]:
        """What a stream begins with."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, words: str) -> dict[str, Any]:
        """A piece of a stream."""
        return self._chunk({"content": words})

    def end(self, usage: Usage) -> dict[str, Any]:
        """A stream's last piece."""
        return self._chunk({}, _reason(usage))

    def usage(self, usage: Usage) -> dict[str, Any]:
        """What follows it, if the request asks for numbers of tokens."""
        return self._object("chat.completion.chunk", []) | {"usage": _counted(usage)}

    def _chunk(self, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._object("chat.completion.chunk", [choice])

    def _object(self, kind: str, choices: list[dict]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def listing(names: Iterable[str], created: int) -> dict[str, Any]:
    """The models that there are."""
    models = [{"id": name, "object": "model", "created": created, "owned_by": OWNER} for name in names]
    return {"object": "list", "data": models}


def refusal(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP's status for an exception, and what is told of it: a user's mistake in its own words, a bug without any."""
    status, kind, words = 500, "server_error", "the server failed on this request; its log says how"
    if isinstance(error, RequestError):
        status, kind, words = error.status, "invalid_request_error", str(error)
    elif isinstance(error, AdapterError | PrecomputeError):
        status, kind, words = 400, "invalid_request_error", str(error)
    elif isinstance(error, UserError):
        status, words = 500, str(error)
    return status, {"error": {"message": words, "type": kind, "param": None, "code": None}}


def _reason(usage: Usage) -> str:
    return "stop" if usage.stopped else "length"


def _counted(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.answer,
        "total_tokens": usage.prompt + usage.answer,
    }
