"""Where a client finds a result: at the store if it signs URLs, else at this server, else nowhere.

The store is asked what it can do only when a link is needed. Whatever fits into a reply is so
delivered by stores that don't answer that question.
"""

from collections.abc import Sequence
from functools import cached_property
from urllib.parse import quote, urlencode

import structlog

from loradash.errors import StoreUnavailable
from loradash.storage.store import ObjectStore, PresignedUrls, presigned_urls

log = structlog.get_logger("loradash.results")


class Url:
    """The links of one reply, all of one kind: the store is asked once at most."""

    def __init__(
        self, store: ObjectStore, expires_s: int, base_url: str, followed: bool = True
    ) -> None:
        self.followed = followed
        self._store = store
        self._expires_s = expires_s
        self._base_url = base_url

    def file(self, key: str, name: str) -> str | None:
        """Return where an object can be downloaded as ``name``; None if it can't by the client.

        Raises `StoreUnavailable` and `StoreRefused` if it depends on a store that doesn't say.
        """
        if not self.followed:
            return None
        if self._signer is not None:
            return self._signer.get_url(key, filename=name, expires_s=self._expires_s)
        return f"{self._base_url}/files/{quote(key)}?download=1" if self._base_url else None

    def zip(self, references: Sequence[str], *, images: bool, loras: bool) -> str | None:
        """Return where results come as one zip file; None without a server.

        A reference is a process's id or a file's key.
        """
        wanted = {"images": str(images).lower(), "loras": str(loras).lower()}
        query = urlencode([*(("process_id", one) for one in references), *wanted.items()], safe="/")
        is_there = self._base_url and self.followed
        return f"{self._base_url}/download/zip?{query}" if is_there else None

    @cached_property
    def _signer(self) -> PresignedUrls | None:
        try:
            return presigned_urls(self._store)
        except StoreUnavailable as error:
            if not self._base_url:
                raise
            # A link to the server is as good, once the store is back.
            log.warning("store_not_asked_for_links", error=error.message)
            return None


class Links:
    """Makes links to stored results. ``expires_s`` is how long signed ones are good."""

    def __init__(self, store: ObjectStore, expires_s: int) -> None:
        self._store = store
        self._expires_s = expires_s

    def below(self, base_url: str, *, followed: bool = True) -> Url:
        """Return how keys become links, for a client that knows the server by this address.

        '' stands for no server. For a client that doesn't follow links there are none.
        """
        return Url(self._store, self._expires_s, base_url, followed)
