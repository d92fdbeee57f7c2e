"""Conversions of archive members into rows, one module per archive.

A change of a module fetches its archive again.
"""
