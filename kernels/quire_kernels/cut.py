"""How launchers cut sizes into programs and tiles: Triton's own `cdiv` and `next_power_of_2` are made for kernels, and take a
host 4 us a call, a quarter of what it needs to launch the 260 kernels of a step.
"""


def cdiv(size: int, part: int) -> int:
    """How many parts hold `size`."""
    return -(-size // part)


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is not below `number`, which is at least 1."""
    return 1 << (number - 1).bit_length()
