"""Forecasts of a run's memory, duration and stored size."""
