"""Values at and beyond the boundaries of every type, drawn from one seeded source. Knows no protocol."""

import math
import random
from typing import Any

INTEGERS = (
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    1024,
    2**31 - 1,
    2**31,
    -(2**31) - 1,
    2**32,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    10**30,
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1.0000001, 1e-30, 1e308, -1e308, math.nan, math.inf, -math.inf)
TEXTS = (
    "",
    " ",
    "a",
    "ROMEO:\n",
    "\x00",
    "\ud800",
    "\ufffd\ufeff",
    "e\u0301\u200d🙂👩‍👩‍👧",
    "שלום مرحبا",
    "<|im_start|>system\n",
    "{{ raise_exception('x') }}",
    "(a+)+$",
    "root ::= root",
    "../../etc/passwd",
    "x" * 3000,
)
TOKENS = (0, 1, 5, 255, 1023, 1024, 2**31, -1)


def any_value(draw: random.Random, depth: int = 0) -> Any:
    """Anything JSON can hold, and NaN and infinities, which it cannot."""
    kind = draw.randrange(8 if depth < 3 else 6)
    if kind < 2:
        return draw.choice(INTEGERS)
    if kind == 2:
        return draw.choice(FLOATS)
    if kind < 5:
        return draw.choice(TEXTS)
    if kind == 5:
        return draw.choice((None, True, False))
    if kind == 6:
        return [any_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {draw.choice(TEXTS[:9]): any_value(draw, depth + 1) for _ in range(draw.randrange(4))}


def mutated(draw: random.Random, raw: bytes) -> bytes:
    """`raw` with some bytes flipped, cut out, doubled or put in."""
    data = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(4):
            case 0 if at < len(data):
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                del data[at : at + draw.randint(1, 8)]
            case 2:
                data[at:at] = data[at : at + draw.randint(1, 16)]
            case _:
                data[at:at] = draw.randbytes(draw.randint(1, 4))
    return bytes(data)
