"""Pure functions from predictions and references to numbers. No torch."""
