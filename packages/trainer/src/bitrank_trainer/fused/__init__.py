"""Fused forward and backward passes: attention, rotary embedding, head, row kernels."""
