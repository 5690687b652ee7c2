"""A draw's entry into the forbidden words of its slot, which are found by address. Truth: `bias.py`."""

import triton
import triton.language as tl

_WORDS = tl.constexpr(64)  # words looked at together
_MOST = tl.constexpr(32)  # tokens that a history can have, rounded up


@triton.jit
def note_drawn(words, bias, token):
    """Put ``token`` at the front of the history, and forbid in the row at ``bias`` what would complete a word."""
    if words != 0:
        table = words.to(tl.pointer_type(tl.int32))
        row = bias.to(tl.pointer_type(tl.float32))
        num_words, depth = tl.load(table), tl.load(table + 1)
        history = table + 2
        lane = tl.arange(0, _MOST)
        shifted = tl.load(history + lane - 1, mask=(lane >= 1) & (lane < depth), other=0)
        shifted = tl.where(lane == 0, token, shifted)
        tl.debug_barrier()  # the history is read before it is written
        tl.store(history + lane, shifted, mask=lane < depth)
        for start in range(0, num_words, _WORDS):
            word = start + tl.arange(0, _WORDS)
            entry = history + depth + word * (2 + depth)
            end = tl.load(entry, mask=word < num_words, other=0)
            kept = tl.load(entry + 1, mask=word < num_words, other=0)
            tl.store(row + end, kept.to(tl.float32, bitcast=True), mask=word < num_words)
        tl.debug_barrier()  # words may end alike: all places are restored before any is forbidden
        for start in range(0, num_words, _WORDS):
            word = start + tl.arange(0, _WORDS)
            entry = history + depth + word * (2 + depth)
            follows = word < num_words
            for at in range(depth):
                before = tl.load(entry + 2 + at, mask=word < num_words, other=0)
                follows = follows & ((before < 0) | (before == tl.load(history + at)))
            end = tl.load(entry, mask=word < num_words, other=0)
            tl.store(row + end, tl.full([_WORDS], -float("inf"), tl.float32), mask=follows)
