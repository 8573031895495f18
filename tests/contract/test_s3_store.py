"""The object store in a bucket, on real servers; boto3 says what is really there."""

import functools
import hashlib
import random
import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import httpx2
import pytest

from loradash.errors import (
    DiskFull,
    InvalidKey,
    LoradashError,
    NotFound,
    PreconditionFailed,
    StoreRefused,
    StoreUnavailable,
)
from loradash.storage.s3.config import CAPABILITIES, S3Config
from loradash.storage.s3.store import S3Store
from loradash.storage.store import Capabilities, multipart_uploads, presigned_urls
from tests.servers.fault_proxy import FaultProxy
from tests.servers.juicefs import JuiceServer
from tests.servers.seaweedfs import SeaweedServer

from .buckets import QUICK, config_of

MIB = 2**20
PREFIX = "some/where"
EVERYTHING = Capabilities(*[True] * len(CAPABILITIES))

ODD_KEYS = [
    "a b/c d.png",
    "a+b=c&d?e#f.png",
    "100%/%20/%2F.png",
    "Größe/猫 🐈.png",
    "e\u0301 and \u00e9.png",
    "a;b,c:d@e!f$g'h(i)*j.png",
    '-_.~[x]{y}|^`"<>.png',
    "...",
    " ",
    "416/NoSuchBucket/AccessDenied/InvalidRange",
]


class Place:
    """A new bucket: a store in it, and what boto3 finds there."""

    def __init__(self, server, **options):
        self.server = server
        self.config = config_of(server, **{"prefix": PREFIX, **options})
        self.bucket = self.config.bucket
        self.store = S3Store(self.config)
        self.client = server.client()
        self._stores = [self.store]

    def another(self, **options):
        """Another store in the same bucket."""
        store = S3Store(config_of(self.server, bucket=self.bucket, **{"prefix": PREFIX, **options}))
        self._stores.append(store)
        return store

    def close(self):
        for store in self._stores:
            store.close()

    def keys(self, *, folders=False):
        """All keys of the bucket, as they really are; perhaps with folders that became empty."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return sorted(key for key in keys if folders or not key.endswith("/"))

    def content(self, key):
        reply = self.client.get_object(Bucket=self.bucket, Key=f"{PREFIX}/{key}")
        return reply["Body"].read()

    def type_of(self, key):
        return self.client.head_object(Bucket=self.bucket, Key=f"{PREFIX}/{key}")["ContentType"]

    def uploads(self):
        """Uploads in parts that were neither finished nor aborted."""
        return self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])


@pytest.fixture(params=["seaweedfs", "juicefs"])
def server(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def places():
    """Make places that are closed at the end."""
    made = []

    def make(server, **options):
        made.append(Place(server, **options))
        return made[-1]

    yield make
    for place in made:
        place.close()


@pytest.fixture
def place(places, server):
    return places(server)


@pytest.fixture
def weed(places, seaweedfs):
    return places(seaweedfs)


@pytest.fixture
def proxy(server):
    with FaultProxy(server.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def weed_proxy(seaweedfs):
    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        yield proxy


@functools.cache
def browser():
    """Any HTTP client that knows nothing of S3."""
    return httpx2.Client(trust_env=False)


def random_file(path, size_bytes, seed=0):
    path.write_bytes(random.Random(seed).randbytes(size_bytes))
    return path


def refused(response):
    """Whether the server didn't do it, because it wasn't allowed."""
    return response.status_code in (400, 403)


def same_but(url, **changes):
    """A URL with other parameters."""
    for name, value in changes.items():
        start, mark, rest = url.partition(f"{name.replace('_', '-')}=")
        assert mark, f"{name} isn't in {url}"
        url = f"{start}{mark}{value}{rest[rest.find('&') :] if '&' in rest else ''}"
    return url


def tampered(url):
    return url[:-1] + ("0" if url[-1] != "0" else "1")


# Signed downloads


def test_a_signed_url_gives_the_object_under_its_file_name(place):
    assert presigned_urls(place.store) is place.store
    place.store.put("a/b.png", b"content")
    url = place.store.get_url("a/b.png", filename='Größe; "x" 100%.png', expires_s=60)
    response = browser().get(url)
    assert (response.status_code, response.content) == (200, b"content")
    disposition = response.headers["content-disposition"]
    kind, _, name = disposition.partition("; filename*=UTF-8''")
    assert (kind, unquote(name)) == ("attachment", 'Größe; "x" 100%.png')
    assert name.isascii()
    assert response.headers["content-type"] == "image/png"


def test_a_range_of_a_signed_url_can_be_asked_for(place):
    """Browsers go on with a download in this way."""
    place.store.put("a", b"0123456789")
    url = place.store.get_url("a", filename="a", expires_s=60)
    response = browser().get(url, headers={"Range": "bytes=3-5"})
    assert (response.status_code, response.content) == (206, b"345")


def test_a_signed_download_is_good_for_nothing_else(place):
    place.store.put("a.png", b"public")
    place.store.put("b.png", b"secret")
    url = place.store.get_url("a.png", filename="a.png", expires_s=60)
    assert browser().get(url).content == b"public"
    for method, address in [
        ("GET", tampered(url)),
        ("GET", url.replace("/a.png?", "/b.png?")),
        ("GET", same_but(url, response_content_disposition="inline")),
        ("GET", same_but(url, X_Amz_Expires="6000")),
        ("GET", url.partition("&X-Amz-Signature")[0]),
        ("GET", url.partition("?")[0]),
        ("HEAD", url),
        ("PUT", url),
        ("DELETE", url),
    ]:
        assert refused(browser().request(method, address)), (method, address)
    assert place.content("a.png") == b"public"


def test_a_signed_url_expires(place):
    place.store.put("a", b"x")
    get = place.store.get_url("a", filename="a", expires_s=1)
    put = place.store.put_url("a", content_type="text/plain", size_bytes=1, expires_s=1)
    form = place.store.post_form("a", content_type="text/plain", max_bytes=1, expires_s=1)
    time.sleep(2.1)  # it counts from the beginning of a second
    assert refused(browser().get(get))
    assert refused(browser().put(put.url, headers=put.headers, content=b"y"))
    assert refused(post(form, b"y"))
    assert place.content("a") == b"x"


# Signed uploads


def test_a_signed_upload_arrives_with_its_type(place):
    put = place.store.put_url("a/b.png", content_type="image/png", size_bytes=5, expires_s=60)
    response = browser().request(put.method, put.url, headers=put.headers, content=b"12345")
    assert response.status_code == 200
    assert place.content("a/b.png") == b"12345"
    assert place.type_of("a/b.png") == "image/png"


def test_a_signed_upload_is_good_for_nothing_else(place):
    place.store.put("b.png", b"other")
    put = place.store.put_url("a.png", content_type="image/png", size_bytes=5, expires_s=60)
    png = {"Content-Type": "image/png"}
    for method, url, headers, content in [
        ("PUT", put.url, {"Content-Type": "text/html"}, b"12345"),
        ("PUT", put.url, {}, b"12345"),
        ("PUT", put.url, png, b"123456"),
        ("PUT", put.url, png, b"1234"),
        ("PUT", put.url, png, b""),
        ("PUT", put.url.replace("/a.png?", "/b.png?"), png, b"12345"),
        ("PUT", tampered(put.url), png, b"12345"),
        ("PUT", same_but(put.url, X_Amz_SignedHeaders="host"), png, b"123456"),
        ("GET", put.url, {}, b""),
        ("DELETE", put.url, {}, b""),
    ]:
        response = browser().request(method, url, headers=headers, content=content)
        assert refused(response), (method, url, headers, content, response.text)
    assert place.keys() == [f"{PREFIX}/b.png"]
    assert place.content("b.png") == b"other"


def post(form, content, content_type="image/png", **changes):
    files = {"file": ("name.png", content, content_type)}
    return browser().post(form.url, data={**form.fields, **changes}, files=files)


@pytest.mark.parametrize("size", [0, 1, 5])
def test_a_signed_form_uploads_an_object_of_at_most_its_size(place, size):
    form = place.store.post_form("a/b.png", content_type="image/png", max_bytes=5, expires_s=60)
    assert post(form, b"12345"[:size]).is_success
    assert place.content("a/b.png") == b"12345"[:size]
    assert place.type_of("a/b.png") == "image/png"


def test_a_signed_form_is_good_for_nothing_else(place):
    form = place.store.post_form("a.png", content_type="image/png", max_bytes=5, expires_s=60)
    other = place.store.post_form("a.png", content_type="image/png", max_bytes=500, expires_s=60)
    for content, changes in [
        (b"123456", {}),
        (b"12345", {"key": f"{PREFIX}/b.png"}),
        (b"12345", {"key": "a.png"}),
        (b"12345", {"Content-Type": "text/html"}),
        (b"12345", {"x-amz-signature": tampered(form.fields["x-amz-signature"])}),
        (b"123456", {"policy": other.fields["policy"]}),
        (b"12345", {"x-amz-meta-more": "x"}),
    ]:
        assert refused(post(form, content, **changes)), (content, changes)
    assert place.keys() == []


def test_what_is_signed_leads_to_the_public_address(weed):
    """Others may be outside of the network where the server's own address leads anywhere."""
    public = f"http://localhost:{weed.server.port}"
    store = weed.another(public_endpoint_url=public)
    assert store.examine().notes == ()
    store.put("a.png", b"content")
    get = store.get_url("a.png", filename="a.png", expires_s=60)
    put = store.put_url("b.png", content_type="image/png", size_bytes=3, expires_s=60)
    form = store.post_form("c.png", content_type="image/png", max_bytes=5, expires_s=60)
    upload_id = store.begin_upload("d", content_type="a/b")
    part = store.part_url("d", upload_id, 1, expires_s=60)
    for url in (get, put.url, form.url, part.url):
        assert url.startswith(f"{public}/{weed.bucket}/")
    assert browser().get(get).content == b"content"
    assert browser().put(put.url, headers=put.headers, content=b"abc").is_success
    assert post(form, b"abc").is_success
    assert browser().put(part.url, content=b"x").is_success
    assert weed.content("b.png") == weed.content("c.png") == b"abc"
    store.abort_upload("d", upload_id)


def test_a_public_address_that_does_not_work_is_said(weed, weed_proxy):
    away = weed.another(public_endpoint_url="http://127.0.0.1:1")
    (note,) = away.examine().notes
    assert note.startswith("public endpoint: S3_PUBLIC_ENDPOINT_URL can't be reached from here")
    wrong = weed.another(public_endpoint_url=f"{weed_proxy.url}/another/path")
    (note,) = wrong.examine().notes
    assert note.startswith("public endpoint: ")
    assert "correct S3_PUBLIC_ENDPOINT_URL" in note


# Uploads in parts by others


def send_part(store, key, upload_id, number, content):
    part = store.part_url(key, upload_id, number, expires_s=60)
    response = browser().request(part.method, part.url, headers=part.headers, content=content)
    assert response.status_code == 200, response.text
    return response.headers["ETag"]


def test_others_can_send_an_object_in_parts(place):
    store = multipart_uploads(place.store)
    assert store is place.store
    parts = [random.Random(n).randbytes(size) for n, size in enumerate((5 * MIB, 5 * MIB, 1))]
    upload_id = store.begin_upload("a/b.zip", content_type="application/zip")
    etags = [send_part(store, "a/b.zip", upload_id, n, part) for n, part in enumerate(parts, 1)]
    assert place.keys() == [], "nothing is visible before the end"
    info = store.finish_upload("a/b.zip", upload_id, etags)
    assert (info.key, info.size_bytes) == ("a/b.zip", 10 * MIB + 1)
    assert info == store.head("a/b.zip")
    assert place.content("a/b.zip") == b"".join(parts)
    assert place.type_of("a/b.zip") == "application/zip"
    assert place.uploads() == []


def test_parts_may_come_in_any_order_and_again(place):
    parts = [random.Random(n).randbytes(5 * MIB) for n in range(2)]
    upload_id = place.store.begin_upload("a", content_type="application/zip")
    send_part(place.store, "a", upload_id, 1, b"x" * 5 * MIB)
    second = send_part(place.store, "a", upload_id, 2, parts[1])
    first = send_part(place.store, "a", upload_id, 1, parts[0])
    place.store.finish_upload("a", upload_id, [first, second])
    assert place.content("a") == b"".join(parts)


def test_an_aborted_upload_leaves_nothing(place):
    upload_id = place.store.begin_upload("a", content_type="application/zip")
    send_part(place.store, "a", upload_id, 1, b"x")
    assert [one["UploadId"] for one in place.uploads()] == [upload_id]
    place.store.abort_upload("a", upload_id)
    assert (place.uploads(), place.keys()) == ([], [])
    place.store.abort_upload("a", upload_id)
    place.store.abort_upload("a", "0" * 32)
    part = place.store.part_url("a", upload_id, 1, expires_s=60)
    assert browser().put(part.url, content=b"x").status_code == 404
    with pytest.raises(NotFound):
        place.store.finish_upload("a", upload_id, ['"9dd4e461268c8034f5c8564e155c67a6"'])


def test_an_upload_is_not_finished_with_parts_that_it_does_not_have(place):
    before = place.store.put("a", b"old")
    upload_id = place.store.begin_upload("a", content_type="application/zip")
    etags = [
        send_part(place.store, "a", upload_id, number, random.Random(number).randbytes(5 * MIB))
        for number in (1, 2)
    ]
    false = '"00000000000000000000000000000000"'
    for wrong in ([etags[0], false], etags[::-1], [false]):
        with pytest.raises(StoreRefused) as caught:
            place.store.finish_upload("a", upload_id, wrong)
        assert "InvalidPart" in caught.value.message
    assert place.content("a") == b"old"
    assert place.store.head("a").etag == before.etag
    place.store.finish_upload("a", upload_id, etags)
    assert place.store.head("a").size_bytes == 10 * MIB


def test_the_url_of_a_part_is_good_for_nothing_else(place):
    upload_id = place.store.begin_upload("a", content_type="application/zip")
    other_id = place.store.begin_upload("a", content_type="application/zip")
    part = place.store.part_url("a", upload_id, 1, expires_s=60)
    plain = part.url.partition("?")[0]
    for method, url in [
        ("PUT", tampered(part.url)),
        ("PUT", same_but(part.url, partNumber="2")),
        ("PUT", same_but(part.url, uploadId=other_id)),
        ("PUT", part.url.replace("/a?", "/b?")),
        ("PUT", part.url.replace(f"partNumber=1&uploadId={upload_id}&", "")),
        ("PUT", plain),
        ("DELETE", part.url),
        ("GET", part.url),
    ]:
        assert refused(browser().request(method, url)), (method, url)
    assert len(place.uploads()) == 2
    assert place.keys() == []


# Files in parts


@pytest.mark.parametrize(
    ("size", "parts"), [(0, 0), (5 * MIB, 0), (5 * MIB + 1, 2), (10 * MIB, 2), (23 * MIB, 5)]
)
def test_a_file_is_sent_in_as_many_parts_as_it_needs(places, server, tmp_path, size, parts):
    place = places(server, part_bytes=5 * MIB, part_concurrency=3)
    source, sent = random_file(tmp_path / "a.zip", size), []
    info = place.store.put_file("a.zip", source, sent.append)
    content = source.read_bytes()
    assert place.content("a.zip") == content
    assert info == place.store.head("a.zip")
    assert info.size_bytes == sum(sent) == size
    digests = [
        hashlib.md5(content[start : start + 5 * MIB]).digest() for start in range(0, size, 5 * MIB)
    ]
    whole = hashlib.md5(b"".join(digests)).hexdigest()
    assert info.etag.strip('"') == (
        f"{whole}-{parts}" if parts else hashlib.md5(content).hexdigest()
    )
    assert place.type_of("a.zip") == "application/zip"
    assert place.uploads() == []


@pytest.mark.parametrize("size", [5 * MIB, 5 * MIB + 1, 23 * MIB])
def test_a_file_is_fetched_in_ranges(places, server, tmp_path, size):
    place = places(server, part_bytes=5 * MIB, part_concurrency=3)
    content = random.Random(0).randbytes(size)
    place.client.put_object(Bucket=place.bucket, Key=f"{PREFIX}/a", Body=content)
    fetched = []
    info = place.store.get_file("a", tmp_path / "a", fetched.append)
    assert (tmp_path / "a").read_bytes() == content
    assert info == place.store.head("a")
    assert sum(fetched) == size


def test_several_large_files_share_the_threads(places, server, tmp_path):
    place = places(server, part_bytes=5 * MIB, part_concurrency=2)
    files = [random_file(tmp_path / f"{n}.bin", 11 * MIB + n, n) for n in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda path: place.store.put_file(path.name, path), files))
        copies = [tmp_path / f"copy-{path.name}" for path in files]
        names = [path.name for path in files]
        list(threads.map(place.store.get_file, names, copies))
    for path, copy in zip(files, copies, strict=True):
        assert place.content(path.name) == copy.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("change", ["shortened", "overwritten"])
def test_a_file_that_changes_while_it_is_sent_does_not_arrive(places, server, tmp_path, change):
    place = places(server, part_bytes=5 * MIB, part_concurrency=1)
    before = place.store.put("a", b"old")
    source, counted = random_file(tmp_path / "a", 23 * MIB), []

    def on_bytes(more):
        if not counted:
            with source.open("r+b") as file:
                if change == "shortened":
                    file.truncate(7 * MIB)
                else:
                    file.seek(5 * MIB - 1)
                    file.write(b"!")
        counted.append(more)

    kind, words = (
        (OSError, "became shorter") if change == "shortened" else (StoreUnavailable, "BadDigest")
    )
    with pytest.raises(kind, match=words):
        place.store.put_file("a", source, on_bytes)
    assert place.content("a") == b"old"
    assert place.store.head("a").etag == before.etag
    assert place.uploads() == []


@pytest.mark.parametrize("size", [2 * MIB, 23 * MIB])
def test_an_object_that_is_replaced_while_it_is_fetched_makes_no_mixture(
    places, server, tmp_path, size
):
    place = places(server, part_bytes=5 * MIB, part_concurrency=1)
    old, new = (random.Random(n).randbytes(size) for n in (1, 2))
    place.store.put_file("a", random_file(tmp_path / "source", size, 1))
    target, replaced = tmp_path / "folder" / "target", []
    target.parent.mkdir()
    target.write_bytes(b"keep")

    def replace(_bytes):
        if not replaced:
            replaced.append(place.another().put("a", new))

    try:
        place.store.get_file("a", target, replace)
    except StoreUnavailable as error:
        assert "'a' was replaced while it was read" in error.message
        assert error.remedy
        assert target.read_bytes() == b"keep"
    else:
        assert size == 2 * MIB, "ranges that are asked for later are of the new one"
        assert target.read_bytes() == old
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    assert place.content("a") == new


def test_an_object_that_is_replaced_while_it_is_read_makes_no_mixture(weed, weed_proxy):
    """The connection breaks, and what is asked for then must be of the version that was begun."""
    weed.store.put("a", b"1" * 3 * MIB)
    reader = weed.another(endpoint_url=weed_proxy.url)
    weed_proxy.fail_next("truncate", operations=["GetObject"])
    pieces = reader.read("a")
    next(pieces)
    weed.store.put("a", b"2" * 3 * MIB)
    with pytest.raises(StoreUnavailable, match="replaced while it was read"):
        list(pieces)


def test_a_file_that_can_not_be_written_to_its_end_does_not_appear(place, tmp_path):
    """The last bytes may not fit, and then a part of them is written without an error."""
    place.store.put("a", random.Random(0).randbytes(1_000_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, before[1]))
    try:
        with pytest.raises(DiskFull, match="no file of this size"):
            place.store.get_file("a", tmp_path / "folder" / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "folder").iterdir()) == []


def test_closing_the_store_ends_a_transfer(weed, weed_proxy, tmp_path):
    """What waits for a part that nobody will send any more would keep the program alive."""
    store = weed.another(
        endpoint_url=weed_proxy.url, part_bytes=5 * MIB, part_concurrency=1, timeout_s=3
    )
    weed_proxy.stall_s = 0.5
    weed_proxy.fail_next("stall_before", operations=["UploadPart"])
    errors = []

    def send():
        try:
            store.put_file("a", random_file(tmp_path / "a", 23 * MIB))
        except (LoradashError, RuntimeError) as error:
            errors.append(error)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    while not weed_proxy.count("UploadPart"):
        time.sleep(0.01)
    store.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [type(error) for error in errors] == [StoreUnavailable]
    assert weed.keys() == []


# Types and keys


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "image/png"),
        ("a.JPG", "image/jpeg"),
        ("a.txt", "text/plain"),
        ("a.json", "application/json"),
        ("a.safetensors", "application/octet-stream"),
        ("a", "application/octet-stream"),
    ],
)
def test_each_object_has_the_type_of_its_name(place, tmp_path, name, kind):
    source = random_file(tmp_path / "source", 10)
    place.store.put(f"1/{name}", b"x")
    place.store.put_file(f"2/{name}", source)
    place.store.put_if(f"3/{name}", b"x", None)
    assert [place.type_of(f"{n}/{name}") for n in (1, 2, 3)] == [kind] * 3


@pytest.mark.parametrize("key", ODD_KEYS)
def test_every_verb_takes_odd_keys(place, tmp_path, key):
    store, source = place.store, random_file(tmp_path / "source", 1000)
    content = source.read_bytes()
    store.put(key, b"first")
    assert place.keys() == [f"{PREFIX}/{key}"], "the key in the bucket is just this one"
    info = store.put_file(key, source)
    assert place.content(key) == content
    assert store.get(key) == content
    assert b"".join(store.read(key, 100, 200)) == content[100:200]
    assert store.head(key).key == info.key == key
    assert [one.key for one in store.list()] == [key]
    folder, _, name = key.rpartition("/")
    if folder:
        assert [one.key for one in store.list(folder)] == [key]
        assert store.folders("") == (key.partition("/")[0],)
    store.get_file(key, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == content
    assert browser().get(store.get_url(key, filename=name, expires_s=60)).content == content
    store.put_if(key, b"second", info.etag)
    assert store.get(key) == b"second"
    store.delete(key)
    assert place.keys() == []


@pytest.mark.parametrize("key", ODD_KEYS)
def test_others_can_write_odd_keys(place, key):
    store, png = place.store, "image/png"
    put = store.put_url(key, content_type=png, size_bytes=1, expires_s=60)
    assert browser().put(put.url, headers=put.headers, content=b"1").is_success
    assert store.get(key) == b"1"
    assert post(store.post_form(key, content_type=png, max_bytes=1, expires_s=60), b"2").is_success
    assert store.get(key) == b"2"
    upload_id = store.begin_upload(key, content_type=png)
    store.finish_upload(key, upload_id, [send_part(store, key, upload_id, 1, b"3")])
    assert store.get(key) == b"3"
    store.abort_upload(key, store.begin_upload(key, content_type=png))
    assert place.uploads() == []
    assert place.keys() == [f"{PREFIX}/{key}"]


def test_odd_keys_are_deleted_together(place):
    assert place.store.capabilities.bulk_delete
    for key in [*ODD_KEYS, "kept & <well>"]:
        place.store.put(key, b"x")
    place.store.delete_many(ODD_KEYS)
    assert place.keys() == [f"{PREFIX}/kept & <well>"]


def test_a_key_that_is_refused_never_reaches_the_server(weed, weed_proxy):
    store = weed.another(endpoint_url=weed_proxy.url)
    for ask in (
        lambda: store.get_url("../a", filename="a", expires_s=1),
        lambda: store.put_url("../a", content_type="a/b", size_bytes=1, expires_s=1),
        lambda: store.post_form("../a", content_type="a/b", max_bytes=1, expires_s=1),
        lambda: store.begin_upload("../a", content_type="a/b"),
        lambda: store.part_url("../a", "x", 1, expires_s=1),
        lambda: store.finish_upload("../a", "x", ["y"]),
        lambda: store.abort_upload("../a", "x"),
        lambda: store.delete_many(["a", "../a"]),
        lambda: list(store.list("../a")),
        lambda: store.folders("../a"),
    ):
        with pytest.raises(InvalidKey):
            ask()
    assert weed_proxy.requests == []


# Lists


@pytest.fixture(scope="module")
def crowd(seaweedfs):
    """5,000 objects: many in one folder, many folders, and some at other places."""
    place = Place(seaweedfs)
    wanted = [
        *(f"files/{n:04d} a+b.png" for n in range(2_150)),
        *(f"folders/{n:04d} & more/x.json" for n in range(1_250)),
        *(f"files-and-more/{n}" for n in range(1_000)),
        *(f"{n}" for n in range(600)),
    ]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda key: place.store.put(key, b"x"), wanted))
    yield place, wanted
    place.close()


def test_a_list_of_thousands_is_complete_and_names_each_once(crowd):
    place, wanted = crowd
    listed = [info.key for info in place.store.list()]
    assert len(listed) == len(wanted) == 5_000
    assert sorted(listed) == sorted(wanted)


def test_a_folder_of_thousands_is_listed_alone(crowd):
    place, wanted = crowd
    listed = list(place.store.list("files"))
    assert sorted(info.key for info in listed) == [key for key in wanted if key[:6] == "files/"]
    assert {info.size_bytes for info in listed} == {1}


def test_thousands_of_folders_are_all_named(crowd):
    place, _ = crowd
    assert place.store.folders("folders") == tuple(f"{n:04d} & more" for n in range(1_250))
    assert place.store.folders("") == ("files", "files-and-more", "folders")


def test_a_list_is_fetched_only_as_far_as_it_is_wanted(crowd, weed_proxy):
    place, _ = crowd
    store = place.another(endpoint_url=weed_proxy.url)
    some = store.list("files")
    for _ in range(1_000):
        next(some)
    assert weed_proxy.count("ListObjectsV2") == 1
    assert sum(1 for _ in some) == 1_150
    assert weed_proxy.count("ListObjectsV2") == 3


def test_a_list_goes_on_after_a_failure_in_the_middle(crowd, weed_proxy):
    place, _ = crowd
    store = place.another(endpoint_url=weed_proxy.url)
    listed = store.list("files")
    first = [next(listed).key]
    for fault in ("503", "reset_middle", "truncate"):
        weed_proxy.fail_next(fault, operations=["ListObjectsV2"])
    first += [info.key for info in listed]
    assert len(first) == len(set(first)) == 2_150


def test_a_server_that_pages_as_it_likes_is_listed_completely(places, juicefs):
    place = places(juicefs)
    wanted = [f"a/{n:04d} x" for n in range(1_010)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda key: place.store.put(key, b""), wanted))
    assert sorted(info.key for info in place.store.list()) == wanted
    place.store.delete_many(wanted)
    assert place.keys() == []


def test_thousands_are_deleted_by_a_few_requests(places, seaweedfs):
    place = places(seaweedfs)
    wanted = [f"a/{n}" for n in range(2_101)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda key: place.store.put(key, b""), [*wanted, "b"]))
    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        store = place.another(endpoint_url=proxy.url)
        assert store.capabilities.bulk_delete
        proxy.forget()
        store.delete_many(wanted)
        assert proxy.operations == {"DeleteObjects": 3}
    assert place.keys() == [f"{PREFIX}/b"]


def test_where_many_can_not_be_deleted_at_once_each_is_deleted(weed, weed_proxy):
    store = weed.another(endpoint_url=weed_proxy.url, overrides={"bulk_delete": False})
    for n in range(20):
        weed.store.put(f"{n}", b"")
    store.delete_many([f"{n}" for n in range(19)])
    assert weed.keys() == [f"{PREFIX}/19"]
    assert weed_proxy.count("DeleteObjects") == 0


# Neighbours


def test_two_prefixes_in_one_bucket_never_see_each_other(places, server):
    one = places(server, prefix="team")
    others = {
        prefix: one.another(prefix=prefix) for prefix in ("team-2", "tea", "other/team", "Team")
    }
    stores = {"team": one.store, **others}
    for prefix, store in stores.items():
        store.put("a/b", prefix.encode())
        store.put(f"only/{prefix}", b"x")
    one.store.put("a/c", b"x")
    for prefix, store in stores.items():
        assert store.get("a/b") == prefix.encode()
        mine = {"a/b", f"only/{prefix}"} | ({"a/c"} if prefix == "team" else set())
        assert {info.key for info in store.list()} == mine
        assert store.folders("") == ("a", "only")
        with pytest.raises(NotFound):
            store.head("only/somebody's")
    with pytest.raises(NotFound):
        others["tea"].get("m/a/b")
    one.store.delete_many([info.key for info in one.store.list()])
    assert list(one.store.list()) == []
    for prefix, store in others.items():
        assert store.get("a/b") == prefix.encode()


def test_leftovers_of_providers_that_are_file_systems_are_not_listed(place):
    place.store.put("a/b.png", b"x")
    left = [
        f"{PREFIX}/empty/",
        f"{PREFIX}/a/empty/",
        f"{PREFIX}/.s3compat_uploads/123/1",
        f"{PREFIX}/a/.s3compat_uploads/123/1",
        f"{PREFIX}/.s3compat_uploads_of_mine/x",
    ]
    if place.server.program == "juicefs":  # SeaweedFS takes it for a slash
        left.append(f"{PREFIX}/back\\slash")
    for key in left:
        place.client.put_object(Bucket=place.bucket, Key=key, Body=b"")
    assert set(left) < set(place.keys(folders=True))
    ours = [".s3compat_uploads_of_mine/x", "a/b.png"]
    assert sorted(info.key for info in place.store.list()) == ours
    assert [info.key for info in place.store.list("a")] == ["a/b.png"]
    assert ".s3compat_uploads" not in place.store.folders("")
    assert ".s3compat_uploads" not in place.store.folders("a")
    assert {".s3compat_uploads_of_mine", "a"} <= set(place.store.folders(""))


# What the server can do


def test_a_complete_server_is_found_to_be_complete(weed):
    found = weed.store.examine()
    assert found.capabilities == weed.store.capabilities == EVERYTHING
    assert found.provider.startswith("S3 compatible (SeaweedFS")
    assert found.notes == ()


def test_a_server_that_ignores_conditions_is_found_out(places, juicefs):
    place = places(juicefs)
    found = place.store.examine()
    assert (found.capabilities.conditional_create, found.capabilities.conditional_replace) == (
        False, False,
    )  # fmt: skip
    assert found.capabilities == Capabilities(
        bulk_delete=True, presign=True, post_policy=True, md5_etag=True
    )
    assert [note.partition(":")[0] for note in found.notes] == [
        "conditional_create", "conditional_replace",
    ]  # fmt: skip
    assert all("ignored" in note for note in found.notes)


def test_the_probe_leaves_nothing_behind(place):
    place.store.examine()
    assert (place.keys(folders=True), place.uploads()) == ([], [])
    assert list(place.store.list()) == []


def test_the_probe_stays_below_the_prefix(weed, weed_proxy):
    weed.another(endpoint_url=weed_proxy.url).examine()
    named = [seen.path for seen in weed_proxy.requests if seen.operation.endswith("tObject")]
    assert named
    for path in named:
        bucket = f"/{weed.bucket}"
        assert path.startswith((f"{bucket}/{PREFIX}/.loradash-probe/", f"{bucket}/?delete")) or (
            path == f"{bucket}/"
        ), path


def test_what_is_set_by_hand_is_so_whatever_would_be_found(places, server):
    for value in (True, False):
        place = places(server, overrides=dict.fromkeys(CAPABILITIES, value))
        found = place.store.examine()
        assert found.capabilities == Capabilities(*[value] * len(CAPABILITIES))
        assert found.notes == ()


def test_what_is_known_is_not_tried(weed, weed_proxy):
    store = weed.another(endpoint_url=weed_proxy.url, overrides={"post_policy": False})
    assert store.capabilities.post_policy is False
    assert store.capabilities.presign is True
    assert weed_proxy.count("PostObject") == 0
    assert weed_proxy.count("DeleteObjects") == 1


def test_the_server_is_examined_once_however_many_ask(weed, weed_proxy):
    store = weed.another(endpoint_url=weed_proxy.url)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: store.examine(), range(8)))
    assert found.count(found[0]) == 8
    assert weed_proxy.count("PostObject") == 2, "a form that is too large, and one that isn't"


@pytest.mark.parametrize("fault", ["503", "reset_after", "truncate"])
@pytest.mark.parametrize(
    ("step", "operations"),
    [
        ("-basics", ()),
        ("-create", ()),
        ("-replace", ()),
        ("-bulk", ()),
        ("", ["DeleteObjects"]),
        ("-presign", ()),
        ("", ["PostObject"]),
        ("-etag", ()),
        ("", ["ListObjectsV2"]),
    ],
    ids=["basics", "create", "replace", "bulk", "delete", "presign", "post", "etag", "list"],
)
def test_a_bad_moment_of_the_line_is_not_taken_for_a_lack(
    weed, weed_proxy, step, operations, fault
):
    store = weed.another(endpoint_url=weed_proxy.url)
    weed_proxy.fail_next(fault, containing=step, operations=operations)
    found = store.examine()
    assert weed_proxy.faults == {fault: 1}
    assert (found.capabilities, found.notes) == (EVERYTHING, ())
    assert weed.keys() == []


@pytest.mark.parametrize(
    ("wrong", "setting"),
    [
        ({"secret_access_key": "not-the-secret"}, "AWS_SECRET_ACCESS_KEY"),
        ({"access_key_id": "NOBODYATALL123456789"}, "AWS_ACCESS_KEY_ID"),
    ],
)
def test_wrong_credentials_are_refused_by_naming_the_setting(place, wrong, setting):
    place.store.put("a", b"x")
    store = place.another(**wrong)
    for ask in (
        store.examine,
        lambda: store.capabilities,
        lambda: store.get("a"),
        lambda: store.put("b", b"x"),
        lambda: list(store.list()),
        lambda: store.delete("a"),
    ):
        with pytest.raises(StoreRefused) as caught:
            ask()
        assert setting in caught.value.remedy
        for text in (str(caught.value), repr(caught.value)):
            assert "not-the-secret" not in text
            assert place.server.secret_access_key not in text
    with pytest.raises(StoreRefused):
        store.head("a")  # such a reply has no text that could tell more
    assert store.state.state == "closed", "it answers"
    assert place.keys() == [f"{PREFIX}/a"]


def test_a_missing_bucket_is_refused_by_naming_the_setting(places, juicefs):
    """SeaweedFS creates buckets for those who may do that."""
    place = places(juicefs, bucket="no-such-bucket")
    for ask in (
        place.store.examine,
        lambda: place.store.get("a"),
        lambda: place.store.put("a", b"x"),
        lambda: list(place.store.list()),
        lambda: place.store.begin_upload("a", content_type="a/b"),
    ):
        with pytest.raises(StoreRefused, match="NoSuchBucket") as caught:
            ask()
        assert "S3_BUCKET" in caught.value.remedy


def test_a_server_that_is_away_is_unavailable_and_the_next_look_finds_it(weed, weed_proxy):
    store = weed.another(endpoint_url=weed_proxy.url)
    with weed_proxy.down():
        for ask in (store.examine, lambda: store.capabilities):
            with pytest.raises(StoreUnavailable) as caught:
                ask()
            assert caught.value.remedy
    time.sleep(1.1)  # until the circuit lets a call through again
    assert store.examine().capabilities == EVERYTHING


# Conditions


@pytest.mark.parametrize("is_new", [True, False])
def test_of_many_writers_of_one_version_one_wins_every_time(weed, is_new):
    """20 races at the same time, of 8 threads each; where one waits, SeaweedFS lets it for 1 s."""
    races, writers = range(20), range(8)
    etags = [None if is_new else weed.store.put(f"{race}", b"begin").etag for race in races]
    together = threading.Barrier(len(races) * len(writers))

    def write(race, writer):
        together.wait(30)
        try:
            return weed.store.put_if(f"{race}", b"%d" % writer, etags[race])
        except PreconditionFailed:
            return None

    with ThreadPoolExecutor(len(races) * len(writers)) as threads:
        results = [[threads.submit(write, race, writer) for writer in writers] for race in races]
    for race in races:
        infos = [result.result() for result in results[race]]
        (winner,) = [writer for writer, info in enumerate(infos) if info]
        assert weed.content(f"{race}") == b"%d" % winner
        assert weed.store.head(f"{race}").etag == infos[winner].etag


LOST_ANSWERS = ["reset_after", "500_after"]


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("fault", LOST_ANSWERS)
def test_an_answer_that_got_lost_is_not_taken_for_a_lost_race(weed, weed_proxy, fault, is_new):
    store = weed.another(endpoint_url=weed_proxy.url)
    etag = None if is_new else weed.store.put("record", b"before").etag
    weed_proxy.fail_next(fault, operations=["PutObject"])
    info = store.put_if("record", b"after", etag)
    assert weed_proxy.faults == {fault: 1}
    assert weed.content("record") == b"after"
    assert info == weed.store.head("record")
    assert store.put_if("record", b"then", info.etag).etag != info.etag


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("fault", ["reset_before", "503"])
def test_a_race_that_was_lost_between_two_tries_is_lost(weed, weed_proxy, fault, is_new):
    store = weed.another(endpoint_url=weed_proxy.url)
    etag = None if is_new else weed.store.put("record", b"before").etag
    weed.store.put("record", b"somebody else's")
    weed_proxy.fail_next(fault, operations=["PutObject"])
    with pytest.raises(PreconditionFailed):
        store.put_if("record", b"mine", etag)
    assert weed_proxy.count("PutObject") == 2
    assert weed.content("record") == b"somebody else's"


def test_a_record_that_is_gone_at_the_second_try_is_another_version_too(weed, weed_proxy):
    store = weed.another(endpoint_url=weed_proxy.url)
    etag = weed.store.put("record", b"before").etag
    weed.store.delete("record")
    weed_proxy.fail_next("503", operations=["PutObject"])
    with pytest.raises(PreconditionFailed):
        store.put_if("record", b"mine", etag)
    assert weed.keys() == []


# Answers that got lost elsewhere


@pytest.mark.parametrize("fault", ["reset_after", "500_after", "error_in_200", "503"])
def test_an_upload_whose_end_got_lost_is_finished(places, server, proxy, tmp_path, fault):
    place = places(server)
    place.store.put("a", b"old")
    store = place.another(endpoint_url=proxy.url, part_bytes=5 * MIB)
    proxy.fail_next(fault, operations=["CompleteMultipartUpload"])
    source = random_file(tmp_path / "a", 6 * MIB)
    info = store.put_file("a", source)
    assert proxy.count("CompleteMultipartUpload") == 2
    assert place.content("a") == source.read_bytes()
    assert info == place.store.head("a")
    assert place.uploads() == []


def test_an_upload_that_is_gone_is_not_taken_for_finished(places, server, proxy):
    """The first try fails, somebody aborts the upload, and an older object is there."""
    place = places(server)
    place.store.put("a", b"old")
    store = place.another(endpoint_url=proxy.url)
    upload_id = store.begin_upload("a", content_type="application/zip")
    etag = send_part(place.store, "a", upload_id, 1, b"new")
    place.store.abort_upload("a", upload_id)
    proxy.fail_next("503", operations=["CompleteMultipartUpload"])
    with pytest.raises(NotFound):
        store.finish_upload("a", upload_id, [etag])
    assert place.content("a") == b"old"


@pytest.mark.parametrize("name", ["416.png", "a-4165.png", "InvalidRange.png"])
def test_a_failure_is_not_taken_for_the_end_of_the_object(weed, weed_proxy, tmp_path, name):
    """What a name or an id in an error's text looks like must not matter."""
    store = weed.another(endpoint_url=weed_proxy.url)
    content = random.Random(0).randbytes(1000)
    weed.store.put(name, content)
    weed_proxy.fail_next("503", operations=["GetObject"])
    store.get_file(name, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == content
    weed_proxy.fail_next("503", operations=["GetObject"])
    assert b"".join(store.read(name)) == content


@pytest.mark.parametrize("code", ["NoSuchBucket", "AccessDenied", "SignatureDoesNotMatch"])
def test_a_key_that_looks_like_an_error_is_a_key(weed, weed_proxy, code):
    store = weed.another(endpoint_url=weed_proxy.url)
    with pytest.raises(NotFound):
        store.get(f"a/{code}")
    weed.store.put(f"a/{code}", b"x")
    weed_proxy.fail_next("503", operations=["GetObject"])
    assert store.get(f"a/{code}") == b"x"


# Providers that aren't here


class Scripted(ThreadingHTTPServer):
    """Answers as it was told to, request by request, and reads at most so fast."""

    def __init__(self, bytes_per_s=10**9):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self):
                self.server.answer(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do  # noqa: N815

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.bytes_per_s = bytes_per_s
        self.answers = []
        self.asked = []
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def store(self, **options):
        url = f"http://127.0.0.1:{self.server_port}"
        config = S3Config("bucket", "id", "secret", endpoint_url=url, policy=QUICK, **options)
        return S3Store(config)

    def answer(self, request):
        self.asked.append(f"{request.command} {request.path}")
        digest, left = hashlib.md5(), int(request.headers.get("Content-Length", 0))
        while left:
            piece = request.rfile.read(min(left, 64 * 1024))
            digest.update(piece)
            left -= len(piece)
            time.sleep(len(piece) / self.bytes_per_s)
        status, content, *more = self.answers.pop(0)
        headers = {
            "ETag": f'"{digest.hexdigest()}"',
            "Content-Length": str(len(content)),
            "Last-Modified": "Wed, 25 Nov 2026 02:37:49 GMT",
            **(more[0] if more else {}),
        }
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)


@pytest.fixture
def scripted():
    with Scripted() as server:
        yield server
        server.shutdown()


def error_reply(code):
    return f"<Error><Code>{code}</Code><Message>Because.</Message></Error>".encode()


def test_a_line_that_is_slow_but_moves_is_not_given_up(scripted, tmp_path):
    """Only silence is a failure: an upload as a whole may take longer than the timeout."""
    scripted.bytes_per_s = 5 * MIB
    scripted.answers = [(200, b"")] * 4
    source = random_file(tmp_path / "a", 16 * MIB)
    assert scripted.store(timeout_s=2).put_file("a", source).size_bytes == 16 * MIB
    assert len(scripted.asked) == 1


@pytest.mark.parametrize("etag", [None, '"0123"'])
def test_two_writers_that_met_are_told_to_try_again(scripted, etag):
    """Amazon's 409: nobody has won or lost yet."""
    scripted.answers = [(409, error_reply("ConditionalRequestConflict")), (200, b"")]
    assert scripted.store().put_if("a", b"x", etag).size_bytes == 1
    scripted.answers = [
        (409, error_reply("ConditionalRequestConflict")),
        (412, error_reply("PreconditionFailed")),
        (200, b"another"),
    ]
    with pytest.raises(PreconditionFailed):
        scripted.store().put_if("a", b"x", etag)
    assert scripted.answers == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(scripted, status):
    store = scripted.store()
    for ask in (
        lambda: store.put("a", b""),
        lambda: store.get("a"),
        lambda: store.delete("a"),
        lambda: store.put_if("a", b"", None),
        lambda: store.abort_upload("a", "x"),
    ):
        scripted.answers = [(status, b""), (status, error_reply("SlowDown")), (200, b"")]
        ask()
        assert scripted.answers == []


@pytest.mark.parametrize("status", [400, 401, 403, 405, 411])
def test_a_refusal_is_not_asked_for_again(scripted, status):
    store = scripted.store()
    for ask in (
        lambda: store.put("a", b""),
        lambda: store.get("a"),
        lambda: store.delete("a"),
        lambda: store.put_if("a", b"", None),
        lambda: list(store.list()),
        lambda: store.begin_upload("a", content_type="a/b"),
        lambda: store.abort_upload("a", "x"),
    ):
        scripted.answers = [(status, error_reply("Whatever"))]
        with pytest.raises(StoreRefused) as caught:
            ask()
        assert caught.value.remedy
        assert scripted.answers == []
    # A reply to HEAD has no text, so a list is asked for that may tell why.
    scripted.answers = [(status, error_reply("Whatever"))] * 3
    with pytest.raises(StoreRefused) as caught:
        store.head("a")
    assert caught.value.remedy
    assert store.state.failures == 0
    assert store.state.state == "closed"


def test_an_object_that_gets_content_while_it_is_asked_for_is_not_empty(scripted, tmp_path):
    """The range begins after its end, and a moment later there is more."""
    scripted.answers = [
        (416, error_reply("InvalidRange")),
        (200, b"12345"),
        (206, b"12345", {"Content-Range": "bytes 0-4/5"}),
    ]
    assert scripted.store().get_file("a", tmp_path / "a").size_bytes == 5
    assert (tmp_path / "a").read_bytes() == b"12345"
    assert [asked.partition(" ")[0] for asked in scripted.asked] == ["GET", "HEAD", "GET"]


# Addresses with the bucket in the host


class HostSeaweed(SeaweedServer):
    """It takes what stands before ``localhost`` for a bucket."""

    def command(self):
        return [*super().command(), "-s3.domainName=localhost"]


class HostJuice(JuiceServer):
    """It takes what stands before ``localhost`` for a bucket."""

    def environment(self):
        return {**super().environment(), "MINIO_DOMAIN": "localhost"}


@pytest.fixture(scope="module", params=[HostSeaweed, HostJuice])
def host_server(request):
    with request.param() as server:
        yield server


def virtual_place(places, server):
    endpoint = f"http://localhost:{server.port}"
    return places(server, endpoint_url=endpoint, addressing="virtual")


def to_this_machine(method, url, headers=None, content=b""):
    """Send a request to the address that a name of `localhost` stands for."""
    parts = urlsplit(url)
    address = f"http://127.0.0.1:{parts.port}{parts.path}?{parts.query}"
    return browser().request(
        method, address, headers={**(headers or {}), "Host": parts.netloc}, content=content
    )


@pytest.mark.parametrize("key", ODD_KEYS)
def test_signed_urls_may_have_the_bucket_in_the_host(places, host_server, key):
    place = virtual_place(places, host_server)
    put = place.store.put_url(key, content_type="image/png", size_bytes=3, expires_s=60)
    assert put.url.startswith(f"http://{place.bucket}.localhost:")
    assert to_this_machine("PUT", put.url, put.headers, b"abc").status_code == 200
    assert place.keys() == [f"{PREFIX}/{key}"]
    get = place.store.get_url(key, filename="x", expires_s=60)
    assert to_this_machine("GET", get).content == b"abc"
    assert refused(to_this_machine("GET", tampered(get)))


def knows_names_below_localhost():
    """Many systems do, others only with an entry in /etc/hosts for each."""
    try:
        return bool(socket.getaddrinfo("bucket.localhost", 80))
    except OSError:
        return False


@pytest.mark.skipif(not knows_names_below_localhost(), reason="no names below localhost here")
def test_every_verb_works_with_the_bucket_in_the_host(places, host_server, tmp_path):
    place = virtual_place(places, host_server)
    store = place.another(
        endpoint_url=f"http://localhost:{host_server.port}", addressing="virtual",
        part_bytes=5 * MIB,
    )  # fmt: skip
    source = random_file(tmp_path / "source", 6 * MIB)
    for key in ODD_KEYS:
        store.put(key, b"x")
        assert store.get(key) == b"x"
    assert sorted(info.key for info in store.list()) == sorted(ODD_KEYS)
    store.delete_many(ODD_KEYS)
    assert place.keys() == []
    store.put_file("a/b", source)
    store.get_file("a/b", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == source.read_bytes() == place.content("a/b")
    assert "a" in store.folders("")
    assert store.capabilities.presign
    assert store.capabilities.post_policy
