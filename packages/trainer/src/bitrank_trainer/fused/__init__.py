"""Fused forward and backward passes: attention, rotary embedding, language-model head, row kernels."""
