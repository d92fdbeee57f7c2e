"""Meters of memory, tensor sizes, and micro-batches that fit."""
