"""One training run inside its own process; start reading at ``train_run``."""
