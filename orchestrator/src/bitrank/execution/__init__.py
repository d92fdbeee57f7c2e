"""Executors: they run a list of specs in processes on this machine or on a cluster."""
