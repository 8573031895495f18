"""The few S3 requests that obstore doesn't make: uploads in parts, and what the probe asks.

One request each, signed, with the provider's errors translated; whoever calls decides about another
try. Source: Amazon S3 API reference, multipart uploads.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote, unquote_plus
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import httpx2

from loradash.errors import (
    LoradashError,
    NotFound,
    PreconditionFailed,
    StoreRefused,
    StoreUnavailable,
)
from loradash.storage.s3.config import S3Config
from loradash.storage.s3.signer import UNSIGNED, Credentials, Signer
from loradash.storage.store import ObjectInfo

Body = bytes | Iterator[bytes]

_PAGE = 1000
_MAX_SHOWN = 300
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
_TRY_AGAIN_CODES = frozenset({
    "InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "OperationAborted",
    "BadDigest", "IncompleteBody", "ConditionalRequestConflict",
})  # fmt: skip
_REMEDIES = {
    "AccessDenied": "Give these credentials the right to read, write, list and delete there.",
    "InvalidAccessKeyId": "Correct AWS_ACCESS_KEY_ID.",
    "AuthorizationHeaderMalformed": "Correct S3_REGION.",
    "SignatureDoesNotMatch": "Correct AWS_SECRET_ACCESS_KEY, and S3_REGION.",
    "NoSuchBucket": "Create the bucket, or correct S3_BUCKET and S3_ENDPOINT_URL.",
    "RequestTimeTooSkewed": "Set this machine's clock.",
    "ExpiredToken": "Get new temporary credentials.",
}


class Page(NamedTuple):
    """A part of a list; '' as the token of the next one means that it was the last."""

    infos: tuple[ObjectInfo, ...]
    folders: tuple[str, ...]
    next_token: str


class S3Requests:
    """Signed requests to one bucket over a pool of connections. Thread-safe."""

    def __init__(self, config: S3Config) -> None:
        self._config = config
        credentials = Credentials(
            config.access_key_id, config.secret_access_key, config.session_token
        )
        self.signer = Signer(credentials, config.region_name)
        self._http = httpx2.Client(
            timeout=httpx2.Timeout(config.timeout_s, connect=min(10.0, config.timeout_s)),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=32),
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(
        self,
        method: str,
        key: str,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        size_bytes: int | None = None,
        timeout_s: float | None = None,
    ) -> httpx2.Response:
        """Send a signed request; return its reply of 2xx.

        Raises `NotFound`, `PreconditionFailed`, `StoreUnavailable` where another try may help, and
        else `StoreRefused`.
        """
        url = self._config.url(key) + (f"?{query}" if query else "")
        given = {**(headers or {})}
        if isinstance(body, bytes):
            digest = hashlib.sha256(body).hexdigest()
            given["content-length"] = str(len(body))
        else:
            digest, given["content-length"] = UNSIGNED, str(size_bytes)
        signed = self.signer.headers(method, url, given, digest)
        options: dict[str, Any] = {"timeout": timeout_s} if timeout_s else {}
        what = f"{method} {key or self._config.bucket}"
        if self._http.is_closed:
            raise StoreUnavailable(f"{what}: the store was closed", remedy="Start again.")
        try:
            response = self._http.request(method, url, headers=signed, content=body, **options)
        except httpx2.HTTPError as error:
            raise StoreUnavailable(
                f"{what}: {str(error) or type(error).__name__}",
                remedy="Check that the object store can be reached.",
            ) from error
        if not response.is_success:
            raise_for(what, response.status_code, response.text)
        return response

    def plain(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, **content: Any
    ) -> httpx2.Response:
        """Send a request that isn't signed by its headers; return its reply, whatever it is.

        Raises `StoreUnavailable` if another try may get another one.
        """
        try:
            response = self._http.request(method, url, headers=dict(headers or {}), **content)
        except httpx2.HTTPError as error:
            raise StoreUnavailable(
                f"{method}: {str(error) or type(error).__name__}",
                remedy="Check that the object store can be reached.",
            ) from error
        if response.status_code in _TRY_AGAIN:
            raise_for(method, response.status_code, response.text)
        return response

    def page(self, prefix: str, token: str, *, folders: bool = False) -> Page:
        """Return one page of what lies below a key's folder, or of the folders right below it.

        Not obstore's listing: that can't go on in the middle, and it takes the empty folders that
        some providers list for objects.
        """
        start = self._config.full_key(prefix) if prefix else self._config.prefix
        query = {
            "list-type": "2", "encoding-type": "url", "max-keys": str(_PAGE),
            **({"prefix": f"{start}/"} if start else {}),
            **({"delimiter": "/"} if folders else {}),
            **({"continuation-token": token} if token else {}),
        }  # fmt: skip
        text = "&".join(f"{name}={quote(value, safe='')}" for name, value in sorted(query.items()))
        root = _xml(self.send("GET", "", query=text).text)
        if _name(root) != "ListBucketResult":
            raise StoreUnavailable(
                f"GET {prefix}: the reply isn't a list", remedy="Check S3_ENDPOINT_URL."
            )
        decoded = unquote_plus if root.findtext("{*}EncodingType") == "url" else str
        next_token = root.findtext("{*}NextContinuationToken") or ""
        if next_token and next_token == token:
            raise StoreUnavailable(
                f"GET {prefix}: the list goes round in a circle", remedy="It may pass; try again."
            )
        return Page(
            tuple(self._listed(entry, decoded) for entry in root.iterfind("{*}Contents")),
            tuple(
                decoded(entry.findtext("{*}Prefix") or "")
                for entry in root.iterfind("{*}CommonPrefixes")
            ),
            next_token,
        )

    def _listed(self, entry: ElementTree.Element, decoded: Callable[[str], str]) -> ObjectInfo:
        key = decoded(entry.findtext("{*}Key") or "")
        if self._config.prefix:
            key = key.removeprefix(f"{self._config.prefix}/")
        try:
            modified = datetime.fromisoformat(entry.findtext("{*}LastModified") or "")
            size = int(entry.findtext("{*}Size") or "")
        except ValueError as error:
            raise StoreUnavailable(
                f"the list's entry of {key!r} can't be read", remedy="Check S3_ENDPOINT_URL."
            ) from error
        # Lists know more of the time than heads do.
        modified_s = float(int(modified.timestamp()))
        return ObjectInfo(key, size, modified_s, entry.findtext("{*}ETag") or "")

    def delete(self, keys: Sequence[str]) -> None:
        """Delete up to 1000 objects by one request. A reply of 200 can hold errors."""
        listed = "".join(
            f"<Object><Key>{escape(self._config.full_key(key))}</Key></Object>" for key in keys
        )
        body = f"<Delete>{listed}<Quiet>true</Quiet></Delete>".encode()
        md5 = hashlib.md5(body, usedforsecurity=False).digest()
        headers = {
            "content-type": "application/xml",
            "content-md5": base64.b64encode(md5).decode(),  # several providers insist on it
        }
        response = self.send("POST", "", query="delete=", body=body, headers=headers)
        errors = _xml(response.text).findall("{*}Error")
        if errors:
            code = errors[0].findtext("{*}Code") or ""
            status = 500 if code in _TRY_AGAIN_CODES else 400
            text = ElementTree.tostring(errors[0], "unicode")
            raise_for(f"DELETE {errors[0].findtext('{*}Key')}", status, text)

    def put(self, key: str, body: Iterator[bytes], size: int, md5: bytes, content_type: str) -> str:
        """Send an object whose MD5 the provider compares; return its etag.

        It may take as long as it takes, as long as something of it is sent.
        """
        response = self.send(
            "PUT", key, body=body, size_bytes=size,
            headers={
                "content-md5": base64.b64encode(md5).decode(), "content-type": content_type,
            },
        )  # fmt: skip
        return response.headers.get("etag", "")

    def begin_upload(self, key: str, content_type: str) -> str:
        """Begin an upload in parts; return its id."""
        response = self.send("POST", key, query="uploads=", headers={"content-type": content_type})
        upload_id = _xml(response.text).findtext("{*}UploadId") or ""
        if not upload_id:
            raise StoreRefused(
                f"POST {key}: the reply names no upload", remedy="Check S3_ENDPOINT_URL."
            )
        return upload_id

    def put_part(
        self, key: str, upload_id: str, number: int, body: Iterator[bytes], size: int, md5: bytes
    ) -> str:
        """Send one part, whose MD5 the provider compares; return its etag."""
        response = self.send(
            "PUT", key, query=part_query(upload_id, number), body=body, size_bytes=size,
            headers={"content-md5": base64.b64encode(md5).decode()},
        )  # fmt: skip
        return response.headers.get("etag", "")

    def finish_upload(self, key: str, upload_id: str, etags: Sequence[str]) -> str:
        """Make the object of its parts; return its etag. A reply of 200 can hold an error."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
            for number, etag in enumerate(etags, 1)
        )
        response = self.send(
            "POST", key, query=f"uploadId={quote(upload_id, safe='')}",
            body=f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode(),
            headers={"content-type": "application/xml"},
            timeout_s=self._config.complete_timeout_s,
        )  # fmt: skip
        root = _xml(response.text)
        if _name(root) == "Error":
            raise_for(f"POST {key}", 500, response.text)
        return root.findtext("{*}ETag") or ""

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Drop an upload with its parts."""
        self.send("DELETE", key, query=f"uploadId={quote(upload_id, safe='')}")


def part_query(upload_id: str, number: int) -> str:
    """Return the query that names one part of an upload."""
    return f"partNumber={number}&uploadId={quote(upload_id, safe='')}"


def raise_for(what: str, status: int, text: str) -> NoReturn:
    """Raise the error that a provider's reply means."""
    code, message = _error_in(text)
    said = f"{what}: {status} {code} {message}".strip()[:_MAX_SHOWN]
    if code in _TRY_AGAIN_CODES or (status in _TRY_AGAIN and code not in _REMEDIES):
        raise StoreUnavailable(said, remedy="It may pass; try again.")
    if status == 404 and code != "NoSuchBucket":
        raise NotFound(said, remedy="Check the key.")
    if status == 412:
        raise PreconditionFailed(said, remedy="Read it again.")
    raise refused(said, code)


def refused(said: str, code: str) -> LoradashError:
    """Return the error for a reply that no other try would change."""
    return StoreRefused(
        said, remedy=_REMEDIES.get(code, "See docs/storage.md for what providers need.")
    )


def error_code(text: str) -> str:
    """Return a code of `_REMEDIES` that stands in a text, or ''."""
    return next((code for code in _REMEDIES if code in text), "")


def _error_in(text: str) -> tuple[str, str]:
    try:
        root = _xml(text)
    except StoreUnavailable:
        return "", text.strip()[:_MAX_SHOWN]
    return root.findtext("{*}Code") or "", root.findtext("{*}Message") or ""


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _xml(text: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise StoreUnavailable(
            f"the reply isn't XML: {text.strip()[:80]!r}", remedy="Check S3_ENDPOINT_URL."
        ) from error
