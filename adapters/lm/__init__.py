"""The frozen language model: loading, model families, LoRA, injection, kernels."""
