"""The numbers of frames on an Attach stream: each direction counts from 1, so that repeats and losses are seen.

A frame that is lost shows when the next one comes; a side with nothing to say sends an empty one every
`BEAT_INTERVAL_S`, so that the last frame cannot be lost unseen. What is in a frame is not known here.
"""

from quire.errors import Unavailable

FIRST_FRAME = 1
"""The hello upwards, the welcome downwards."""

BEAT_INTERVAL_S = 1.0
"""Longest pause between frames of one direction, and so how long a loss can go unseen."""


class FrameOrder:
    """What one end has received of one stream."""

    def __init__(self, last: int = 0) -> None:
        self._last = last

    def is_new(self, number: int) -> bool:
        """Whether the frame is to be taken: not if it is a repeat. Frames without a number are.

        Raises `Unavailable` when frames before it are missing: the stream must end, and the peer attach again.
        """
        if not number:
            return True
        if number <= self._last:
            return False
        if number > self._last + 1:
            raise Unavailable(
                f"frame_number={number} where {self._last + 1} was due: frames were lost, attach again"
            )
        self._last = number
        return True
