"""What travels on the data plane between a scheduler and its workers: values and their byte form.

`plan` and `result` hold the values, `codec` turns them into ZeroMQ frames and back, in columns (`column`, `admission`).
Nothing here knows a socket, a tensor library, a request or a policy.
"""

PROTOCOL_VERSION = 3
"""Version of the step protocol; both sides refuse any other (see protos/quire/v1/step.proto)."""

SCRATCH_BLOCK = 0
"""KV block that is never granted: writes of padding and of ended rows land there."""
