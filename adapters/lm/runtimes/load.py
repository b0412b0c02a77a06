"""Opening a language model: in PyTorch, or as a GGUF file that llama.cpp runs on its own quantized weights."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from periscope.adapters.lm.families import family_of, why_refused
from periscope.adapters.lm.files.gguf_file import GgufFile, QuantizedRows
from periscope.adapters.lm.identity import LanguageModelIdentity, identify
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.load import load_language_model, opened, read_config, read_tokenizer
from periscope.adapters.lm.runtimes.choice import NAME, find_quantized
from periscope.adapters.lm.runtimes.llama_cpp import LlamaCpp
from periscope.adapters.lm.runtimes.sequence import VECTOR, MixedSequence, Runtime
from periscope.adapters.names import RuntimeName
from periscope.errors import AdapterError

WORDS = 8  # of the trial
SAMPLE = 1024  # words whose embeddings' RMS is measured
TOLERANCE = 0.02  # RMS difference of logits, relative to their standard deviation


@dataclass
class QuantizedLanguageModel(LanguageModel):
    """A language model that llama.cpp runs. `model` is transformers' class without weights, which knows the
    architecture; `rows` are the word embeddings in the file.
    """

    rows: QuantizedRows = field(kw_only=True)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the vectors that it reads."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where its vectors are read from and its logits come to."""
        return torch.device("cpu")

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """As `LanguageModel.embed`, from the file's embeddings, in fp32."""
        return _embedded(self.model, self.rows, ids)

    def identity(self) -> LanguageModelIdentity:
        """What it is recognised by: all but the weights of its layers."""
        return identify(self.model, self.tokenizer, self.precision, self.rows)


def open_language_model(
    runtime: RuntimeName, name: str, device: str, precision: str = "auto", trust_remote_code: bool = False
) -> LanguageModel:
    """The language model `name` for answering and scoring, computed by `runtime`.

    Raises AdapterError as `load_language_model` and `load_quantized`, and for a precision that llama.cpp can't have.
    """
    if runtime == "pytorch":
        return load_language_model(name, device, precision, trust_remote_code)
    if trust_remote_code:
        raise AdapterError(
            f"--trust-remote-code does nothing with --runtime {NAME}, which runs no code of a model's; leave it out"
        )
    return load_quantized(name, gpu=torch.device(device).type != "cpu", precision=precision)


def load_quantized(name: str, gpu: bool = False, precision: str = "auto") -> QuantizedLanguageModel:
    """Open a GGUF language model in llama.cpp. gpu: all layers on the GPU, where llama-cpp-python was built for one.

    Tokenizer, chat template and architecture come from the file, read by transformers. Raises AdapterError for what
    isn't GGUF, for a missing package, for a family that isn't driven by vectors, has a recurrent state or reads vectors
    in another way than words, and for a file that can't be read.
    """
    source = find_quantized(name, precision)
    config, tokenizer, file = _described(source, name)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()  # undone there
    model.requires_grad_(False).eval()
    width, rows = model.get_input_embeddings().weight.shape[1], cast(QuantizedRows, file.embeddings)
    longest = getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    runtime = LlamaCpp(Path(source), width, longest, gpu)
    count = min(len(tokenizer), model.get_input_embeddings().weight.shape[0])
    ids = torch.linspace(0, count - 1, min(count, SAMPLE)).long()
    rms = _embedded(model, rows, ids).pow(2).mean(-1).sqrt().median().item()
    trial = torch.linspace(3, count - 3, WORDS).long()
    scale = find_scale(runtime, trial.tolist(), _embedded(model, rows, trial))
    if scale is None:
        raise AdapterError(
            f"--lm {name} ({config.model_type}) can't be used: {NAME} reads vectors otherwise than words"
        )
    runtime.scale = scale
    reason = f"computed by {NAME}, on the weights of {Path(source).name}"
    return QuantizedLanguageModel(
        name, model, tokenizer, file.quantization, reason, rms, runtime=cast(Runtime, runtime), rows=rows
    )


def _described(source: str, name: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase, GgufFile]:
    """What a GGUF file says of its model, from one reading of its header. Raises AdapterError for what isn't run here,
    and for a file without word embeddings.
    """
    with opened(source) as (where, file):
        config = read_config(where, name)
        if reason := why_refused(config) or _not_here(config):
            raise AdapterError(f"--lm {name} ({config.model_type}) can't be used: {reason}")
        if file is None or file.embeddings is None:
            raise AdapterError(f"--lm {name} lacks its word embeddings (token_embd.weight); fetch it again")
        return config, read_tokenizer(where, file, name), replace(file, reader=None)


def find_scale(runtime: Runtime, ids: list[int], vectors: torch.Tensor) -> float | None:
    """What vectors must be multiplied by so that those of words `(words, hidden_size)`, as PyTorch's embedding module
    gives them, are read as the words; None where nothing will do.

    llama.cpp multiplies Gemma's and Gemma 2's vectors by the root of their width once more.
    """
    expected = runtime.logits(MixedSequence(tuple(ids), vectors[:0]), [len(ids) - 1])
    for scale in (1.0, vectors.shape[1] ** -0.5):
        sequence = MixedSequence((VECTOR,) * len(ids), vectors * scale)
        difference = runtime.logits(sequence, [len(ids) - 1]) - expected
        if difference.square().mean().sqrt() <= TOLERANCE * expected.std():
            return scale
    return None


def _not_here(config: PretrainedConfig) -> str | None:
    """Why a model that PyTorch can compute isn't run by llama.cpp; None if it is."""
    if family_of(config).recurrent:
        return f"its state can't be taken back to an earlier word in {NAME}; leave out --runtime {NAME}"
    return None


@torch.no_grad()
def _embedded(model: PreTrainedModel, rows: QuantizedRows, ids: torch.Tensor) -> torch.Tensor:
    """What the model's embedding module, whose weights are in the file alone, makes of ids, in fp32."""
    module: Any = model.get_input_embeddings()
    flat = ids.flatten()
    kept = module.weight, module.padding_idx
    module.weight, module.padding_idx = nn.Parameter(rows(flat), requires_grad=False), None
    try:
        return module(torch.arange(len(flat))).view(*ids.shape, -1)
    finally:
        module.weight, module.padding_idx = kept
