"""Files that ship inside the package: today the model that every command serves unless told otherwise."""

from pathlib import Path


def shipped_model_path() -> Path:
    """Directory of the shipped model, in Hugging Face layout (see its README.md for what it is)."""
    return Path(__file__).parent / "shakespeare"
