"""Which transport carries a provider's bytes: from the option to the object."""

from __future__ import annotations

import pkgutil
from typing import Any

from ...errors import ConfigurationError, unknown_name
from .transport import Transport

TRANSPORTS = {
    "requests": f"{__package__}.requests_transport:RequestsTransport",
    "http.client": f"{__package__}.http_client_transport:HTTPClientTransport",
}
"""By the words that name them; only what is named is imported."""


def read_transport(spec: Any, *, proxy: str | None, verify: bool | str) -> Transport:
    """The transport that ``spec`` is or names: by one of our words, or as
    ``"module:attribute"`` a class or function that is called with the two options.

    :raises ConfigurationError: it names none.
    """
    found = _made(spec, proxy=proxy, verify=verify) if isinstance(spec, str) else spec
    if isinstance(found, type):
        raise ConfigurationError(f"transport: {found.__name__} is a class; an object is wanted")
    if not callable(getattr(found, "open", None)) or not callable(getattr(found, "close", None)):
        raise ConfigurationError(f"transport: {type(found).__name__} is no Transport")
    transport: Transport = found
    return transport


def _made(spec: str, **options: Any) -> Any:
    make = _load(spec)
    try:
        return make(**options)
    except ConfigurationError:
        raise
    except TypeError as error:
        raise ConfigurationError(f"transport: {spec!r} cannot be made: {error}") from error
    except Exception as error:  # whose words may hold the proxy's password
        raise ConfigurationError(
            f"transport: {spec!r} cannot be made: it raised {type(error).__name__}"
        ) from error


def _load(spec: str) -> Any:
    path = TRANSPORTS.get(spec, spec)
    if ":" not in path:
        raise ConfigurationError(f"transport: {unknown_name('name', spec, TRANSPORTS)}")
    try:
        made_by = pkgutil.resolve_name(path)
    except Exception as error:
        raise ConfigurationError(
            f"transport: {spec!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(made_by):
        raise ConfigurationError(f"transport: {spec!r} is neither a class nor a function")
    return made_by
