"""What an S3 endpoint really does, found out by trying it on a few small objects of its own.

An answer of 200 proves nothing: several servers accept a condition and ignore it, or take any
signature. So each capability is only believed if the forbidden thing was refused and the allowed
one took effect. About twenty small requests, made once when something first needs to know.
"""

import hashlib
from collections.abc import Callable
from urllib.parse import quote
from uuid import uuid4

from loradash.errors import LoradashError, NotFound, PreconditionFailed, StoreUnavailable
from loradash.storage.s3.config import CAPABILITIES, S3Config
from loradash.storage.s3.requests import S3Requests
from loradash.storage.store import Capabilities, Examination

_TYPE = "text/plain"
_OLD, _NEW = b"old", b"new"


def probe(config: S3Config, requests: S3Requests) -> Examination:
    """Try everything that isn't known already; nothing stays in the bucket.

    Raises `StoreUnavailable` or `StoreRefused` if objects can't even be written, read and deleted.
    """
    look = _Probe(config, requests)
    known = {**config.profile.known, **config.overrides}
    found: dict[str, bool] = dict(known)
    try:
        server = look.basics()
        for name in CAPABILITIES:
            if name not in known:
                found[name] = look.finds(name)
        look.listing()
    finally:
        look.tidy_up()
    for name in sorted(config.profile.known):
        look.notes.append(f"{name}: {config.profile.name} documents that it can't")
    provider = config.profile.name
    if provider == "S3 compatible" and server:
        provider = f"S3 compatible ({server})"
    return Examination(provider, Capabilities(**found), tuple(look.notes))


class _Probe:
    def __init__(self, config: S3Config, requests: S3Requests) -> None:
        self._config = config
        self._requests = requests
        # One folder for all probes: some providers keep folders that have become empty.
        self._start = f".loradash-probe/{uuid4().hex}"
        self._keys: list[str] = []
        self._checks: dict[str, Callable[[], str]] = {
            "conditional_create": self._conditional_create,
            "conditional_replace": self._conditional_replace,
            "bulk_delete": self._bulk_delete,
            "presign": self._presign,
            "post_policy": self._post_policy,
            "md5_etag": self._md5_etag,
        }
        self.notes: list[str] = []

    def basics(self) -> str:
        """Write, read and delete one object; return what the server calls itself."""
        key = self._key("basics")
        server = self._requests.send("PUT", key, body=_OLD).headers.get("server", "")
        if self._requests.send("GET", key).content != _OLD:
            raise StoreUnavailable(
                f"GET {key}: not what was put there", remedy="Check S3_ENDPOINT_URL."
            )
        self._requests.send("DELETE", key)
        return server

    def finds(self, name: str) -> bool:
        """Return whether a capability is there; if not, a note says why."""
        try:
            reason = self._checks[name]()
        except StoreUnavailable:
            raise
        except LoradashError as error:
            reason = error.message
        if reason:
            self.notes.append(f"{name}: {reason}")
        return not reason

    def listing(self) -> None:
        """See that a listing can be read page by page."""
        keys = [self._key(f"listing-{number}") for number in range(3)]
        for key in keys:
            self._requests.send("PUT", key, body=_OLD)
        prefix = quote(self._config.full_key(f"{self._start}-listing-"), safe="")
        page = self._requests.send("GET", "", query=f"list-type=2&max-keys=2&prefix={prefix}").text
        if page.count("<Contents>") != 2 or "<NextContinuationToken>" not in page:
            self.notes.append("listing: a page of 2 was asked for, and the server gives another")

    def tidy_up(self) -> None:
        """Delete what the probe has written, as far as that is possible."""
        for key in self._keys:
            try:
                self._requests.send("DELETE", key)
            except LoradashError:
                continue

    # Each check returns '' if the capability is there, and else why it isn't.

    def _conditional_create(self) -> str:
        key = self._key("create")
        condition = {"if-none-match": "*"}
        self._requests.send("PUT", key, body=_OLD, headers=condition)
        if not self._is_refused(key, condition):
            return "a second creation is accepted: the condition is ignored"
        return "" if self._is(key, _OLD) else "a refused creation took effect"

    def _conditional_replace(self) -> str:
        key = self._key("replace")
        stale = self._requests.send("PUT", key, body=b"older").headers.get("etag", "")
        current = self._requests.send("PUT", key, body=_OLD).headers.get("etag", "")
        if not self._is_refused(key, {"if-match": stale}):
            return "a replacement of another version is accepted: the condition is ignored"
        if not self._is(key, _OLD):
            return "a refused replacement took effect"
        self._requests.send("PUT", key, body=_NEW, headers={"if-match": current})
        return "" if self._is(key, _NEW) else "an accepted replacement had no effect"

    def _bulk_delete(self) -> str:
        keys = [self._key("bulk-1"), self._key("bulk-2")]
        for key in keys:
            self._requests.send("PUT", key, body=_OLD)
        self._requests.delete(keys)
        return "" if not any(self._exists(key) for key in keys) else "the objects are still there"

    def _presign(self) -> str:
        key = self._key("presign")
        signer = self._requests.signer
        headers = {"Content-Type": _TYPE, "Content-Length": str(len(_OLD))}
        put = signer.presigned_url("PUT", self._config.url(key), headers, 60)
        if not self._requests.plain("PUT", put, headers, content=_OLD).is_success:
            return "a signed upload is refused"
        wrong = {**headers, "Content-Type": "image/png"}
        if self._requests.plain("PUT", put, wrong, content=_OLD).is_success:
            return "an upload with another content type than the signed one is accepted"
        get = signer.presigned_url("GET", self._config.url(key), {}, 60)
        reply = self._requests.plain("GET", get)
        if not reply.is_success or reply.content != _OLD:
            return "a signed download is refused"
        last = "0" if get[-1] != "0" else "1"
        if self._requests.plain("GET", get[:-1] + last).is_success:
            return "a false signature is accepted"
        return ""

    def _post_policy(self) -> str:
        key = self._key("post")
        fields = self._requests.signer.post_fields(
            self._config.bucket, self._config.full_key(key), content_type=_TYPE,
            max_bytes=len(_OLD), expires_s=60,
        )  # fmt: skip
        url = self._config.url()

        def send(content: bytes) -> bool:
            files = {"file": ("file", content, _TYPE)}
            return self._requests.plain("POST", url, data=fields, files=files).is_success

        if send(b"too long"):
            return "a form with a larger file than allowed is accepted"
        if not send(_OLD):
            return "a signed form is refused"
        return "" if self._is(key, _OLD) else "a signed form had no effect"

    def _md5_etag(self) -> str:
        etag = self._requests.send("PUT", self._key("etag"), body=_OLD).headers.get("etag", "")
        is_md5 = etag.strip('"') == hashlib.md5(_OLD, usedforsecurity=False).hexdigest()
        return "" if is_md5 else "etags aren't MD5: uploads are verified by reading them back"

    def _key(self, name: str) -> str:
        key = f"{self._start}-{name}"
        self._keys.append(key)
        return key

    def _is_refused(self, key: str, condition: dict[str, str]) -> bool:
        try:
            self._requests.send("PUT", key, body=_NEW, headers=condition)
        except PreconditionFailed:
            return True
        return False

    def _exists(self, key: str) -> bool:
        try:
            self._requests.send("HEAD", key)
        except NotFound:
            return False
        return True

    def _is(self, key: str, content: bytes) -> bool:
        return self._requests.send("GET", key).content == content
