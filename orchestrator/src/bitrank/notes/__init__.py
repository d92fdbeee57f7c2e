"""Findings of finished studies as Markdown notes, and search among them by meaning."""
