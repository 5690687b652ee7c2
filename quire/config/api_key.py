"""The keys that --api-key and --api-key-file name."""

from collections.abc import Iterable
from pathlib import Path

from quire.errors import ConfigError


def load_api_keys(keys: Iterable[str], file: str | None) -> dict[str, str]:
    """Each key with its tenant, "" where it fixes none; those of the file stand on lines of `key tenant`.

    Raises `ConfigError`.
    """
    tenants = dict.fromkeys(keys, "")
    if file is not None:
        found = _read(Path(file))
        if not found:
            raise ConfigError(f"--api-key-file={file}: it holds no key", field="api_key_file")
        tenants.update(found)
    return tenants


def _read(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--api-key-file={file}: it cannot be read: {error}", field="api_key_file"
        ) from error
    tenants: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if len(words) > 2:
            raise ConfigError(
                f"--api-key-file={file}: line {number} has {len(words)} words; it must be a key and a tenant",
                field="api_key_file",
            )
        if words:
            tenants[words[0]] = words[1] if len(words) == 2 else ""
    return tenants
