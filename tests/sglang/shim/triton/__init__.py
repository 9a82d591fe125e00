"""triton in name only: SGLang launches none of its kernels on a CPU."""

from names_only import stand_in

__version__ = "3.0.0"  # a version is read and compared


def cdiv(a: int, b: int) -> int:
    """How often `b` fits into `a`, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is not below `n`."""
    return 1 << max(n - 1, 0).bit_length()


stand_in("triton")
