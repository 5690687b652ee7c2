"""Rotary position embedding, alone and fused with q/k norm and the write into the paged cache."""
