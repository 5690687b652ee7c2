"""The context that is made beside the imports: over a driver that only notes what it is asked."""

import ctypes
import os
import threading
from typing import Any

import pytest
from quire_worker import cuda_context


class NotedDriver:
    """Finds so many devices."""

    def __init__(self, num_devices: int) -> None:
        self.calls: list[str] = []
        self._num_devices = num_devices

    def cuInit(self, flags: int) -> int:
        self.calls.append("init")
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        self.calls.append("device")
        return 0 if ordinal < self._num_devices else 101

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        self.calls.append("context")
        return 0


@pytest.mark.parametrize(
    ("num_devices", "calls"), [(1, ["init", "device", "context"]), (0, ["init", "device"])]
)
def test_the_first_device_is_given_its_context(
    num_devices: int, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = NotedDriver(num_devices)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    _begin(monkeypatch)
    assert driver.calls == calls


def test_a_machine_without_a_driver_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_context, "_LIBRARY", "libof-no-machine.so.1")
    _begin(monkeypatch)


def _begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it has ended; a failure of the thread would be a warning, and so a failure of the test."""
    monkeypatch.setenv("CUDA_MODULE_LOADING", "")  # to be put back
    monkeypatch.delenv("CUDA_MODULE_LOADING")
    cuda_context.begin_context()
    assert os.environ["CUDA_MODULE_LOADING"] == "LAZY"
    for thread in threading.enumerate():
        if thread.name == "cuda-context":
            thread.join()
