"""How answers are made: decoding, conversations, streams of text."""
