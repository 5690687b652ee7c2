"""Names for the content of full KV blocks: a hash chain over (parent, tokens), rooted in a salt.

Keys and values at a position depend on every token before it, so equal chain hashes mean equal content. BLAKE2b with
128-bit digests makes a collision, accidental or sought, out of reach; requests of different salt (tenant, adapter)
never share a name. The chain follows the prefix caching of vLLM.
"""

from collections.abc import Iterator
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


def block_hashes(sequence: Sequence, num_blocks: int, block_size: int) -> Iterator[bytes]:
    """The names of its first `num_blocks` blocks, all of confirmed tokens; each is computed when first asked for, and kept.

    A long prompt is named before anything else happens to it: this is `chain_hash` over one copy of all its tokens.
    """
    assert num_blocks * block_size <= sequence.num_confirmed, "a block with unknown tokens has no name"
    hashes = sequence.block_hashes
    yield from hashes[:num_blocks]
    num_known = len(hashes)
    if num_known >= num_blocks:
        return
    parent = hashes[-1] if hashes else root_hash(sequence.request.cache_salt)
    token_ids = sequence.tokens(num_known * block_size, num_blocks * block_size)
    content, width = token_ids.tobytes(), block_size * token_ids.itemsize
    for start in range(0, len(content), width):
        parent = blake2b(parent + content[start : start + width], digest_size=_DIGEST_SIZE_BYTES).digest()
        hashes.append(parent)
        yield parent
