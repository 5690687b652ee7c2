"""Causal attention over a paged KV cache: prefill, chunks on a cached prefix, decode, and mixtures of
them.
"""
