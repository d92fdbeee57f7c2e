"""A run's process: its files, lifetime, environment and exit codes."""
