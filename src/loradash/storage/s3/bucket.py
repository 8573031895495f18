"""obstore as the store uses it: one bucket, keys below a prefix, every request in one circuit."""

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store as ObstoreBucket

from loradash.domain.media_types import media_type
from loradash.errors import NotFound, PreconditionFailed, StoreUnavailable
from loradash.resilience.circuit import Circuit
from loradash.storage.s3.config import S3Config
from loradash.storage.s3.failures import STORE_ERRORS, is_not_partial, tells_nothing, translated
from loradash.storage.s3.requests import AccessRefused, S3Requests
from loradash.storage.store import ObjectInfo, check_key, no_such_object

if TYPE_CHECKING:
    from obstore import GetResult

Result = TypeVar("Result")

_CONNECT_S = 10.0
_WHOLE_REQUEST = 20  # times the patience with a silent line


class Bucket:
    """Single requests. What is named ``once`` isn't tried again; its caller does that.

    obstore follows redirects, and doesn't tell what a refusal without a body means (those of HEAD
    have none). So where it fails before anything has worked, one of our own ``requests`` looks.
    """

    def __init__(
        self, config: S3Config, circuit: Circuit, requests: Callable[[], S3Requests]
    ) -> None:
        self._config = config
        self._circuit = circuit
        self._requests = requests
        self._bucket = _open_bucket(config)
        self._has_worked = False
        self._ignores_ranges = False

    def call(self, what: str, key: str, work: Callable[[], Result]) -> Result:
        """Work with obstore; its errors become ours, and faults are tried again."""
        return self._circuit.call(lambda: self.try_once(what, key, work))

    def try_once(self, what: str, key: str, work: Callable[[], Result]) -> Result:
        """Work with obstore; its errors become ours."""
        if not self._has_worked and self._config.bucket_free_url:
            self._requests().look()  # with a bucket too many in the address, all but lists works
        try:
            result = work()
        except STORE_ERRORS as error:
            failure = translated(error, what, key)
            if not self._has_worked and tells_nothing(error):
                self._requests().look()
                self._has_worked = isinstance(failure, NotFound | PreconditionFailed)
            is_read = what in ("GET", "HEAD")
            # Without a right to list all of the bucket, Amazon says so of what is missing, too.
            if is_read and isinstance(failure, AccessRefused) and not self._requests().exists(key):
                raise no_such_object(key) from error
            raise failure from error
        self._has_worked = True
        return result

    def head_once(self, key: str) -> ObjectInfo:
        """Return what is known of an object."""
        return self.info(obstore.head(self._bucket, self._full(key)))

    def open_once(
        self, key: str, start: int = 0, end: int | None = None, etag: str = ""
    ) -> "GetResult":
        """Ask for a range of an object, of the version with this etag if one is given.

        The result's own range says what has come: some providers send the whole object.
        """
        options: Any = {"if_match": etag} if etag else {}
        whole: Any = dict(options)
        if end is not None:
            options["range"] = (start, end)
        elif start:
            options["range"] = {"offset": start}
        if not self._ignores_ranges:
            try:
                return obstore.get(self._bucket, self._full(key), options=options)
            except BaseError as error:
                if not is_not_partial(error):
                    raise
            self._ignores_ranges = True
        return obstore.get(self._bucket, self._full(key), options=whole)

    def get_once(self, key: str) -> bytes:
        """Return an object's content, whole."""
        result = self.open_once(key)
        self.info(result.meta)
        data = bytes(result.bytes())
        if len(data) != result.meta["size"]:
            raise StoreUnavailable(
                f"GET {key}: {len(data)} of {result.meta['size']} bytes came",
                remedy="It may pass; try again.",
            )
        return data

    def put_once(self, key: str, data: bytes, mode: Any) -> str:
        """Put an object in one piece; return its etag."""
        put = obstore.put(
            self._bucket, self._full(key), data, attributes={"Content-Type": media_type(key)},
            use_multipart=False, mode=mode,
        )  # fmt: skip
        return put["e_tag"] or ""

    def delete_once(self, key: str) -> None:
        """Delete an object."""
        obstore.delete(self._bucket, self._full(key))

    def info(self, meta: Any) -> ObjectInfo:
        """Return what obstore tells of an object, under our key."""
        key = meta["path"]
        if self._config.prefix:
            key = key.removeprefix(f"{self._config.prefix}/")
        modified_s = float(int(meta["last_modified"].timestamp()))  # lists know more than heads
        if not meta["e_tag"] and not self._has_worked:
            self._requests().look()  # it may be a web page; JuiceFS now and then gives none, too
        return ObjectInfo(key, meta["size"], modified_s, meta["e_tag"] or "")

    def _full(self, key: str) -> str:
        return self._config.full_key(check_key(key))


def _open_bucket(config: S3Config) -> ObstoreBucket:
    silence_s = config.small_timeout_s or config.timeout_s
    silence = timedelta(seconds=silence_s)
    # obstore wants the bucket in the endpoint if it is part of the host.
    endpoint = config.root_url if config.is_virtual_hosted else config.service_url
    return ObstoreBucket(
        config.bucket,
        config={
            "access_key_id": config.access_key_id,
            "secret_access_key": config.secret_access_key,
            "region": config.region_name,
            "virtual_hosted_style_request": config.is_virtual_hosted,
            "conditional_put": "etag",
            "disable_bulk_delete": True,
            **({"session_token": config.session_token} if config.session_token else {}),
            **({"endpoint": endpoint} if config.endpoint_url else {}),
        },
        client_options={
            "allow_http": config.endpoint_url.startswith("http://"),
            "connect_timeout": timedelta(seconds=min(_CONNECT_S, silence_s)),
            "read_timeout": silence,
            "timeout": _WHOLE_REQUEST * silence,
        },
        retry_config={"max_retries": 0, "retry_timeout": silence},
    )
