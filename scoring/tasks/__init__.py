"""One module for each scored task."""
