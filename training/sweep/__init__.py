"""Many trainings against one frozen language model."""
