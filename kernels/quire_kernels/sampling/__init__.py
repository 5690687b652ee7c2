"""Drawing tokens from logits with counter-based noise, and the log-probabilities of what was drawn."""
