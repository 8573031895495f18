"""The few S3 requests that obstore doesn't make: uploads in parts, and what the probe asks.

One request each, signed, with the provider's errors translated; whoever calls decides about another
try. Source: Amazon S3 API reference, multipart uploads.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote, unquote, unquote_plus, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import httpx2

from loradash.errors import (
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
TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
_TRY_AGAIN_CODES = frozenset({
    "InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "OperationAborted",
    "BadDigest", "IncompleteBody", "ConditionalRequestConflict",
})  # fmt: skip
DENIED = "AccessDenied"
_LAST = "\U0010ffff"  # comes after every other character in the order of keys
_LOOK_S = 10.0
_MARK = "x-amz-meta-loradash-upload"
_WEB_PAGE = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+)?html", re.IGNORECASE)
_REMEDIES = {
    DENIED: "Give AWS_ACCESS_KEY_ID the rights to get, put, delete and list below S3_PREFIX in "
    "S3_BUCKET. Amazon calls them s3:GetObject, s3:PutObject, s3:DeleteObject and, for the bucket "
    "itself, s3:ListBucket; without that, what is missing can't be told from what is forbidden.",
    "InvalidAccessKeyId": "Correct AWS_ACCESS_KEY_ID.",
    "AuthorizationHeaderMalformed": "Correct S3_REGION.",
    "SignatureDoesNotMatch": "Correct AWS_SECRET_ACCESS_KEY, and S3_REGION.",
    "NoSuchBucket": "Create the bucket, or correct S3_BUCKET and S3_ENDPOINT_URL.",
    "PermanentRedirect": "The bucket is elsewhere: correct S3_REGION, or S3_ENDPOINT_URL.",
    "TemporaryRedirect": "The bucket is elsewhere: correct S3_REGION, or S3_ENDPOINT_URL.",
    "RequestTimeTooSkewed": "Set this machine's clock.",
    "ExpiredToken": "Get new temporary credentials.",
}


class Place(NamedTuple):
    """Where a list goes on: at the provider's token, or (if it gives none) after a full key."""

    token: str = ""
    after: str = ""


class Page(NamedTuple):
    """A part of a list, and where the next one begins, unless it was the last."""

    infos: tuple[ObjectInfo, ...]
    folders: tuple[str, ...]
    next: Place | None


class AccessRefused(StoreRefused):
    """A reply of 403: it isn't allowed, or, at some providers, it isn't there."""


START = Place()


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
        )  # proxies and certificates: the environment's, as with obstore

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
            raise _no_answer(what, error) from error
        if not response.is_success:
            self._raise_for(what, response)
        return response

    def _raise_for(self, what: str, response: httpx2.Response) -> NoReturn:
        """Raise the error that a reply means, with what it says of the right address."""
        code, _ = _error_in(response.text)
        is_elsewhere = response.is_redirect or 300 <= response.status_code < 400
        if is_elsewhere or code == "AuthorizationHeaderMalformed":
            said = f"{what}: {response.status_code} {code or 'redirect'}"
            raise StoreRefused(said, remedy=self._right_address(response))
        raise_for(what, response.status_code, response.text)

    def _right_address(self, response: httpx2.Response) -> str:
        config, root = self._config, _parsed(response.text)
        told = root.findtext("{*}Region") if root is not None else ""
        region = response.headers.get("x-amz-bucket-region") or told or ""
        if region and region != config.region_name:
            unset = " and unset S3_ENDPOINT_URL" if (
                config.endpoint_url and config.profile.name == "AWS S3"
            ) else ""  # fmt: skip
            return f"The bucket is in another region: set S3_REGION={region}{unset}."
        location = urlsplit(response.headers.get("location", ""))
        if location.scheme == "https" and config.root_url.startswith("http://"):
            netloc = location.netloc.removeprefix(f"{config.bucket}.")
            return f"It is to be reached by https: set S3_ENDPOINT_URL=https://{netloc}."
        host = location.netloc or (root.findtext("{*}Endpoint") if root is not None else "")
        where = f" (the provider names {host})" if host else ""
        return f"The bucket is elsewhere: correct S3_ENDPOINT_URL or S3_REGION{where}."

    def plain(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, **content: Any
    ) -> httpx2.Response:
        """Send a request that isn't signed by its headers; return its reply, whatever it is.

        Raises `StoreUnavailable` if another try may get another one.
        """
        try:
            response = self._http.request(method, url, headers=dict(headers or {}), **content)
        except httpx2.HTTPError as error:
            raise _no_answer(method, error) from error
        if response.status_code in TRY_AGAIN:
            raise_for(method, response.status_code, response.text)
        return response

    def page(self, prefix: str, place: Place = START, *, folders: bool = False) -> Page:
        """Return one page of what lies below a key's folder, or of the folders right below it."""
        start = self._config.full_key(prefix) if prefix else self._config.prefix
        return self.listed(f"{start}/" if start else "", place, folders=folders)

    def look(self) -> None:
        """Ask for a list of one object, which tells most of what can be wrong with the settings.

        Raises `StoreRefused` with what is wrong; an endpoint that doesn't answer tells nothing.
        """
        try:
            start = self._config.prefix
            self.listed(f"{start}/" if start else "", most=1, timeout_s=_LOOK_S)
        except StoreUnavailable:
            return

    def exists(self, key: str) -> bool:
        """Whether the list shows an object, where a request for it is refused either way."""
        page = self.listed(self._config.full_key(key), most=1)
        return any(info.key == key for info in page.infos)

    def listed(
        self,
        start: str,
        place: Place = START,
        *,
        folders: bool = False,
        most: int = _PAGE,
        timeout_s: float | None = None,
    ) -> Page:
        """Return one page of the objects whose full keys begin so.

        Not obstore's listing: that can't go on in the middle, and it takes the empty folders that
        some providers list for objects. Keys are asked for as they are, since providers differ in
        what a ``+`` means in encoded ones; only if XML can't hold one, they are asked for encoded.
        Where there is no token, the list goes on after the last key, as in the second version of
        lists (``start-after``) and in the first (``marker``).
        """
        query = {
            "list-type": "2", "max-keys": str(most),
            **({"prefix": start} if start else {}),
            **({"delimiter": "/"} if folders else {}),
            **({"continuation-token": place.token} if place.token else {}),
            **({"start-after": place.after, "marker": place.after} if place.after else {}),
        }  # fmt: skip
        try:
            root = self._list(query, timeout_s)
        except _NotXml:
            root = self._list({**query, "encoding-type": "url"}, timeout_s)
        keys = [entry.findtext("{*}Key") or "" for entry in root.iterfind("{*}Contents")]
        prefixes = [
            entry.findtext("{*}Prefix") or "" for entry in root.iterfind("{*}CommonPrefixes")
        ]
        decoded = _decoder(root, keys + prefixes)
        infos = tuple(self._listed(entry, decoded) for entry in root.iterfind("{*}Contents"))
        found = tuple(decoded(prefix) for prefix in prefixes)
        last = max([*map(decoded, keys), *(f"{prefix}{_LAST}" for prefix in found)], default="")
        return Page(infos, found, self._next(root, place, last, start))

    def _list(self, query: Mapping[str, str], timeout_s: float | None) -> ElementTree.Element:
        text = "&".join(f"{name}={quote(value, safe='')}" for name, value in sorted(query.items()))
        try:
            root = _xml(self.send("GET", "", query=text, timeout_s=timeout_s).text)
        except NotFound as error:  # no bucket's list is missing
            raise self._no_list(error.message) from error
        if _name(root) != "ListBucketResult":
            raise self._no_list(f"GET {self._config.bucket}: the reply isn't a list")
        return root

    def _no_list(self, said: str) -> StoreRefused:
        free = self._config.bucket_free_url
        remedy = "Correct S3_ENDPOINT_URL, S3_BUCKET or S3_ADDRESSING: no bucket is there."
        if free:
            remedy = f"S3_ENDPOINT_URL seems to hold the bucket: set S3_ENDPOINT_URL={free}."
        return StoreRefused(f"{said} (the list of the bucket)", remedy=remedy)

    def _next(self, root: ElementTree.Element, place: Place, last: str, start: str) -> Place | None:
        """Return where the list goes on after this page."""
        token = root.findtext("{*}NextContinuationToken") or ""
        if token and token != place.token:
            return Place(token=token)
        if token:
            raise StoreUnavailable(
                f"GET {start}: the list goes round in a circle", remedy="It may pass; try again."
            )
        if (root.findtext("{*}IsTruncated") or "").strip().lower() != "true":
            return None
        if last <= place.after:
            raise StoreRefused(
                f"GET {start}: the list is cut off, and the provider doesn't let it be read on",
                remedy="Use another S3_ENDPOINT_URL: objects would be missed with this one.",
            )
        return Place(after=last)

    def _listed(self, entry: ElementTree.Element, decoded: Callable[[str], str]) -> ObjectInfo:
        key = decoded(entry.findtext("{*}Key") or "")
        if self._config.prefix:
            key = key.removeprefix(f"{self._config.prefix}/")
        try:
            modified = datetime.fromisoformat(entry.findtext("{*}LastModified") or "")
            size = int(entry.findtext("{*}Size") or "")
        except ValueError as error:
            raise StoreRefused(
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
        headers = {**_md5_header(md5), "content-type": content_type}
        response = self.send("PUT", key, body=body, size_bytes=size, headers=headers)
        return response.headers.get("etag", "")

    def begin_upload(self, key: str, content_type: str, mark: str = "") -> str:
        """Begin an upload in parts of an object that will bear this mark; return its id."""
        headers = {"content-type": content_type, **({_MARK: mark} if mark else {})}
        response = self.send("POST", key, query="uploads=", headers=headers)
        upload_id = _xml(response.text).findtext("{*}UploadId") or ""
        if not upload_id:
            raise StoreRefused(
                f"POST {key}: the reply names no upload", remedy="Check S3_ENDPOINT_URL."
            )
        return upload_id

    def mark_of(self, key: str) -> str:
        """Return an object's mark, '' if it has none. Raises `NotFound`."""
        return self.send("HEAD", key).headers.get(_MARK, "")

    def put_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        body: Iterator[bytes],
        size: int,
        md5: bytes,
    ) -> str:
        """Send one part, whose MD5 the provider compares; return its etag."""
        response = self.send(
            "PUT", key, query=part_query(upload_id, number), body=body, size_bytes=size,
            headers=_md5_header(md5),
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


def _no_answer(what: str, error: httpx2.HTTPError) -> StoreUnavailable:
    said = str(error) or type(error).__name__
    remedy = "Check that the object store can be reached."
    if "CERTIFICATE_VERIFY_FAILED" in said:
        remedy = "Set SSL_CERT_FILE to the certificates to trust, or correct S3_ENDPOINT_URL."
    return StoreUnavailable(f"{what}: {said}", remedy=remedy)


def _md5_header(md5: bytes) -> dict[str, str]:
    return {"content-md5": base64.b64encode(md5).decode()}


def part_query(upload_id: str, number: int) -> str:
    """Return the query that names one part of an upload."""
    return f"partNumber={number}&uploadId={quote(upload_id, safe='')}"


def raise_for(what: str, status: int, text: str) -> NoReturn:
    """Raise the error that a provider's reply means."""
    code, message = _error_in(text)
    said = f"{what}: {status} {code} {message}".strip()[:_MAX_SHOWN]
    if code in _TRY_AGAIN_CODES or (status in TRY_AGAIN and code not in _REMEDIES):
        raise StoreUnavailable(said, remedy="It may pass; try again.")
    if status == 404 and code != "NoSuchBucket":
        raise NotFound(said, remedy="Check the key.")
    if status == 412:
        raise PreconditionFailed(said, remedy="Read it again.")
    raise refused(said, code, status)


def refused(said: str, code: str, status: int = 0) -> StoreRefused:
    """Return the error for a reply that no other try would change."""
    if status == 403 and code in ("", DENIED):
        return AccessRefused(said, remedy=_REMEDIES[DENIED])
    return StoreRefused(
        said, remedy=_REMEDIES.get(code, "See docs/storage.md for what providers need.")
    )


def error_code(text: str) -> str:
    """Return a code of `_REMEDIES` that stands in a text, or ''."""
    return next((code for code in _REMEDIES if code in text), "")


def _error_in(text: str) -> tuple[str, str]:
    root = _parsed(text)
    if root is None:
        return "", text.strip()[:_MAX_SHOWN]
    return root.findtext("{*}Code") or "", root.findtext("{*}Message") or ""


def _decoder(root: ElementTree.Element, shown: Sequence[str]) -> Callable[[str], str]:
    """Return what turns a list's keys into real ones.

    In encoded ones, Amazon's ``+`` is a space. Elsewhere it is a plus, and a space is ``%20``.
    """
    if root.findtext("{*}EncodingType") != "url":
        return str
    return unquote if any("%20" in one for one in shown) else unquote_plus


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


class _NotXml(StoreUnavailable):
    """A reply that breaks off, or that holds what XML can't."""


def _xml(text: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(text)  # noqa: S314 - expat bounds what entities grow to
    except ElementTree.ParseError as error:
        said = f"the reply isn't XML: {text.strip()[:80]!r}"
        if _WEB_PAGE.match(text):
            raise StoreRefused(
                f"{said}: a page for people",
                remedy="Correct S3_ENDPOINT_URL: that is the address of a web page.",
            ) from error
        raise _NotXml(said, remedy="Check S3_ENDPOINT_URL.") from error


def _parsed(text: str) -> ElementTree.Element | None:
    try:
        return ElementTree.fromstring(text)  # noqa: S314 - expat bounds what entities grow to
    except ElementTree.ParseError:
        return None
