"""Recognising a language model by content: adapters are pinned to the model that they were trained with."""

import hashlib
import json
import math
from collections.abc import Callable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from periscope.adapters.lm.precision import DTYPES
from periscope.adapters.recorded import Digest, LanguageModelIdentity

ROUNDING = 0.006  # relative; a larger difference is another value
LIKE = 0.9  # cosine of 16 word embeddings' values; of a copy in 2 bits it is about 0.95, of another model near 0

MAX_TENSORS = 2048  # of a digest
ROWS = 16  # of each tensor
# Capitals, accents, spaces, digits, scripts, code and special tokens: tokenizers that differ in a normalizer,
# pre-tokenizer, post-processor or special token make different tokens of some of them.
PROBES = (
    "The capital of France is Paris.", "ALL CAPITALS, CamelCase and lower case", "  two  spaces\tand a tab\n\n a line ",
    "naïve café Ångström ﬁ ① ＡＢＣ e\u0301", "1234567890 3.14159 12,345 0x1F -7 25% $9.99", "don't you'll we'VE I'm",
    "日本語のテキスト 中文字符 한국어", "Привет мир Γειά σου שלום مرحبا नमस्ते ไทย", "🙂👩‍👩‍👧🏽 a\u200bb\u00a0c\u00add",
    "def f(x):\n    return {'a': [x ** 2, x != 3]}  # ok", "https://example.org/a_b?c=d&e#f user@example.com",
    "<s></s><unk><pad><|endoftext|><|im_start|>user<|im_end|> [INST] x [/INST] <think></think> <image></image>", "",
)  # fmt: skip

Rows = Callable[[torch.Tensor], torch.Tensor]  # ids -> word embeddings
# Config fields that say nothing about what the model computes.
_VOLATILE = {"_name_or_path", "dtype", "torch_dtype", "transformers_version", "quantization_config", "use_cache"}


def identify(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, precision: str, rows: Rows | None = None
) -> LanguageModelIdentity:
    """The identity of a loaded model with its tokenizer, LoRA left out. rows: reads the word embeddings of a model
    without weights, whose digest holds nothing of them.
    """
    config = {key: value for key, value in model.config.to_dict().items() if key not in _VOLATILE}
    vocabulary = sorted(tokenizer.get_vocab().items())
    return LanguageModelIdentity(
        model_type=model.config.model_type,
        hidden_size=_matrix(model.get_input_embeddings()).shape[1],
        config=_sha256(json.dumps(config, sort_keys=True, default=str)),
        tokenizer=_sha256(json.dumps([vocabulary, tokenizer.chat_template], default=str)),
        embedding_sample=_embedding_sample(model, rows),
        weight_sample=_weight_sample(model) if precision in DTYPES else {},
        precision=precision,
        digest=_digest(model, tokenizer),
    )


def same_language_model(recorded: LanguageModelIdentity, loaded: LanguageModelIdentity) -> str | None:
    """How the loaded model differs from the one that an adapter recorded, in a few words; None when it is the same.

    Another precision is no difference; see `precisions_differ`.
    """
    for name in ("model_type", "hidden_size", "config", "tokenizer", "embedding_sample"):
        expected, actual = getattr(recorded, name), getattr(loaded, name)
        if expected is None:
            return f"the adapter doesn't say what its {name.replace('_', ' ')} was"
        if name != "embedding_sample" and expected != actual:
            values = "" if len(str(actual)) > 20 else f" ({actual} instead of {expected})"
            return f"its {name.replace('_', ' ')} differs{values}"
    if _differ(recorded.embedding_sample or [], loaded.embedding_sample or []):
        return "its weights differ"
    ours, theirs = recorded.weight_sample, loaded.weight_sample
    if any(_differ(ours[name], theirs[name]) for name in ours.keys() & theirs.keys()):
        return "its weights differ, though not its embeddings"
    if recorded.digest and loaded.digest:
        return _digests_differ(recorded.digest, loaded.digest)
    return None


def _digests_differ(recorded: Digest, loaded: Digest) -> str | None:
    if recorded.tokenizer != loaded.tokenizer:
        return "its tokenizer makes other tokens of the same texts"
    if len(recorded.rms) != len(loaded.rms):
        return "it has other weights"
    entries = zip(recorded.rms, loaded.rms, recorded.projection, loaded.projection, strict=False)
    for rms, loaded_rms, projection, loaded_projection in entries:
        if rms is None or loaded_rms is None or projection is None or loaded_projection is None:
            continue
        # A projection is as large as the RMS, or near 0 by chance, so the RMS says what rounding is.
        if abs(projection - loaded_projection) > ROUNDING * max(rms, loaded_rms) + 1e-6 or _differ([rms], [loaded_rms]):
            return "some of its weights differ"
    return None


def no_copy(recorded: LanguageModelIdentity, loaded: LanguageModelIdentity) -> str | None:
    """Why the loaded model is no quantized copy of the one that an adapter recorded, in a few words; None when it looks
    like one: it makes the same tokens, and its word embeddings correlate. That doesn't tell a copy from a fine-tune.
    """
    if recorded.hidden_size != loaded.hidden_size:
        return f"its hidden size is {loaded.hidden_size} instead of {recorded.hidden_size}"
    digests = recorded.digest, loaded.digest
    ours, theirs = (digest.tokenizer if digest else None for digest in digests)
    if (ours != theirs) if all(digests) else recorded.tokenizer != loaded.tokenizer:
        return "its tokenizer makes other tokens of the same texts"
    return None if embedding_likeness(recorded, loaded) >= LIKE else "its word embeddings are others"


def embedding_likeness(recorded: LanguageModelIdentity, loaded: LanguageModelIdentity) -> float:
    """The cosine of two models' samples of word embeddings; 0 where one has none."""
    ours, theirs = recorded.embedding_sample or [], loaded.embedding_sample or []
    if not ours or len(ours) != len(theirs):
        return 0.0
    a, b = torch.tensor(ours, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64)
    return torch.cosine_similarity(a, b, dim=0).item()


def precisions_differ(recorded: LanguageModelIdentity, loaded: LanguageModelIdentity) -> str | None:
    """A note when the model is held in another precision than the adapter was trained with; None when it isn't.

    That is no mistake: AnyMAL (arXiv 2309.16058, section 3) trains on 4 and 8 bits and answers in full precision.
    """
    if recorded.precision in (None, loaded.precision):
        return None
    return f"trained with {recorded.precision} weights, here in {loaded.precision}"


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 of every weight and buffer, to verify that training left a frozen model unchanged.

    LoRA's own weights, and the names it moves the model's to, don't change the hash.
    """
    digest = hashlib.sha256()
    own = {key.replace(".base_layer.", "."): t for key, t in model.state_dict().items() if ".lora_" not in key}
    for key, tensor in sorted(own.items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _matrix(module: torch.nn.Module) -> torch.Tensor:
    """The weight of an embedding or linear layer."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _digest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Digest:
    tokens = [tokenizer(text, split_special_tokens=False).input_ids for text in PROBES]
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    own = {name.replace(".base_layer.", "."): v for name, v in model.named_parameters() if ".lora_" not in name}
    names = sorted(own)
    chosen = evenly_spaced(len(names), min(len(names), MAX_TENSORS)).tolist()
    rms: list[float | None] = []
    projection: list[float | None] = []
    for tensor in (own[names[index]].detach() for index in chosen):
        readable = tensor.is_floating_point() and tensor.numel() and not tensor.is_meta
        both = _rms_and_projection(tensor) if readable else (None, None)
        rms.append(both[0])
        projection.append(both[1])
    return Digest(_sha256(json.dumps([tokens, special])), rms, projection)


def _rms_and_projection(tensor: torch.Tensor) -> tuple[float | None, float | None]:
    """See `Digest`; in fp64, on the CPU."""
    if tensor.dim() > 1:
        rows = tensor.reshape(-1, tensor.shape[-1])
        tensor = rows[evenly_spaced(len(rows), ROWS).to(rows.device)]
    values = tensor.flatten().cpu().double()
    signs = (torch.arange(len(values)) * 2654435761 >> 15) % 2 * 2 - 1
    numbers = values.square().mean().sqrt().item(), (values @ signs.double()).item() / len(values) ** 0.5
    if not all(math.isfinite(number) for number in numbers):
        return None, None
    rms, projection = (float(f"{number:.5g}") for number in numbers)
    return rms, projection


def evenly_spaced(length: int, count: int) -> torch.Tensor:
    """`count` indices from 0 to `length` - 1, `(count,)` int64; made on the CPU, as Apple's GPU has no float64."""
    return torch.linspace(0, length - 1, count, dtype=torch.float64).long()


def _embedding_sample(model: PreTrainedModel, rows: Rows | None = None) -> list[float]:
    weight = _matrix(model.get_input_embeddings())
    device = torch.device("cpu") if rows else weight.device
    words, columns = (torch.linspace(0, size - 1, 16, device=device).long() for size in weight.shape)
    values = rows(words)[torch.arange(16), columns] if rows else weight[words, columns]
    return [round(value, 6) for value in values.float().tolist()]


def _weight_sample(model: PreTrainedModel) -> dict[str, list[float]]:
    """Four values of each of eight matrices, evenly chosen; never of LoRA, the embeddings or the head."""
    own = {name.replace(".base_layer.", "."): value for name, value in model.named_parameters()}
    outer = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer}
    names = sorted(n for n, v in own.items() if v.dim() == 2 and ".lora_" not in n and id(v) not in outer)
    sample = {}
    for index in torch.linspace(0, len(names) - 1, min(8, len(names))).long().tolist():
        flat = own[names[index]].detach().flatten()
        values = flat[evenly_spaced(len(flat), 4).to(flat.device)]
        sample[names[index]] = [float(f"{value:.6g}") for value in values.float().tolist()]
    return sample


def _differ(recorded: list[float], loaded: list[float]) -> bool:
    """Whether values differ by more than rounding to bf16, which moves a number by up to 0.4% when done twice."""
    if len(recorded) != len(loaded):
        return True
    a, b = torch.tensor(recorded, dtype=torch.float64), torch.tensor(loaded, dtype=torch.float64)
    return not bool(((a - b).abs() <= ROUNDING * torch.maximum(a.abs(), b.abs()) + 1e-6).all())


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
