"""From predictions to scores: what was answered, how it is measured, what stands beside it, and what to know of it."""
