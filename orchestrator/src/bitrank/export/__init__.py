"""Finished runs exported to files of other programs."""
