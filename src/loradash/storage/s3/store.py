"""The object store in a bucket.

obstore fetches, and moves small objects. What is larger is sent with requests of our own, in one
piece or in parts: each must be verified, counted and tried again by itself; a slow line isn't a
silent one, which obstore doesn't tell apart while it sends; and putting the parts together may take
a provider an hour. Every request goes through one circuit.

What is uploaded is verified before anything may refer to it: the etag is compared with the MD5 of
what was sent, or, where a provider's etags mean something else, the object is read back.

Memory: files are read and written in pieces of 256 KiB, at most ``concurrency`` of them, and
``part_concurrency`` parts of those larger than ``part_bytes``, at the same time.
"""

import contextlib
import functools
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from loradash.domain.media_types import media_type
from loradash.domain.sizes import counted
from loradash.errors import (
    LoradashError,
    NotFound,
    PreconditionFailed,
    StoreUnavailable,
)
from loradash.resilience.circuit import Circuit
from loradash.resilience.circuit_state import CircuitState
from loradash.storage.disk import DiskGuard, arriving
from loradash.storage.s3.bucket import Bucket
from loradash.storage.s3.config import S3Config
from loradash.storage.s3.parts import Part, etag_of_parts, of_bytes, of_file, part_size
from loradash.storage.s3.probe import probe
from loradash.storage.s3.reading import Reader
from loradash.storage.s3.requests import START, Page, Place, S3Requests, part_query
from loradash.storage.store import (
    Capabilities,
    Examination,
    ObjectInfo,
    OnBytes,
    SignedForm,
    SignedRequest,
    check_key,
    check_prefix,
)
from loradash.storage.transfer import in_parallel

Result = TypeVar("Result")

SMALL_BYTES = 256 * 1024
"""What is sent in one go, and held in memory for it."""

_BULK = 1000  # objects in one request for their deletion
_HIDDEN = ".s3compat_uploads"  # where RunPod's volumes keep parts
_NO_GUARD = DiskGuard()


class S3Store:
    """Objects in one bucket, below a prefix. Thread-safe."""

    def __init__(
        self,
        config: S3Config,
        guard: DiskGuard = _NO_GUARD,
        *,
        examined: "S3Store | None" = None,
    ) -> None:
        self._config = config
        self._guard = guard
        self._examined = examined
        self._prompt: list[S3Store] = []
        where = config.endpoint_url or config.profile.name
        self._circuit = Circuit(f"object store {where}", StoreUnavailable, config.policy)
        self._bucket = Bucket(config, self._circuit, lambda: self._requests)
        self._probing = threading.Lock()
        self._examination: Examination | None = None
        self._marks: dict[str, str] = {}
        """Of uploads in parts that are under way here, by their ids."""
        self._is_closed = False

    def close(self) -> None:
        """See `ObjectStore.close`; what is under way fails with `StoreUnavailable`."""
        for store in self._prompt:
            store.close()
        self._is_closed = True
        self._circuit.give_up()
        if "_part_threads" in self.__dict__:
            self._part_threads.shutdown()  # cancelled, parts would be waited for without end
        if "_requests" in self.__dict__:
            self._requests.close()

    def prompt(self, silence_s: float) -> "S3Store":
        """Return a store of the same bucket whose small requests give up after such a silence.

        For what must be back soon after an outage in which nothing is answered: a request that was
        sent meanwhile is waited for as long as that afterwards. Lists keep their time.
        """
        policy = self._config.policy
        config = replace(
            self._config,
            small_timeout_s=min(silence_s, self._config.timeout_s),
            policy=policy._replace(open_s=min(policy.open_s, silence_s / 2)),
        )
        store = S3Store(config, self._guard, examined=self)
        self._prompt.append(store)
        return store

    @property
    def state(self) -> CircuitState:
        """Whether the endpoint answers, as far as is known without asking."""
        return self._circuit.state

    @property
    def capabilities(self) -> Capabilities:
        """See `ObjectStore.capabilities`; the first look probes the endpoint."""
        return self.examine().capabilities

    def examine(self) -> Examination:
        """Return what the endpoint really does, probing it once.

        Raises `StoreUnavailable` or `StoreRefused` if it can't be probed; then the next call does.
        """
        if self._examined:
            return self._examined.examine()
        with self._probing:
            if self._examination is None:
                self._examination = self._circuit.call(
                    lambda: probe(self._config, self._requests, self._bucket)
                )
            return self._examination

    # Reading

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        check_key(key)
        return self._bucket.call("GET", key, lambda: self._bucket.get_once(key))

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `ObjectStore.read`."""
        reader = Reader(self._bucket, check_key(key), start, end)
        reader.open()
        return (bytes(piece) for piece in reader.pieces())

    def get_file(self, key: str, path: Path, on_bytes: OnBytes | None = None) -> ObjectInfo:
        """See `ObjectStore.get_file`; large ones come in ranges, all of one version."""
        first = Reader(self._bucket, check_key(key), 0, self._config.part_bytes)
        info = first.open()
        with (
            self._guard.reserve(path.parent, info.size_bytes) as room,
            arriving(path) as descriptor,
        ):

            def arrived(size_bytes: int) -> None:
                room.wrote(size_bytes)
                if on_bytes:
                    on_bytes(size_bytes)

            if info.size_bytes <= self._config.part_bytes or first.takes_all():
                _write(first, descriptor, arrived)
            else:
                self._get_ranges(first, info, descriptor, arrived)
        return info

    def head(self, key: str) -> ObjectInfo:
        """See `ObjectStore.head`."""
        check_key(key)
        return self._bucket.call("HEAD", key, lambda: self._bucket.head_once(key))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`; pages are fetched as they are wanted."""
        for page in self._pages(check_prefix(prefix), folders=False):
            yield from (info for info in page.infos if _is_ours(info.key))

    def folders(self, prefix: str) -> tuple[str, ...]:
        """See `ObjectStore.folders`."""
        paths = (path for page in self._pages(check_prefix(prefix), folders=True)
                 for path in page.folders)  # fmt: skip
        names = (path.rstrip("/").rpartition("/")[2] for path in paths)
        return tuple(sorted(name for name in names if _is_ours(name)))

    # Writing

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """See `ObjectStore.put`."""
        check_key(key)
        content = bytes(data)
        if len(content) > SMALL_BYTES:
            return self._put_whole(key, Part(of_bytes(content), 0, len(content), None))
        return self._circuit.call(lambda: self._put_once(key, content, "overwrite"))

    def put_if(self, key: str, data: bytes, etag: str | None) -> ObjectInfo:
        """See `ConditionalPut.put_if`.

        An answer that got lost doesn't make a lost race: what is there may be ours.
        """
        check_key(key)
        if etag == "":  # no version of anything, and obstore would take it for no condition
            raise PreconditionFailed(f"object {key!r} has no such version", remedy="Read it again.")
        mode = "create" if etag is None else {"e_tag": etag}
        tries = 0

        def put() -> ObjectInfo:
            nonlocal tries
            tries += 1
            return self._put_once(key, data, mode)

        try:
            return self._circuit.call(put)
        except PreconditionFailed:
            with contextlib.suppress(NotFound):
                if tries > 1 and self.get(key) == data:
                    return self.head(key)
            raise

    def put_file(self, key: str, path: Path, on_bytes: OnBytes | None = None) -> ObjectInfo:
        """See `ObjectStore.put_file`."""
        check_key(key)
        size = path.stat().st_size
        if size > self._config.part_bytes:
            return self._put_parts(key, path, size, on_bytes)
        if size > SMALL_BYTES:
            with path.open("rb") as file:
                return self._put_whole(key, Part(of_file(file.fileno()), 0, size, on_bytes))
        info = self.put(key, path.read_bytes())
        if on_bytes:
            on_bytes(info.size_bytes)
        return info

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        check_key(key)
        try:
            self._bucket.call("DELETE", key, lambda: self._bucket.delete_once(key))
        except NotFound:
            return

    def delete_many(self, keys: Sequence[str]) -> None:
        """See `ObjectStore.delete_many`."""
        for key in keys:
            check_key(key)
        if len(keys) > 1 and self.capabilities.bulk_delete:
            bulks = [keys[start : start + _BULK] for start in range(0, len(keys), _BULK)]
            done = in_parallel(bulks, self._delete_bulk, concurrency=self._config.concurrency)
            done.or_raise("delete", lambda bulk: f"{counted(len(bulk), 'object')} from {bulk[0]}")
            return
        single = in_parallel(keys, self.delete, concurrency=self._config.concurrency)
        single.or_raise("delete", str)

    # Signing for others

    def get_url(self, key: str, *, filename: str, expires_s: int) -> str:
        """See `PresignedUrls.get_url`."""
        disposition = f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
        query = f"response-content-disposition={quote(disposition, safe='')}"
        url = f"{self._config.public_url(check_key(key))}?{query}"
        return self._requests.signer.presigned_url("GET", url, {}, expires_s)

    def put_url(
        self, key: str, *, content_type: str, size_bytes: int, expires_s: int
    ) -> SignedRequest:
        """See `PresignedUrls.put_url`."""
        headers = {"Content-Type": content_type, "Content-Length": str(size_bytes)}
        url = self._config.public_url(check_key(key))
        signed = self._requests.signer.presigned_url("PUT", url, headers, expires_s)
        return SignedRequest("PUT", signed, headers)

    def post_form(
        self, key: str, *, content_type: str, max_bytes: int, expires_s: int
    ) -> SignedForm:
        """See `PresignedUrls.post_form`."""
        fields = self._requests.signer.post_fields(
            self._config.bucket, self._config.full_key(check_key(key)), content_type=content_type,
            max_bytes=max_bytes, expires_s=expires_s,
        )  # fmt: skip
        return SignedForm(self._config.public_url(), fields)

    def begin_upload(self, key: str, *, content_type: str) -> str:
        """See `MultipartUploads.begin_upload`."""
        check_key(key)
        mark = secrets.token_hex(8)
        upload_id = self._circuit.call(lambda: self._requests.begin_upload(key, content_type, mark))
        self._marks[upload_id] = mark
        return upload_id

    def part_url(self, key: str, upload_id: str, number: int, *, expires_s: int) -> SignedRequest:
        """See `MultipartUploads.part_url`."""
        url = f"{self._config.public_url(check_key(key))}?{part_query(upload_id, number)}"
        signed = self._requests.signer.presigned_url("PUT", url, {}, expires_s)
        return SignedRequest("PUT", signed, {})

    def finish_upload(self, key: str, upload_id: str, etags: Sequence[str]) -> ObjectInfo:
        """See `MultipartUploads.finish_upload`."""
        check_key(key)
        tries = 0

        def finish() -> None:
            nonlocal tries
            tries += 1
            self._requests.finish_upload(key, upload_id, etags)

        try:
            self._circuit.call(finish)
        except NotFound:
            if tries == 1 or not self._is_finished(key, upload_id, etags):
                raise
        self._marks.pop(upload_id, None)
        return self.head(key)

    def _is_finished(self, key: str, upload_id: str, etags: Sequence[str]) -> bool:
        """Whether an upload was finished by a try whose answer got lost.

        The object bears the upload's mark then. Where that isn't kept, its etag may tell.
        """
        mark = self._marks.get(upload_id, "")
        if mark and self._circuit.call(lambda: self._requests.mark_of(key)) == mark:
            return True
        return self.head(key).etag.strip('"') == etag_of_parts(etags)

    def abort_upload(self, key: str, upload_id: str) -> None:
        """See `MultipartUploads.abort_upload`."""
        check_key(key)
        try:
            self._circuit.call(lambda: self._requests.abort_upload(key, upload_id))
        except NotFound:
            return
        finally:
            self._marks.pop(upload_id, None)

    # Below the verbs

    @functools.cached_property
    def _requests(self) -> S3Requests:
        return S3Requests(self._config)

    @functools.cached_property
    def _part_threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._config.part_concurrency, "s3-part")

    def _put_once(self, key: str, data: bytes, mode: Any) -> ObjectInfo:
        """Put, and see that it arrived."""
        etag = self._bucket.try_once("PUT", key, lambda: self._bucket.put_once(key, data, mode))
        if etag.strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return ObjectInfo(key, len(data), float(int(time.time())), etag)
        info = self._bucket.try_once("HEAD", key, lambda: self._bucket.head_once(key))
        if info.size_bytes == len(data):
            back = self._bucket.try_once("GET", key, lambda: self._bucket.get_once(key))
            if back == data:
                return info
        raise _not_arrived(key, info.size_bytes, len(data))

    def _pages(self, prefix: str, *, folders: bool) -> Iterator[Page]:
        place: Place | None = START
        while place is not None:
            page = self._page(prefix, place, folders=folders)
            yield page
            place = page.next

    def _page(self, prefix: str, place: Place, *, folders: bool) -> Page:
        return self._circuit.call(lambda: self._requests.page(prefix, place, folders=folders))

    def _delete_bulk(self, keys: Sequence[str]) -> None:
        self._circuit.call(lambda: self._requests.delete(keys))

    def _put_whole(self, key: str, content: Part) -> ObjectInfo:
        md5 = content.md5()  # first, since what is sent takes effect as soon as it has arrived
        size = content.size
        etag = self._circuit.call(
            lambda: self._requests.put(key, content.pieces(), size, md5, media_type(key))
        )
        if etag.strip('"') == md5.hex():
            return ObjectInfo(key, size, float(int(time.time())), etag)
        info = self.head(key)
        if info.size_bytes != size:
            raise _not_arrived(key, info.size_bytes, size)
        self._compare(info, 0, size, md5)
        return info

    def _put_parts(self, key: str, path: Path, size: int, on_bytes: OnBytes | None) -> ObjectInfo:
        part_bytes = part_size(size, self._config.part_bytes)
        upload_id = self.begin_upload(key, content_type=media_type(key))
        try:
            with path.open("rb") as file:

                def send(start: int) -> tuple[str, bytes]:
                    part = Part(
                        of_file(file.fileno()), start, min(part_bytes, size - start), on_bytes
                    )
                    return self._put_part(key, upload_id, start // part_bytes + 1, part)

                before = os.fstat(file.fileno())
                sent = self._all(send, range(0, size, part_bytes))
                if _version(os.fstat(file.fileno())) != _version(before):
                    raise OSError("the file changed while it was sent")
            info = self.finish_upload(key, upload_id, [etag for etag, _ in sent])
        except BaseException:
            self._abort_quietly(key, upload_id)
            raise
        if info.size_bytes != size:
            raise _not_arrived(key, info.size_bytes, size)
        for number, (etag, md5) in enumerate(sent):
            if etag.strip('"') != md5.hex():
                self._compare(info, number * part_bytes, (number + 1) * part_bytes, md5)
        return info

    def _put_part(self, key: str, upload_id: str, number: int, part: Part) -> tuple[str, bytes]:
        md5 = part.md5()  # first, so that the provider compares; other parts are sent meanwhile
        etag = self._circuit.call(
            lambda: self._requests.put_part(key, upload_id, number, part.pieces(), part.size, md5)
        )
        return etag, md5

    def _compare(self, info: ObjectInfo, start: int, end: int, md5: bytes) -> None:
        """Read a part back. Raises `StoreUnavailable` if it isn't what was sent."""
        digest = hashlib.md5(usedforsecurity=False)
        for piece in Reader(self._bucket, info.key, start, end, info.etag).pieces():
            digest.update(piece)
        if digest.digest() != md5:
            raise _not_arrived(info.key, info.size_bytes, info.size_bytes)

    def _get_ranges(
        self, first: Reader, info: ObjectInfo, descriptor: int, on_bytes: OnBytes | None
    ) -> None:
        """Fetch the range that was asked for already, and all others."""
        part_bytes = part_size(info.size_bytes, self._config.part_bytes)
        first_bytes = self._config.part_bytes

        def fetch(start: int) -> None:
            if start < first_bytes:
                return _write(first, descriptor, on_bytes)
            end = min(info.size_bytes, start + part_bytes)
            reader = Reader(self._bucket, info.key, start, end, info.etag)
            return _write(reader, descriptor, on_bytes)

        self._all(fetch, [0, *range(first_bytes, info.size_bytes, part_bytes)])

    def _all(self, work: Callable[[int], Result], starts: Sequence[int]) -> tuple[Result, ...]:
        """Work on all parts in this store's threads; the first failure ends them, and is raised."""

        def unless_closed(start: int) -> Result:
            if self._is_closed:
                raise StoreUnavailable("the store was closed", remedy="Start again.")
            return work(start)

        futures = [self._part_threads.submit(unless_closed, start) for start in starts]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            return tuple(future.result() for future in futures if future.done())
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def _abort_quietly(self, key: str, upload_id: str) -> None:
        try:
            self.abort_upload(key, upload_id)
        except LoradashError:
            return  # the failure that led here is the one to tell


def _version(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_size, facts.st_mtime_ns


def _write(reader: Reader, descriptor: int, on_bytes: OnBytes | None) -> None:
    offset = reader.offset
    for piece in reader.pieces():
        left = memoryview(piece)
        while left:  # a disk that runs full takes a part of it without an error
            written = os.pwrite(descriptor, left, offset)
            offset += written
            left = left[written:]
        if on_bytes:
            on_bytes(len(piece))


def _is_ours(key: str) -> bool:
    """Whether a listed key is an object of ours: none of a file system's folders and leftovers."""
    return bool(key) and not key.endswith("/") and "\\" not in key and _HIDDEN not in key.split("/")


def _not_arrived(key: str, arrived: int, sent: int) -> StoreUnavailable:
    return StoreUnavailable(
        f"PUT {key}: what arrived isn't what was sent ({arrived} of {sent} bytes)",
        remedy="It may pass; try again.",
    )
