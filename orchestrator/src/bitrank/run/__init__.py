"""One training run inside its own process; start reading at ``road``."""
