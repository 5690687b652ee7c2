"""What Vertex AI tells a container by environment: its port, and the routes that it will call."""

import os

_DEFAULT_HTTP_PORT = 8000


def http_port() -> int:
    """AIP_HTTP_PORT where it is set, else 8000."""
    value = os.environ.get("AIP_HTTP_PORT", "")
    return int(value) if value.isdigit() else _DEFAULT_HTTP_PORT


def health_route() -> str:
    """AIP_HEALTH_ROUTE; empty where it is not set."""
    return os.environ.get("AIP_HEALTH_ROUTE", "")


def predict_route() -> str:
    """AIP_PREDICT_ROUTE; empty where it is not set."""
    return os.environ.get("AIP_PREDICT_ROUTE", "")
