"""The frozen language model held between runs, the adapter of one modality on it, and how a new one starts."""
