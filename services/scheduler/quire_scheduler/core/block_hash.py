"""Names for the content of full KV blocks: a hash chain over (parent, tokens), rooted in a salt.

Keys and values at a position depend on every token before it, so equal chain hashes mean equal content. BLAKE2b with
128-bit digests makes a collision, accidental or sought, out of reach; requests of different salt (tenant, adapter)
never share a name. The chain follows the prefix caching of vLLM.
"""

from array import array
from hashlib import blake2b

from quire_scheduler.core.request import Sequence

_DIGEST_SIZE_BYTES = 16


def extend_block_hashes(sequence: Sequence, num_blocks: int, block_size: int) -> None:
    """Makes `sequence.block_hashes` cover its first `num_blocks` blocks, all of confirmed tokens."""
    hashes = sequence.block_hashes
    assert num_blocks * block_size <= sequence.num_confirmed, "a block with unknown tokens has no name"
    while len(hashes) < num_blocks:
        start = len(hashes) * block_size
        parent = hashes[-1] if hashes else sequence.request.cache_salt
        hashes.append(_chain(parent, sequence.tokens(start, start + block_size)))


def _chain(parent: bytes, token_ids: list[int]) -> bytes:
    content = len(parent).to_bytes(4, "little") + parent + array("I", token_ids).tobytes()
    return blake2b(content, digest_size=_DIGEST_SIZE_BYTES).digest()
