"""Finds the files of a model: a local directory, or a hub id through huggingface_hub.

Only the files that serving needs are fetched. The token, the endpoint and offline mode are huggingface_hub's own
environment variables (HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE).
"""

import json
from pathlib import Path
from typing import Any

from quire.errors import ConfigError

_CONFIG_FILES: list[str] = ["*.json"]
_ALL_FILES: list[str] = ["*.json", "*.safetensors"]


def model_directory(model: str, revision: str | None, download_dir: str | None, *, weights: bool) -> Path:
    """The directory that holds the model's files, fetched if need be. Raises `ConfigError`."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"--model={model}: the directory has no config.json", field="model")
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = _ALL_FILES if weights else _CONFIG_FILES
    try:
        return Path(
            snapshot_download(model, revision=revision, cache_dir=download_dir, allow_patterns=patterns)
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
