"""Products by the library with algorithms from the table of `algorithm.py`, where torch would take the library's own choice.

Whatever is missing (the library, its version, the GPU, an entry of the table, an algorithm that the library accepts)
means that torch multiplies, as it does everywhere else; so does anything but contiguous 16-bit data.
"""

import logging
from functools import cache

import torch
from torch import Tensor

from quire_kernels.linear.algorithm import AlgorithmTable, tuned_algorithms
from quire_kernels.linear.library import (
    TYPES,
    Library,
    LibraryFailure,
    LibraryProduct,
    ProductKey,
    loaded_path,
)

logger = logging.getLogger(__name__)

_ALIGNMENT = 16
"""Bytes: some algorithms copy in pieces of so many."""

_products: dict[tuple[torch.device, ProductKey], LibraryProduct | None] = {}


def multiply_by_table(x: Tensor, weight: Tensor, out: Tensor, *, add: bool = False) -> bool:
    """Put ``x [T, K]`` by ``weight [N, K]`` into ``out [T, N]``, or add it to what is there, if the table has an
    algorithm for it; else do nothing and return False.

    What is found for a shape is kept. Raises LibraryFailure where the library fails with what it accepted before.
    """
    key = (x.shape[0], *weight.shape, x.dtype, add)
    try:
        product = _products[x.device, key]
    except KeyError:
        product = _products[x.device, key] = _find_product(x.device, key)
    if product is None or not _are_plain(x, weight, out):
        return False
    product(x, weight, out)
    return True


def _are_plain(x: Tensor, weight: Tensor, out: Tensor) -> bool:
    if not (x.is_contiguous() and weight.is_contiguous() and out.is_contiguous()):
        return False
    if x.dtype is not weight.dtype or x.dtype is not out.dtype:
        return False
    return (x.data_ptr() | weight.data_ptr() | out.data_ptr()) % _ALIGNMENT == 0


def _find_product(device: torch.device, key: ProductKey) -> LibraryProduct | None:
    num_rows, num_outputs, num_inputs, dtype, add = key
    table = tuned_algorithms()
    algorithm = table.find(num_outputs, num_inputs, num_rows, add=add)
    if algorithm is None or dtype not in TYPES:
        return None
    library = library_of(device, table)
    if library is None:
        return None
    try:
        return LibraryProduct(library, key, algorithm)
    except LibraryFailure as failure:
        logger.warning(
            "the library refuses an algorithm: it will choose", extra={"shape": key, "reason": str(failure)}
        )
        return None


@cache
def library_of(device: torch.device, table: AlgorithmTable) -> Library | None:
    """The library, if the table was measured with it and on such a GPU; says once why not."""
    properties = torch.cuda.get_device_properties(device)
    measured_on = (*table.capability, table.num_multiprocessors)
    if (properties.major, properties.minor, properties.multi_processor_count) != measured_on:
        logger.info("no products are tuned for this GPU", extra={"gpu": properties.name})
        return None
    path = loaded_path()
    if path is None:
        logger.info("torch has loaded no cublasLt: its products are as it chooses")
        return None
    try:
        library = Library(path, device)
    except (OSError, AttributeError, LibraryFailure) as failure:
        logger.warning(
            "cublasLt cannot be used: products are as torch chooses", extra={"reason": str(failure)}
        )
        return None
    if library.version != table.version:
        versions = {"version": library.version, "tuned": table.version}
        logger.info("products are tuned for another version of cublasLt: it will choose", extra=versions)
        return None
    return library
