"""The files that a language model comes in: GGUF, and what can be wrong with a folder."""
