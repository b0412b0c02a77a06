"""llama.cpp through the ctypes of the package llama-cpp-python: logits of words and vectors, on quantized weights.

The C interface: https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h.
"""

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from periscope.adapters.lm.runtimes.choice import NAME, check_installed
from periscope.adapters.lm.runtimes.sequence import MixedSequence
from periscope.errors import AdapterError

BATCH = 512  # positions in one pass
SHORTEST = 1024  # positions that the first context has room for
ERROR = 4  # a log level
EVERYWHERE = -1  # all layers on the GPU

_errors: list[str] = []  # of the call that runs; the first one says why
_log_callback: Any = None  # must outlive the library


class LlamaCpp:
    """A GGUF language model in llama.cpp: a `Runtime` that keeps the keys and values of its last sequence.

    A sequence that begins like the last one costs only what follows: an answer's next token, a conversation's next
    turn, the same prompt with another answer. `scale` multiplies vectors before they are read. The context grows as
    longer sequences come. Calls from several threads wait for one another.

    Raises AdapterError when the package is missing, and for a file that llama.cpp can't read or whose width isn't
    `hidden_size`.
    """

    name = NAME

    def __init__(self, file: Path, hidden_size: int, longest: int, gpu: bool = False, threads: int = 0):
        self._api = _library()
        self.hidden_size, self.longest, self.scale = hidden_size, longest, 1.0
        self._threads = threads or torch.get_num_threads()
        self._lock = Lock()
        options = self._api.llama_model_default_params()
        options.n_gpu_layers = EVERYWHERE if gpu and self._api.llama_supports_gpu_offload() else 0
        _errors.clear()
        self._model = self._api.llama_model_load_from_file(str(file).encode(), options)
        if not self._model:
            raise AdapterError(f"--lm {file}: llama.cpp can't read it{_why()}")
        weakref.finalize(self, self._api.llama_model_free, self._model)
        if (width := self._api.llama_model_n_embd(self._model)) != hidden_size:
            raise AdapterError(f"--lm {file}: llama.cpp reads vectors of width {width}, not of {hidden_size}")
        self._vocabulary = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model))
        self._words, self._vectors = (self._new_batch(width) for width in (0, hidden_size))
        self._room, self._context = 0, None
        self._free_context: Any = None
        self._held = MixedSequence((), torch.zeros(0, hidden_size))

    def logits(self, sequence: MixedSequence, positions: Sequence[int]) -> torch.Tensor:
        """As `Runtime.logits`. Raises AdapterError when there is no memory for so long a sequence."""
        with self._lock:
            sequence = sequence.first(positions[-1] + 1)
            self._make_room(len(sequence))
            start = self._forget(min(self._held.begins_like(sequence), positions[0]))
            rows: list[torch.Tensor] = []
            for place, piece in sequence.stretches(start, BATCH):
                rows += self._read(place, piece, set(positions))
            self._held = sequence
            return torch.stack(rows)

    def _make_room(self, length: int) -> None:
        """Have a context for `length` positions; a new one holds nothing."""
        if length <= self._room:
            return
        room = SHORTEST
        while room < length:
            room *= 2
        room = max(length, min(room, self.longest))
        if self._free_context:
            self._free_context()
        self._room, self._held = 0, self._held.first(0)
        options = self._api.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = room, BATCH, BATCH, 1
        options.n_threads = options.n_threads_batch = self._threads
        options.no_perf = True
        _errors.clear()
        self._context = self._api.llama_init_from_model(self._model, options)
        if not self._context:
            raise AdapterError(f"llama.cpp has no memory for a context of {room} tokens{_why()}; ask less")
        self._free_context = weakref.finalize(self, self._api.llama_free, self._context)
        self._room = room

    def _forget(self, start: int) -> int:
        """Drop the keys and values from position `start` on. Returns where to go on: the beginning, where the model
        can't drop a part.
        """
        memory = self._api.llama_get_memory(self._context)
        if not start or not self._api.llama_memory_seq_rm(memory, 0, start, -1):
            self._api.llama_memory_clear(memory, True)
            start = 0
        self._held = self._held.first(start)
        return start

    def _read(self, place: int, piece: tuple[int, ...] | torch.Tensor, wanted: set[int]) -> list[torch.Tensor]:
        """Read words or vectors from position `place` on, and return the logits of those that are wanted."""
        if isinstance(piece, torch.Tensor):
            batch = self._vectors
            vectors = (piece * self.scale).contiguous()
            ctypes.memmove(batch.embd, vectors.data_ptr(), vectors.nbytes)
        else:
            batch = self._words
            for i, token in enumerate(piece):
                batch.token[i] = token
        batch.n_tokens = len(piece)
        for i in range(len(piece)):
            batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = place + i, 1, 0
            batch.logits[i] = place + i in wanted
        _errors.clear()
        if code := self._api.llama_decode(self._context, batch):
            raise AdapterError(f"llama.cpp stopped at token {place} of a sequence, with code {code}{_why()}")
        return [self._logits_of(i) for i in range(len(piece)) if place + i in wanted]

    def _logits_of(self, i: int) -> torch.Tensor:
        row = self._api.llama_get_logits_ith(self._context, i)
        return torch.from_numpy(np.ctypeslib.as_array(row, (self._vocabulary,)).copy())

    def _new_batch(self, width: int) -> Any:
        batch = self._api.llama_batch_init(BATCH, width, 1)
        weakref.finalize(self, self._api.llama_batch_free, batch)
        return batch


def _library() -> Any:
    """llama.cpp's functions, silent but for `_errors`. Raises AdapterError when the package is missing or broken."""
    global _log_callback
    check_installed()
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:  # its library was built for another machine
        raise AdapterError(f"llama-cpp-python can't be loaded: {error}; install it again on this machine") from error
    if _log_callback is None:

        def remember(level: int, text: bytes, _: object) -> None:
            if level == ERROR and text.strip():
                _errors.append(text.decode(errors="replace").strip())

        _log_callback = llama_cpp.llama_log_callback(remember)
        llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
    return llama_cpp


def _why() -> str:
    """llama.cpp's first error in this call, in brackets."""
    return f" ({_errors[0]})" if _errors else ""
