"""What clients saw, and the figures that follow. Knows no client and no server.

Times to a token begin when the client sends its request. A gap is the time between two messages of one stream; tokens
that share a message share its gap, and the share of such messages is given beside it.
"""

from quire.bench.trace import Trace, percentile


class Summary:
    """The figures of one repetition."""

    def __init__(self, traces: list[Trace]) -> None:
        self.num_tokens = sum(sum(trace.counts) for trace in traces)
        self.num_messages = sum(len(trace.counts) for trace in traces)
        self.num_chars = sum(trace.num_chars for trace in traces)
        self.seconds = max(t.times_s[-1] for t in traces) - min(t.sent_s for t in traces)
        self._first_s = sorted(trace.ttft_s for trace in traces)
        self._gaps_s = sorted(gap for trace in traces for gap in trace.itls_s)
        self._num_merged = sum(count > 1 for trace in traces for count in trace.counts)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second, from the first request to the last token."""
        return self.num_tokens / self.seconds

    def ttft_s(self, percent: float) -> float:
        """A percentile of the time to the first token."""
        return percentile(self._first_s, percent)

    def itl_s(self, percent: float) -> float:
        """A percentile of the inter-token latency."""
        return percentile(self._gaps_s, percent)

    @property
    def merged_share(self) -> float:
        """Share of messages that carry more than one token."""
        return self._num_merged / self.num_messages
