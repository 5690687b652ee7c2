"""Loads a running server and measures what its clients see. Knows addresses, and no process behind them."""
