"""Texts of the embedded assets as records and tasks, one module per kind of task."""
