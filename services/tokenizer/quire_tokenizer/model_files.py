"""Finds the files of a model that the front door needs: tokenizer, chat template, default sampling; never weights."""

import json
from pathlib import Path
from typing import Any

from quire.errors import ConfigError

_PATTERNS = ("tokenizer*", "*.jinja", "generation_config.json", "config.json", "special_tokens_map.json")


def tokenizer_directory(model: str, revision: str | None, download_dir: str | None) -> Path:
    """The directory that holds a model's tokenizer, fetched from the hub if need be. Raises `ConfigError`."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                model, revision=revision, cache_dir=download_dir, allow_patterns=list(_PATTERNS)
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        where = f" at revision {revision}" if revision else ""
        raise ConfigError(
            f"--model={model}{where}: neither a directory nor a model that the hub gave: {error}",
            field="model",
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file as a dict; empty when it does not exist. Raises `ConfigError`."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"--model: {path} is no JSON: {error}", field="model") from error
