"""Plain parts of what adapter.json records. Imports no torch, so that the file can be read at once."""

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from periscope.adapters.limits import MAX_LOOPS, Count, Finite, FiniteNumber, Name, Size, SizeOrZero

Sample = Annotated[list[Finite], Meta(max_length=MAX_LOOPS)]


@dataclass(frozen=True)
class FeatureShape:
    """Kind and shape of the features that a projector reads.

    `tokens` is 1 for `pooled`, the number of patches for `patches` and of encoder blocks for `layers`. `grid` is (rows,
    columns) for patches on a grid.
    """

    kind: Name
    tokens: SizeOrZero
    width: SizeOrZero
    grid: tuple[Size, Size] | None = None


@dataclass(frozen=True)
class LoraSize:
    """Rank and alpha of a LoRA; its output is scaled by `alpha / r`."""

    r: Size
    alpha: FiniteNumber


@dataclass(frozen=True)
class Injection:
    """Where an adapter's vectors go: layers `start` <= layer < `end` (0-based) of width `layer_size`.

    `compat` reproduces eP-ALM's released code; see `Injector`.
    """

    layer_size: Size
    start: Count
    end: Count
    compat: bool


@dataclass(frozen=True)
class Digest:
    """What every tensor of a language model holds, and what its tokenizer does.

    `tokenizer` is the SHA-256 of the tokens that it makes of `PROBES`, with its special tokens. `rms` and `projection`
    have an entry for each parameter, sorted by name: RMS, and mean over the values times fixed signs, times the root of
    their number, of all values of a vector, or of 16 rows of a matrix. None stands for packed weights of 8 or 4 bits.
    """

    tokenizer: Name
    rms: Annotated[list[Finite | None], Meta(max_length=MAX_LOOPS)]
    projection: Annotated[list[Finite | None], Meta(max_length=MAX_LOOPS)]


@dataclass(frozen=True)
class LanguageModelIdentity:
    """What an adapter records to recognise its language model, whatever precision that is loaded in.

    `config` and `tokenizer` are SHA-256 hashes. `embedding_sample` holds a few values of the word embeddings,
    `weight_sample` a few of matrices inside, by name, which reveal a fine-tune that left the embeddings alone. Values
    are compared with a tolerance, because fp16, bf16 and fp32 copies of one model round differently. bitsandbytes
    leaves embeddings alone; of its copies no matrix is recorded. Fields are None where an adapter doesn't say; adapters
    of earlier versions have no `digest`.
    """

    model_type: Name | None = None
    hidden_size: Size | None = None
    config: Name | None = None
    tokenizer: Name | None = None
    embedding_sample: Sample | None = None
    weight_sample: Annotated[dict[str, Sample], Meta(max_length=MAX_LOOPS)] = field(default_factory=dict)
    precision: Name | None = None
    digest: Digest | None = None
