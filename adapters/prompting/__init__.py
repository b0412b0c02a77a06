"""From turns of a conversation to segments of token ids."""
