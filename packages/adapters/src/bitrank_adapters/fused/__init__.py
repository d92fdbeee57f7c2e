"""Fused forward and backward passes of adapted layers."""
