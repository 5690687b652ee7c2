"""What clients saw, and the figures that follow. Knows no client and no server.

Times to a token begin when the client sends its request. A gap is the time between two messages of one stream; tokens
that share a message share its gap, and the share of such messages is given beside it.
"""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One stream, on the machine's monotonic clock."""

    sent_s: float
    times_s: list[float]
    """When each message with tokens came."""
    counts: list[int]
    """Tokens in each of them."""
    num_chars: int
    """Length of its text."""


class Summary:
    """The figures of one repetition."""

    def __init__(self, traces: list[Trace]) -> None:
        self.num_tokens = sum(sum(trace.counts) for trace in traces)
        self.num_messages = sum(len(trace.counts) for trace in traces)
        self.num_chars = sum(trace.num_chars for trace in traces)
        self.seconds = max(t.times_s[-1] for t in traces) - min(t.sent_s for t in traces)
        self._first_s = sorted(trace.times_s[0] - trace.sent_s for trace in traces)
        self._gaps_s = sorted(after - before for trace in traces for before, after in pairwise(trace.times_s))
        self._num_merged = sum(count > 1 for trace in traces for count in trace.counts)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second, from the first request to the last token."""
        return self.num_tokens / self.seconds

    def ttft_s(self, percent: float) -> float:
        """A percentile of the time to the first token."""
        return _percentile(self._first_s, percent)

    def itl_s(self, percent: float) -> float:
        """A percentile of the inter-token latency."""
        return _percentile(self._gaps_s, percent)

    @property
    def merged_share(self) -> float:
        """Share of messages that carry more than one token."""
        return self._num_merged / self.num_messages


def _percentile(ordered: list[float], percent: float) -> float:
    """The smallest value that `percent` of all values do not exceed."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
