"""From texts that must not appear to the token sequences that would write them. Knows no request."""

import asyncio
from collections.abc import Sequence

from quire_tokenizer.encoder import Encoder


async def bad_words_token_ids(bad_words: Sequence[str], encoder: Encoder) -> list[list[int]]:
    """The token ids of each text as it begins an output, and, where they differ, as it follows a space."""
    texts = [text for word in bad_words for text in (word.lstrip(), " " + word.lstrip())]
    encoded = await asyncio.gather(*(encoder.encode(text, add_special_tokens=False) for text in texts))
    distinct = {tuple(token_ids): token_ids for token_ids in encoded if token_ids}
    return list(distinct.values())
