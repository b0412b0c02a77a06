"""Export of a soft prompt as a prompt-tuning folder of PEFT."""

from pathlib import Path

import torch
from peft import PromptTuningConfig

from periscope.adapters.io.checkpoint import load_adapter, write_folder
from periscope.adapters.model import Adapter
from periscope.adapters.prompting.template import Template
from periscope.adapters.tensors import save_tensors
from periscope.errors import AdapterError


def export_prompt(adapter: Path, out: Path) -> None:
    """Write the soft prompt of the adapter folder `adapter`, trained alone, as PEFT's prompt-tuning folder `out`.

    Raises AdapterError as `save_peft_prompt`, and where `out` exists.
    """
    loaded, config = load_adapter(adapter)
    name = config.language_model_in(adapter)
    write_folder(out, lambda folder: save_peft_prompt(folder, loaded, config.template, name))
    print(f"{out} is ready: {loaded.soft_tokens} vectors for peft.PeftModel.from_pretrained(model, {str(out)!r})")


def save_peft_prompt(folder: Path, adapter: Adapter, template: Template, lm_name: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` into `folder`, which must not exist yet.

    `peft.PeftModel.from_pretrained(model, folder)` then gives the same logits on the same ids. An MLP is folded in.
    PEFT puts its vectors first in the sequence, before the begin-of-text token. Raises AdapterError for an adapter that
    reads media, which PEFT can't load, for one without a soft prompt, and for one whose soft prompt is elsewhere.
    """
    if adapter.tokens:
        raise AdapterError(
            f"this adapter reads media ({adapter.spec}), which PEFT can't; a soft prompt alone is trained with "
            "--adapter none --soft-prompt 10 --soft-prompt-place first"
        )
    if adapter.soft_prompt is None:
        raise AdapterError("this adapter has no soft prompt")
    if template.soft_prompt != "first":
        raise AdapterError(
            f"this adapter's soft prompt stands {template.soft_prompt} the words of a turn, and PEFT's before "
            "everything; train it with --soft-prompt-place first"
        )
    with torch.no_grad():
        vectors = adapter.soft_prompt().to("cpu", torch.float32).contiguous()
    folder.mkdir(parents=True)
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=lm_name,
        inference_mode=True,
        num_virtual_tokens=len(vectors),
        token_dim=vectors.shape[1],
        num_transformer_submodules=1,
    )
    config.save_pretrained(str(folder))
    save_tensors({"prompt_embeddings": vectors}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
