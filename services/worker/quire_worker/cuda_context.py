"""The CUDA context of the first device, made on a thread beside what a start does in the interpreter.

Torch uses the same context, the device's primary one, and finds it there. Knows no torch, which takes longer to import than
the driver takes for the context.
"""

import ctypes
import os
from threading import Thread

_LIBRARY = "libcuda.so.1"


def begin_context() -> None:
    """Returns at once. Without a driver or a device nothing happens: torch says what is missing when it is asked for it."""
    # As torch sets it before its first call: the driver loads a kernel's code when it is needed, not all at once.
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    Thread(target=_retain_context, name="cuda-context").start()


def _retain_context() -> None:
    """Makes the context, and keeps it for as long as the process lives."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
