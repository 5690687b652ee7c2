"""Who may call: keys, and the tenant that each speaks for. Knows no gRPC and no HTTP.

Keys are kept and compared as digests, so that the time a comparison takes says nothing about them.
"""

from collections.abc import Mapping
from hashlib import sha256

from quire.errors import Unauthenticated

_SCHEME = "bearer "


class Credentials:
    """The keys of this process; without any, everybody may call."""

    def __init__(self, tenants: Mapping[str, str]) -> None:
        """`tenants` has the keys, each with its tenant, or "" where it fixes none."""
        self._tenants = {_digest(key): tenant for key, tenant in tenants.items()}

    def authenticate(self, authorization: str | None) -> str:
        """The tenant that the value of an `authorization` header speaks for; "" where the key fixes none.

        Raises `Unauthenticated`.
        """
        if not self._tenants:
            return ""
        if not authorization:
            raise Unauthenticated(
                "authorization is missing: send `Authorization: Bearer KEY`", field="authorization"
            )
        if not authorization.lower().startswith(_SCHEME):
            raise Unauthenticated("authorization must have the form `Bearer KEY`", field="authorization")
        tenant = self._tenants.get(_digest(authorization[len(_SCHEME) :].strip()))
        if tenant is None:
            raise Unauthenticated("authorization: the key is not known here", field="authorization")
        return tenant


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
