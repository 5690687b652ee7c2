"""Names for the content of full KV blocks: a hash chain over (parent, tokens), rooted in a salt.

Keys and values at a position depend on every token before it, so equal chain hashes mean equal content. BLAKE2b with
128-bit digests makes a collision, accidental or sought, out of reach; requests of different salt (tenant, adapter)
never share a name. The chain follows the prefix caching of vLLM.
"""

from hashlib import blake2b

from quire_scheduler.core.request import Sequence, TokenIds

_DIGEST_SIZE_BYTES = 16

_SALT = b"salt"
"""Sets roots apart: no salt, whatever its bytes, has the name of a block."""


def root_hash(salt: bytes) -> bytes:
    """The parent of first blocks; as long as any other, so that parent and tokens can be told apart."""
    return blake2b(salt, digest_size=_DIGEST_SIZE_BYTES, person=_SALT).digest()


def chain_hash(parent: bytes, token_ids: TokenIds) -> bytes:
    """The name of a block by what it holds and by the name of the block before it."""
    return blake2b(parent + token_ids.tobytes(), digest_size=_DIGEST_SIZE_BYTES).digest()


def extend_block_hashes(sequence: Sequence, num_blocks: int, block_size: int) -> None:
    """Makes `sequence.block_hashes` cover its first `num_blocks` blocks, all of confirmed tokens."""
    hashes = sequence.block_hashes
    assert num_blocks * block_size <= sequence.num_confirmed, "a block with unknown tokens has no name"
    while len(hashes) < num_blocks:
        parent = hashes[-1] if hashes else root_hash(sequence.request.cache_salt)
        start = len(hashes) * block_size
        hashes.append(chain_hash(parent, sequence.tokens(start, start + block_size)))
