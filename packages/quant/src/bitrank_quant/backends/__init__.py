"""Backends that store a format: registry, choice, probe, and decoding."""
