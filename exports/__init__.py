"""Ways out of Periscope: a trained adapter for programs that know nothing of it.

`ways` is the table of what closes which way, and `check` applies it to an adapter. `gguf` writes a multimodal projector
for llama.cpp, `llava` a folder for transformers' `LlavaForConditionalGeneration`, `embeds` a prompt as vectors for
vLLM. An export joins three things: the adapter folder, the encoder's weights and the language model.
"""
