"""Copies of whole KV blocks, made before a forward pass."""
