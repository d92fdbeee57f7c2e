"""What concerns the processes of a run: their files, lifetime, environment and exit codes."""
