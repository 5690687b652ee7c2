"""Files that ship inside the package: today the model that every command serves unless told otherwise."""

from pathlib import Path


def shipped_model_path() -> Path:
    """Directory of the shipped model, in Hugging Face layout (see its README.md for what it is)."""
    return Path(__file__).parent / "shakespeare"


SHIPPED_MODEL_NAME = "quire-shakespeare"
"""Name under which the shipped model is served by default."""


def default_served_model_names(model: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names asked for, else the model's own: its --model as given, or the shipped model's name."""
    if names:
        return names
    return (SHIPPED_MODEL_NAME if Path(model) == shipped_model_path() else model,)
