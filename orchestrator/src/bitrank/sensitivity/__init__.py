"""Sensitivity measurements: made once per model and task, then cached."""
