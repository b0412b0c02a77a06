"""Ways out of Periscope: a trained adapter for programs that know nothing of it.

`check` says which ways are open for an adapter, `gguf` writes a multimodal projector for llama.cpp, and `llava` a
folder for transformers' `LlavaForConditionalGeneration`. An export joins three things: the adapter folder, the
encoder's weights and the language model.
"""
