"""API keys in a text file, one a line: the account's name and the digest of its key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from oneai_middleware.accounts import Account, ApiKey
from oneai_middleware.errors import ConfigurationError, StoreUnavailable
from oneai_middleware.key_stores.base import KeyStore


class FileKeyStore(KeyStore):
    """``key_store = "keyfile:///etc/oneai/keys"``. The file may change at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Self:
        """The store whose file the URL names."""
        if url is None:
            raise ConfigurationError("key_store: name the file, as in 'keyfile:///etc/oneai/keys'")
        return cls(Path(unquote(urlsplit(url).path)))

    def find(self, digest: str) -> ApiKey | None:
        """The key on the line that ends in ``digest``."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise StoreUnavailable("Try again later.", detail=str(error)) from error
        for account, known in (line.split() for line in lines if line.strip()):
            if known == f"sha256:{digest}":
                return ApiKey(f"key_{digest[:12]}", Account(account))
        return None
