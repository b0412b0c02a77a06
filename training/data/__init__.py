"""Which texts make which step, from one feature set or several."""
