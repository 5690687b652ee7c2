"""The garbage collector of a process that serves: what a start leaves is never looked at again, the rest seldom.

Reference counts free nearly everything; the collector looks for cycles, and with Python's own thresholds looks again at all
requests every 70,000 new containers: 256 prompts take 3 ms to enter, and 8 with it.
"""

import gc

_THRESHOLDS = (10_000, 10, 10)
"""New containers before a young collection, young ones before an older, and those before a full one."""


def settle() -> None:
    """Call once, when what the process will always hold is there."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
