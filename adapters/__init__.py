"""The adapter and the frozen language model: projector, soft prompt, splice, loss, generation, checkpoint."""
