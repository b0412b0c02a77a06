"""What train.py needs besides the model: configuration, data, optimizer step, memory plan, run folder."""
