"""Whether a runtime can open a language model at all; told before torch is imported, which takes seconds."""

import importlib.util
from pathlib import Path

from periscope.adapters.lm.files.find import find_model
from periscope.adapters.names import GGUF, PROJECT, RuntimeName
from periscope.errors import AdapterError
from periscope.paths import expanded

NAME = "llama.cpp"  # as --runtime takes it
PACKAGE = "llama_cpp"


def check_installed() -> None:
    """Raise AdapterError when the package llama-cpp-python is missing."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise AdapterError(
            f"--runtime {NAME} needs the package llama-cpp-python: pip install 'periscope-adapters[llamacpp]'"
        )


def check_runtime(runtime: RuntimeName, name: str, precision: str = "auto") -> None:
    """Raise AdapterError where the language model `name` isn't there, or llama.cpp can't open it."""
    if runtime == NAME:
        find_quantized(name, precision)
    else:
        find_model(name)


def find_quantized(name: str, precision: str = "auto") -> str:
    """The GGUF file that `name` stands for.

    Raises AdapterError for a precision that llama.cpp can't have, for what isn't GGUF, and for a missing package.
    """
    if precision != "auto":
        raise AdapterError(
            f"--precision {precision} can't be chosen with --runtime {NAME}, which computes the weights as the file "
            "has them; leave it out, or name a file in another quantization"
        )
    source = find_model(name)
    if not source.lower().endswith(GGUF):
        files = _files_in(name)
        meant = f"it holds {files[0].name}: pass --lm {files[0]}" if files else "pass one, as --lm model.Q4_K_M.gguf"
        raise AdapterError(
            f"--runtime {NAME} reads GGUF files, and {name} isn't one; {meant}, or leave --runtime {NAME} out"
        )
    check_installed()
    return source


def _files_in(name: str) -> list[Path]:
    """The GGUF files of language models in a folder of this name."""
    files = [file for place in (expanded(name), PROJECT / name) for file in sorted(place.glob(f"*{GGUF}"))]
    return [file for file in files if "mmproj" not in file.name.lower()]
