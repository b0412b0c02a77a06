"""From the turns of a conversation to segments of token ids."""
