"""Language models in GGUF, llama.cpp's file format: read through transformers, dequantized when loaded.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What can be read is what transformers maps to a
class of its own (https://huggingface.co/docs/transformers/gguf).
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from periscope.adapters.lm.files.find import PART, check_gguf_package, part_name
from periscope.adapters.names import GGUF as SUFFIX
from periscope.errors import AdapterError, first_line


class QuantizedRows:
    """The word embeddings in a file, dequantized row by row. tensor: as GGUFReader gives it."""

    def __init__(self, tensor: Any):
        self._data, self._kind = tensor.data, tensor.tensor_type

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """The embeddings of words, as stored: `(words,)` ids to `(words, hidden_size)` in fp32."""
        from gguf import dequantize

        try:
            rows = dequantize(self._data[ids.numpy()], self._kind)
        except NotImplementedError as error:
            raise AdapterError(
                f"word embeddings in {self._kind.name} can't be read; take a file in another quantization"
            ) from error
        return torch.from_numpy(np.array(rows, dtype=np.float32))


@dataclass(frozen=True)
class GgufFile:
    """A GGUF language model: its files (one, or all parts in order), and what its header says of them.

    `quantization` is llama.cpp's name, such as Q4_K_M; `chat_template` is Jinja; `embeddings` are the words', where the
    file has any; `reader` has parsed the header, where it is one file.
    """

    files: tuple[Path, ...]
    quantization: str
    chat_template: str | None
    embeddings: QuantizedRows | None = field(default=None, repr=False, compare=False)
    reader: Any = field(default=None, repr=False, compare=False)

    def describe(self, precision: str) -> str:
        """What is loaded, for people."""
        parts = f" in {len(self.files)} files" if len(self.files) > 1 else ""
        if self.quantization in ("F32", "F16", "BF16"):
            return f"GGUF {self.files[0].name}{parts}, {self.quantization}"
        return (
            f"GGUF {self.files[0].name}{parts}, {self.quantization}, dequantized to {precision}: answers follow the "
            "dequantized weights"
        )

    @property
    def stored_dtype(self) -> torch.dtype | None:
        """The dtype of weights that aren't quantized."""
        return {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}.get(self.quantization)


def read_gguf(path: Path) -> GgufFile:
    """The GGUF model whose first file is `path`.

    Raises AdapterError when the package gguf or a part is missing, and for a file that can't be read or isn't a
    language model.
    """
    check_gguf_package(f"reading {path.name}")
    files: tuple[Path, ...] = (path,)
    if part := PART.fullmatch(path.name):
        files = tuple(path.with_name(part_name(part, number + 1)) for number in range(int(part[3])))
        if missing := [file.name for file in files if not file.is_file()]:
            raise AdapterError(
                f"--lm {path.parent} lacks {missing[0]}, one of the model's {len(files)} parts; download it into that "
                "folder"
            )
    readers = [_open(file) for file in files]
    fields = readers[0].fields
    count = _value(fields, "split.count")
    if count and int(count) != len(files):
        raise AdapterError(
            f"--lm {path} is one of {count} parts, and its name doesn't say which; give the parts their first names "
            f"back, such as model-00001-of-{int(count):05}.gguf"
        )
    architecture = _value(fields, "general.architecture")
    if architecture in (None, "clip"):
        raise AdapterError(f"--lm {path} is no language model (its architecture is {architecture}); name the model's")
    words = next((each for reader in readers for each in reader.tensors if each.name == "token_embd.weight"), None)
    embeddings = None if words is None else QuantizedRows(words)
    parsed = readers[0] if len(readers) == 1 else None
    return GgufFile(files, _quantization(readers), _value(fields, "tokenizer.chat_template"), embeddings, parsed)


@contextmanager
def gguf_arguments(model: GgufFile) -> Iterator[dict[str, Any]]:
    """Arguments of `from_pretrained` that name the model, while the context lasts.

    The file is shown to transformers alone in a folder, because it would read a tokenizer or a config beside it. Parts
    are joined there, since transformers reads one file.
    """
    with tempfile.TemporaryDirectory(prefix="periscope-gguf-") as folder:
        file = Path(folder) / f"model{SUFFIX}"
        if len(model.files) == 1:
            _show(model.files[0].absolute(), file)
        else:
            try:
                _join(model.files, file)
            except OSError as error:
                raise AdapterError(
                    f"the {len(model.files)} parts of {model.files[0]} can't be joined in {folder}: "
                    f"{error.strerror or error}; set TMPDIR to a folder with room for them"
                ) from error
        with _parsed_once(file, model.reader):
            yield {"pretrained_model_name_or_path": folder, "gguf_file": file.name}


@contextmanager
def _parsed_once(file: Path, reader: Any) -> Iterator[None]:
    """A block in which whoever asks the package gguf to read `file` gets `reader`, or the first reader made here.

    transformers parses a header for the config, for the tokenizer and for the weights, and each takes seconds, since a
    header has every word of the vocabulary.
    """
    import gguf

    real, readers = gguf.GGUFReader, {str(file): reader} if reader else {}

    def reader_of(path: Any, *mode: Any) -> Any:
        if str(path) != str(file) or mode:
            return real(path, *mode)
        if str(path) not in readers:
            readers[str(path)] = _read_header(file)
        return readers[str(path)]

    vars(gguf)["GGUFReader"] = reader_of
    try:
        yield
    finally:
        vars(gguf)["GGUFReader"] = real


def _read_header(file: Path) -> Any:
    from gguf.gguf_reader import GGUFReader

    class Reader(GGUFReader):
        """As it is, but for the class of the array that it cuts into pieces: slices of a memmap take three times as
        long as those of a plain array.
        """

        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = np.asarray(mapped)

    return Reader(file)


def _show(model: Path, name: Path) -> None:
    """Give a file another name for a while: by a link of either kind, or as a copy where Windows allows neither."""
    try:
        name.symlink_to(model)
    except OSError:
        try:
            name.hardlink_to(model)
        except OSError:
            shutil.copyfile(model, name)


def dequantize() -> dict[str, Any]:
    """Arguments of the model's `from_pretrained` that unpack all weights."""
    import transformers

    # Versions before GgufConfig always do.
    made = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": made(dequantize=True)} if made else {}


def forget_file(model: Any) -> None:
    """Remove what marks a dequantized model as quantized, which would keep it from being saved or given a LoRA."""
    for owner, name in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model, "is_quantized"),
    ):
        if name in vars(owner):
            delattr(owner, name)


def _open(file: Path) -> Any:
    with file.open("rb") as opened:
        start = opened.read(4)
    if start != b"GGUF":
        raise AdapterError(f"--lm {file} is not a GGUF file, whatever its name says; download it again")
    try:
        return _read_header(file)
    except Exception as error:  # whatever reading past the end of a cut file raises
        raise AdapterError(f"--lm {file} is cut or damaged: {first_line(error)}; download it again") from error


def _value(fields: Any, name: str) -> Any:
    entry = fields.get(name)
    return None if entry is None else entry.contents()


def _quantization(readers: list[Any]) -> str:
    """llama.cpp's name of the file type; where a file doesn't say, the type of most of its bytes."""
    from gguf import LlamaFileType

    number = _value(readers[0].fields, "general.file_type")
    if number is not None and int(number) in LlamaFileType._value2member_map_:
        return LlamaFileType(int(number)).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    sizes: dict[str, int] = {}
    for reader in readers:
        for tensor in reader.tensors:
            sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + tensor.n_bytes
    return max(sizes, key=lambda kind: sizes[kind], default="without weights")


def _join(files: tuple[Path, ...], out: Path) -> None:
    """Write the parts that llama.cpp's gguf-split made as one file."""
    from gguf import GGUFValueType, GGUFWriter

    readers = [_open(file) for file in files]
    writer = GGUFWriter(out, readers[0].fields["general.architecture"].contents())
    for entry in readers[0].fields.values():
        if entry.name.startswith(("GGUF.", "split.")) or entry.name == "general.architecture":
            continue
        inner = entry.types[-1] if entry.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(entry.name, entry.contents(), entry.types[0], sub_type=inner)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data, tensor_endianess=readers[0].endianess)
    writer.close()
