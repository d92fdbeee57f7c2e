"""Finished runs exported as models."""
