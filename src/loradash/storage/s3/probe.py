"""What an S3 endpoint really does, found out by trying it on a few small objects of its own.

An answer of 200 proves nothing: several servers accept a condition and ignore it, or take any
signature. So each capability is only believed if the forbidden thing was refused and the allowed
one took effect. What nothing works without (lists, missing objects that are told, ranges) is tried
too, with both clients that the store uses. About thirty small requests, made once when something
first needs to know.
"""

import hashlib
import time
from collections.abc import Callable
from uuid import uuid4

from loradash.errors import (
    LoradashError,
    NotFound,
    PreconditionFailed,
    StoreRefused,
    StoreUnavailable,
)
from loradash.storage.s3.bucket import Bucket
from loradash.storage.s3.config import CAPABILITIES, S3Config
from loradash.storage.s3.requests import START, AccessRefused, Place, S3Requests
from loradash.storage.store import Capabilities, Examination

_TYPE = "text/plain"
_OLD, _NEW = b"old", b"new"
_LIST_TRIES, _LIST_WAIT_S = 4, 0.5
_LIST_MOST = 2


def probe(config: S3Config, requests: S3Requests, bucket: Bucket) -> Examination:
    """Try everything that isn't known already; nothing stays in the bucket.

    Raises `StoreUnavailable`, or `StoreRefused` if objects can't even be written, read, listed and
    deleted as this needs it.
    """
    requests.listed(config.full_key(".loradash-probe/"), most=1)  # tells the most of an address
    look = _Probe(config, requests, bucket)
    known = {**config.profile.known, **config.overrides}
    found: dict[str, bool] = dict(known)
    try:
        server = look.basics()
        look.ranges()
        look.missing()
        for name in CAPABILITIES:
            if name not in known:
                found[name] = look.finds(name)
        look.listing()
        if found["presign"] and config.public_endpoint_url:
            look.public_endpoint()
    finally:
        look.tidy_up()
    for name in sorted(config.profile.known):
        look.notes.append(f"{name}: {config.profile.name} documents that it can't")
    provider = config.profile.name
    if provider == "S3 compatible" and server:
        provider = f"S3 compatible ({server})"
    return Examination(provider, Capabilities(**found), tuple(look.notes))


class _Probe:
    def __init__(self, config: S3Config, requests: S3Requests, bucket: Bucket) -> None:
        self._config = config
        self._requests = requests
        self._bucket = bucket
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
            raise StoreRefused(
                f"GET {key}: not what was put there",
                remedy="Correct S3_ENDPOINT_URL: something else answers there.",
            )
        self._bucket.try_once("HEAD", key, lambda: self._bucket.head_once(key))
        self._requests.send("DELETE", key)
        return server

    def ranges(self) -> None:
        """See what comes where a part of an object is asked for."""
        key = self._key("ranges")
        self._requests.send("PUT", key, body=_OLD)
        part = self._bucket.try_once("GET", key, lambda: self._bucket.open_once(key, 1, 2))
        if part.range != (1, 2):
            self.notes.append(
                "ranges: a part of an object can't be asked for, so large files come in one piece"
            )

    def missing(self) -> None:
        """See that an object that isn't there can be told from one that is forbidden."""
        key = self._key("missing")
        try:
            self._requests.send("GET", key)
        except NotFound:
            return
        except AccessRefused:  # the list, which has been given, tells it
            self.notes.append("missing objects: told by 403, so each is looked up in a list too")
            return
        raise StoreRefused(
            f"GET {key}: an object that was never put is there",
            remedy="Correct S3_ENDPOINT_URL: something else answers there.",
        )

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
        """See that a list, read page by page, names all objects as they are called.

        Raises `StoreRefused` if not: whatever was found by a list would be wrong.
        """
        keys = [self._key(f"listing-{name}") for name in ("1", "2 a+b", "3 %20&é", "4")]
        for key in keys:
            self._requests.send("PUT", key, body=_OLD)
        listed: list[str] = []
        for number in range(_LIST_TRIES):
            time.sleep(number * _LIST_WAIT_S)  # some show new objects a moment later
            listed = self._listed(f"{self._start}-listing-")
            if sorted(listed) == sorted(keys):
                return
        known = sorted(set(keys).intersection(listed))
        what = f"{len(keys)} objects were put, and {len(listed)} are listed"
        if len(listed) == len(keys):
            what = f"of {len(keys)} objects {len(known)} are listed by their names"
        raise StoreRefused(
            f"lists of this provider are wrong: {what}",
            remedy="Use another S3_ENDPOINT_URL: objects would be missed with this one.",
        )

    def _listed(self, start: str) -> list[str]:
        found: list[str] = []
        place: Place | None = START
        while place is not None:
            page = self._requests.listed(self._config.full_key(start), place, most=_LIST_MOST)
            found += [info.key for info in page.infos]
            place = page.next
            if place and place.after and not any(n.startswith("listing") for n in self.notes):
                self.notes.append(
                    "listing: pages don't say how to go on, so lists go on after the last name"
                )
        return found

    def public_endpoint(self) -> None:
        """Try a signed download where others will; it may be that it can't be reached from here."""
        key = self._key("public")
        self._requests.send("PUT", key, body=_OLD)
        url = self._requests.signer.presigned_url("GET", self._config.public_url(key), {}, 60)
        try:
            reply = self._requests.plain("GET", url)
        except StoreUnavailable:
            self.notes.append(
                "public endpoint: S3_PUBLIC_ENDPOINT_URL can't be reached from here, so whether "
                "its links work isn't known"
            )
            return
        if not reply.is_success or reply.content != _OLD:
            self.notes.append(
                f"public endpoint: a signed download is refused there ({reply.status_code}): "
                "correct S3_PUBLIC_ENDPOINT_URL"
            )

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
        except AccessRefused:
            return self._requests.exists(key)
        return True

    def _is(self, key: str, content: bytes) -> bool:
        return self._requests.send("GET", key).content == content
