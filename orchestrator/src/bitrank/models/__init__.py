"""Locate, load, configure and fuse models; tiny models for tests."""
