"""What eval.py does with a run: its answers and their scores, new captions, a chat about media."""
