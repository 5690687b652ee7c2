"""Which release of Quire this is, as installed; a tree that runs without being installed is none."""

from importlib.metadata import PackageNotFoundError, version

_NONE = "0.0.0"


def _installed() -> str:
    try:
        return version("quire")
    except PackageNotFoundError:
        return _NONE


__version__ = _installed()
