"""Backends that store a format: interface, registry, choice, probe, and decoding."""
