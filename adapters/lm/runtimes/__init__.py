"""What computes a frozen language model in place of PyTorch: llama.cpp, on a GGUF file's own quantized weights."""
