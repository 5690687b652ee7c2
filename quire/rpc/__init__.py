"""gRPC as every Quire process uses it: one way to open a channel, build a server and carry an error.

Knows no service of Quire: the contracts live in quire/v1, their servicers in the services.
"""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest message in either direction, unless a process sets a smaller limit."""

KEEPALIVE_TIME_MS = 10_000
"""A channel that has been quiet this long is probed."""

KEEPALIVE_TIMEOUT_MS = 5_000
"""A probe that is not answered within this time ends the connection."""

MAX_PENDING_CALLS = 16_384
"""Calls that a server has received and not begun; more are cancelled unseen."""
