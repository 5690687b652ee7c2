"""Token counts of an answer."""

from collections.abc import Sequence

from quire_tokenizer.stream import RequestStream


def usage_of(streams: Sequence[RequestStream]) -> dict[str, object]:
    """Counts over all streams of an answer, as they stand."""
    prompt = sum(stream.num_prompt_tokens for stream in streams)
    completion = sum(stream.num_completion_tokens for stream in streams)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(stream.num_cached_tokens for stream in streams)},
    }
