"""What a client has not taken yet, merged by sequence, in the form that it asked for: new, everything so far, or all at
the end. Knows no token and no stop string.
"""

from quire.sampling_params import RequestOutputKind
from quire.v1 import generation_pb2


class PendingOutput:
    """The outputs of one request on their way to its client."""

    def __init__(self, kind: RequestOutputKind) -> None:
        self._kind = kind
        self._new: dict[int, generation_pb2.CompletionDelta] = {}
        self._so_far: dict[int, generation_pb2.CompletionDelta] = {}
        """What was taken before, where it is to be said again."""

    def of(self, index: int) -> generation_pb2.CompletionDelta:
        """Where news of a sequence go."""
        delta = self._new.get(index)
        if delta is None:
            delta = self._new[index] = generation_pb2.CompletionDelta(index=index)
        return delta

    def is_due(self, *, ended: bool) -> bool:
        """Whether there is something to send now; `ended` says that nothing more will come."""
        return bool(self._new) and (ended or self._kind is not RequestOutputKind.FINAL_ONLY)

    def take(self) -> list[generation_pb2.CompletionDelta]:
        """What to send."""
        new, self._new = list(self._new.values()), {}
        if self._kind is not RequestOutputKind.CUMULATIVE:
            return new
        return [self._grown(delta) for delta in new]

    def _grown(self, delta: generation_pb2.CompletionDelta) -> generation_pb2.CompletionDelta:
        whole = self._so_far.setdefault(delta.index, generation_pb2.CompletionDelta(index=delta.index))
        text = whole.text + delta.text
        whole.MergeFrom(delta)
        whole.text = text
        return whole
