"""Fetching what strangers name: only from the public internet, bounded, and telling nothing."""

import datetime
import io
import ipaddress
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

from loradash.errors import InvalidRequest
from loradash.services.datasets.public_addresses import is_public
from loradash.services.datasets.url_import import MAX_REDIRECTS, TimeLimits, UrlImporter

from .world import picture

LOOPBACK = ipaddress.ip_address("127.0.0.1")
ZIP = b"PK\x03\x04" + bytes(100)
MIB = 2**20

PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "2001:4860:4860::8888",
          "64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::1", "168.63.129.15", "192.0.1.1",
          "2001:200::1", "2a00:1450::1", "3fff:1000::1", "2606:4700::5efe:808:808"]  # fmt: skip
NOT_PUBLIC = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.2.1", "198.18.0.1", "203.0.113.9",
    "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "fe80::1", "fe80::1%1", "fc00::1", "fd00:ec2::254",
    "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1", "2001::1", "64:ff9b:1::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "2002:7f00:1::1", "2002:a00:1::1", "100::1", "4000::1",
    "192.0.0.1", "192.0.0.9", "192.0.0.192", "192.0.0.255", "192.88.99.1", "168.63.129.16",
    "100.100.100.200", "198.51.100.1", "198.19.255.255", "3fff::1", "3fff:fff:ffff::1",
    "2001:1::1", "2001:2::1", "2001:20::1", "5f00::1", "100:0:0:1::1", "2620:4f:8000::1",
    "::ffff:168.63.129.16", "::ffff:192.0.0.192", "64:ff9b::a83f:8110", "2002:a83f:8110::1",
    "2001:0:4136:e378:8000:63bf:5601:5601", "2606:4700::5efe:10.0.0.1",
    "2606:4700::200:5efe:7f00:1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet_are_public(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_of_networks_around_us_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


def test_python_is_not_asked_what_is_public(monkeypatch):
    def asked(_):
        raise AssertionError("its answer depends on its version")

    for kind in (ipaddress.IPv4Address, ipaddress.IPv6Address):
        for name in ("is_global", "is_private", "is_reserved", "is_multicast", "is_link_local"):
            monkeypatch.setattr(kind, name, property(asked))
    assert all(is_public(ipaddress.ip_address(address)) for address in PUBLIC)
    assert not any(is_public(ipaddress.ip_address(address)) for address in NOT_PUBLIC)


class Site:
    """A web server on 127.0.0.1 that answers as it's told, and remembers what it was asked."""

    def __init__(self, context=None):
        site = self
        self.answers = {}
        self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.asked.append((self.path, dict(self.headers)))
                site.answers[self.path.partition("?")[0]](self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if context:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def gives(self, path, data=b"", status=200, **headers):
        def answer(handler):
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                if value is not None:
                    handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            handler.wfile.write(data)

        self.answers[path] = answer

    def url(self, path, host="127.0.0.1"):
        return f"http://{host}:{self.port}{path}"


@pytest.fixture
def site():
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


def importer(site, **settings):
    """One that may connect to this machine."""
    settings = {"is_allowed": lambda address: address == LOOPBACK, **settings}
    return UrlImporter(ports={site.port}, **settings)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "fetched"


def refused(site, url, target, text, *, max_bytes=MIB, **settings):
    with pytest.raises(InvalidRequest, match=text) as caught:
        importer(site, **settings).fetch(url, target, max_bytes)
    assert caught.value.message.startswith("url: ")
    assert caught.value.remedy
    return str(caught.value)


# What is fetched


def test_a_zip_file_is_fetched(site, target):
    site.gives("/cats.zip", ZIP)
    found = importer(site).fetch(site.url("/cats.zip"), target, MIB)
    assert found == (target, "zip", "")
    assert target.read_bytes() == ZIP


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        ("/a/cat.png", "png", "cat.png"),
        ("/cat.PNG", "png", "cat.PNG"),
        ("/cat.jpg", "png", "cat.png"),
        ("/cat.jpeg", "jpeg", "cat.jpeg"),
        ("/cat.jpg", "jpeg", "cat.jpg"),
        ("/cat", "webp", "cat.webp"),
        ("/cat.php", "bmp", "cat.bmp"),
        ("/", "png", "image.png"),
        ("/.hidden", "png", "image.png"),
        ("/..%2f..%2fetc%2fpasswd", "png", "passwd.png"),
        ("/%D0%BA%D0%BE%D1%82.png", "png", "кот.png"),
        ("/a%0Ab.png", "png", "image.png"),
        ("/" + "x" * 300, "png", "image.png"),
    ],
)
@pytest.mark.parametrize("said", ["text/html", "application/zip", None])
def test_the_first_bytes_tell_what_it_is_and_the_address_its_name(
    site, target, path, kind, name, said
):
    site.gives(path, picture_of(kind), Content_Type=said)
    found = importer(site).fetch(f"{site.url(path)}?size=large&name=x.gif#top", target, MIB)
    assert (found.kind, found.name) == (kind, name)


def picture_of(kind):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(1))).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"<html>", b"8BPS", b"%PDF-1.7", b"\x1f\x8b\x08", b"RIFF0000WAVE", b"PK\x07\x08"],
)
def test_anything_else_is_refused(site, target, data):
    site.gives("/cats.zip", data, Content_Type="application/zip")
    refused(site, site.url("/cats.zip"), target, "neither a zip file nor")


def test_the_request_says_little_and_names_the_host(site, target, resolve):
    site.gives("/cats.zip", ZIP)
    resolve({"cats.test": ["127.0.0.1"]})
    importer(site).fetch(site.url("/cats.zip?a=1", "cats.test"), target, MIB)
    ((path, headers),) = site.asked
    assert path == "/cats.zip?a=1"
    assert headers == {
        "Host": f"cats.test:{site.port}", "User-Agent": "loradash", "Accept": "*/*",
        "Accept-Encoding": "identity",
    }  # fmt: skip


# Addresses that are refused before anything is asked


@pytest.mark.parametrize(
    "url",
    [
        "", "cats.zip", "//host/cats.zip", "/etc/passwd", "file:///etc/passwd", "ftp://host/a.zip",
        "gopher://host:80/_", "data:image/png;base64,AAAA", "s3://bucket/key", "javascript:x",
        "http://", "http:///a.zip", "https://", "ws://host/a", "http+unix://x/a",
    ],
)  # fmt: skip
def test_addresses_that_are_not_of_the_web_are_refused(target, url):
    with pytest.raises(InvalidRequest, match=r"isn't an (http or https )?address"):
        UrlImporter().fetch(url, target, MIB)


@pytest.mark.parametrize(
    "url",
    [
        "http://a\nb/",
        "http://[::1/",
        "http://host:port/",
        "http://host:99999/",
        "http://a b/",
        "http://0177.0.0.1/",
    ],
)
def test_addresses_that_are_broken_are_refused(target, url):
    with pytest.raises(InvalidRequest, match=r"^url: "):
        UrlImporter().fetch(url, target, MIB)


def test_an_address_without_end_is_refused(target):
    with pytest.raises(InvalidRequest, match="5,000 characters"):
        UrlImporter().fetch("http://host/" + "x" * 4988, target, MIB)


@pytest.mark.parametrize("user", ["me@", "me:secret@", ":secret@"])
def test_addresses_with_credentials_are_refused_and_not_repeated(target, user):
    with pytest.raises(InvalidRequest, match="user name or password") as caught:
        UrlImporter().fetch(f"http://{user}8.8.8.8/a.zip", target, MIB)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("port", [0, 22, 6379, 8000, 8080, 65535])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_other_ports_than_those_of_the_web_are_refused(target, scheme, port):
    with pytest.raises(InvalidRequest, match=f"port {port} isn't one of 80, 443"):
        UrlImporter().fetch(f"{scheme}://8.8.8.8:{port}/a.zip", target, MIB)


REAL_GETADDRINFO = socket.getaddrinfo
REAL_CONNECT = socket.create_connection


def resolving(names):
    """A resolver that knows these names only, and numbers as the real one does."""

    def getaddrinfo(host, port, *arguments, **named):
        if host not in names:
            return REAL_GETADDRINFO(host, port, *arguments, **named, flags=socket.AI_NUMERICHOST)
        found = names[host]
        kinds = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [
            (kinds[ipaddress.ip_address(one).version], socket.SOCK_STREAM, 6, "", (one, port))
            for one in (found() if callable(found) else found)
        ]

    return getaddrinfo


@pytest.fixture
def resolve(monkeypatch):
    """A function that sets what names lead to."""
    return lambda names: monkeypatch.setattr(socket, "getaddrinfo", resolving(names))


@pytest.fixture
def no_connections(monkeypatch):
    def connect(*_, **__):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket, "create_connection", connect)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "127.1", "0x7f.1", "2130706433", "0", "0.0.0.0",
        "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "10.0.0.1", "192.168.0.1",
        "169.254.169.254", "[fd00:ec2::254]", "100.100.100.200", "[64:ff9b::7f00:1]",
        "127.0.0.1.", "localhost.",
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_hosts_around_us_are_refused_however_they_are_written(target, no_connections, scheme, host):
    with pytest.raises(InvalidRequest, match="isn't a host of the public internet"):
        UrlImporter().fetch(f"{scheme}://{host}/a.zip", target, MIB)


@pytest.mark.parametrize("address", NOT_PUBLIC)
@pytest.mark.parametrize("beside", [[], ["8.8.8.8"]])
def test_names_that_lead_to_networks_around_us_are_refused_and_the_address_is_not_told(
    target, resolve, no_connections, address, beside
):
    resolve({"evil.test": [*beside, address]})
    with pytest.raises(InvalidRequest, match="isn't a host of the public") as caught:
        UrlImporter().fetch("http://evil.test/a.zip", target, MIB)
    assert address not in str(caught.value)


def test_a_name_that_is_not_there_is_refused_with_the_same_words(target, resolve, no_connections):
    """Else one could try which names a private network has."""
    resolve({"here.test": ["10.0.0.1"]})
    texts = []
    for name in ("here.test", "gone.test"):
        with pytest.raises(InvalidRequest) as caught:
            UrlImporter().fetch(f"http://{name}/a.zip", target, MIB)
        texts.append(str(caught.value).replace(name, "name"))
    assert texts[0] == texts[1]


def test_the_connection_goes_to_the_address_that_was_checked(site, target, monkeypatch, resolve):
    """The name leads to a public address first, and to this machine whenever it's asked again."""
    answers = iter([["93.184.216.34"]])
    resolve({"evil.test": lambda: next(answers, ["127.0.0.1"])})
    connected = []

    def connect(address, *arguments, **named):
        connected.append(address)
        return REAL_CONNECT(("127.0.0.1", site.port), *arguments, **named)

    monkeypatch.setattr(socket, "create_connection", connect)
    site.gives("/a.zip", ZIP)
    found = UrlImporter(ports={site.port}).fetch(site.url("/a.zip", "evil.test"), target, MIB)
    assert found.kind == "zip"
    assert connected == [("93.184.216.34", site.port)]


def test_the_next_address_is_tried_if_one_does_not_answer(site, target, monkeypatch, resolve):
    resolve({"cats.test": ["127.0.0.2", "127.0.0.1"]})
    tried = []

    def connect(address, *arguments, **named):
        tried.append(address[0])
        return REAL_CONNECT(address, *arguments, **named)

    monkeypatch.setattr(socket, "create_connection", connect)
    site.gives("/a.zip", ZIP)
    fetch = importer(site, is_allowed=lambda address: address.is_loopback).fetch
    assert fetch(site.url("/a.zip", "cats.test"), target, MIB).kind == "zip"
    assert tried == ["127.0.0.2", "127.0.0.1"]


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/b.zip", "b.zip", "absolute"])
def test_redirects_are_followed(site, target, status, location):
    where = site.url("/b.zip") if location == "absolute" else location
    site.gives("/a.zip", b"moved", status, Location=where)
    site.gives("/b.zip", ZIP)
    assert importer(site).fetch(site.url("/a.zip"), target, MIB).kind == "zip"
    assert target.read_bytes() == ZIP


def chain(site, number):
    for n in range(number):
        site.gives(f"/{n}", b"", 302, Location=f"/{n + 1}")
    site.gives(f"/{number}", ZIP)
    return site.url("/0")


def test_as_many_redirects_as_are_allowed_are_followed_and_no_more(site, target):
    assert importer(site).fetch(chain(site, MAX_REDIRECTS), target, MIB).kind == "zip"
    refused(site, chain(site, MAX_REDIRECTS + 1), target, "more than 5 redirects")
    assert len(site.asked) == 2 * (MAX_REDIRECTS + 1)


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("http://169.254.169.254:{port}/latest/meta-data/", "isn't a host of the public"),
        ("http://localhost.evil.invalid:{port}/", "isn't a host of the public"),
        ("//10.0.0.1:{port}/x", "isn't a host of the public"),
        ("http://[::1]:{port}/", "isn't a host of the public"),
        ("http://127.0.0.1:22/", "port 22 isn't one of"),
        ("http://127.0.0.1/", "port 80 isn't one of"),
        ("file:///etc/passwd", "isn't an http or https address"),
        ("http://me:secret@127.0.0.1:{port}/", "user name or password"),
        ("http://0177.0.0.1/", "isn't an address"),
        ("/" + "x" * 3000, "characters"),
    ],
)
def test_redirects_are_looked_at_as_the_first_address_is(site, target, location, text):
    site.gives("/a.zip", b"", 302, Location=location.format(port=site.port))
    refused(site, site.url("/a.zip"), target, text)
    assert len(site.asked) == 1
    assert not target.exists()


def test_a_redirect_to_nowhere_is_refused(site, target):
    site.gives("/a.zip", b"", 302)
    refused(site, site.url("/a.zip"), target, "answered 302")


@pytest.mark.parametrize("status", [201, 204, 206, 400, 401, 403, 404, 500, 503])
def test_other_replies_are_refused_without_their_content(site, target, status):
    site.gives("/a.zip", b"" if status == 204 else b"a secret", status)
    text = refused(site, site.url("/a.zip"), target, f"answered {status}")
    assert "secret" not in text
    assert not target.exists()


# Limits


def test_a_file_of_the_limits_size_is_taken_and_one_more_byte_is_not(site, target):
    site.gives("/a.zip", ZIP)
    assert importer(site).fetch(site.url("/a.zip"), target, len(ZIP)).kind == "zip"
    refused(site, site.url("/a.zip"), target, "larger than 103 B", max_bytes=len(ZIP) - 1)


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(65536))
    except OSError:
        pass


def test_a_file_without_end_is_refused_where_the_limit_is(site, target):
    site.answers["/a.zip"] = endless
    refused(site, site.url("/a.zip"), target, "larger than", max_bytes=10 * MIB)
    assert target.stat().st_size <= 10 * MIB


def test_a_size_that_is_said_is_believed_if_it_is_too_large(site, target):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**15))
        handler.end_headers()

    site.answers["/a.zip"] = answer
    refused(site, site.url("/a.zip"), target, "larger than")
    assert not target.exists()


def test_a_file_that_breaks_off_is_refused(site, target):
    site.gives("/a.zip", ZIP, Content_Length=str(len(ZIP) + 1))
    refused(site, site.url("/a.zip"), target, "didn't return the file")


def silent(handler):
    time.sleep(5)


def dripping_headers(handler):
    for _ in range(500):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: "[:1] if _ == 0 else b"x")
        time.sleep(0.02)


def dripping_body(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(500):
        handler.wfile.write(b"x")
        time.sleep(0.02)


def endless_continue(handler):
    try:
        while True:
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            time.sleep(0.001)
    except OSError:
        pass


@pytest.mark.parametrize("answer", [silent, dripping_headers, dripping_body, endless_continue])
def test_a_slow_server_is_given_up(site, target, answer):
    site.answers["/a.zip"] = answer
    began_s = time.monotonic()
    times = TimeLimits(connect_s=0.5, read_s=0.5, total_s=1)
    refused(site, site.url("/a.zip"), target, "too slow|didn't return", times=times)
    assert time.monotonic() - began_s < 4


def test_no_single_step_takes_longer_than_everything_may(site, target):
    site.answers["/a.zip"] = silent
    began_s = time.monotonic()
    times = TimeLimits(connect_s=60, read_s=60, total_s=0.5)
    refused(site, site.url("/a.zip"), target, "too slow", times=times)
    assert time.monotonic() - began_s < 3


def test_redirects_share_one_time_limit(site, target):
    def slowly(handler):
        time.sleep(0.4)
        handler.send_response(302)
        handler.send_header("Location", "/a.zip")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    site.answers["/a.zip"] = slowly
    times = TimeLimits(connect_s=1, read_s=1, total_s=1)
    refused(site, site.url("/a.zip"), target, "too slow", times=times)
    assert len(site.asked) <= 3


def test_a_server_that_is_away_is_told(target):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fetch = UrlImporter(ports={port}, is_allowed=lambda address: True).fetch
    with pytest.raises(InvalidRequest, match="didn't return the file"):
        fetch(f"http://127.0.0.1:{port}/a.zip", target, MIB)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for cats.test, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cats.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("cats.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tls") / "cats.pem"
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(pem) + secret)
    return path


@pytest.fixture
def secure_site(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked = []
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    site = Site(context)
    site.names = asked
    site.gives("/a.zip", ZIP)
    yield site
    site.server.shutdown()
    site.server.server_close()


def trusting(certificate):
    return ssl.create_default_context(cafile=certificate)


def fetched(site, host, target, context=None):
    fetch = importer(site, ssl_context=context).fetch
    return fetch(f"https://{host}:{site.port}/a.zip", target, MIB)


def test_tls_is_spoken_with_the_name_and_not_with_the_address(
    secure_site, certificate, target, resolve
):
    resolve({"cats.test": ["127.0.0.1"]})
    assert fetched(secure_site, "cats.test", target, trusting(certificate)).kind == "zip"
    assert secure_site.names == ["cats.test"]
    assert secure_site.asked[0][1]["Host"] == f"cats.test:{secure_site.port}"


def test_a_certificate_of_another_name_is_refused(secure_site, certificate, target, resolve):
    resolve({"dogs.test": ["127.0.0.1"]})
    with pytest.raises(InvalidRequest, match="certificate isn't trusted"):
        fetched(secure_site, "dogs.test", target, trusting(certificate))
    assert secure_site.asked == []


def test_a_certificate_that_nobody_vouches_for_is_refused(secure_site, target, resolve):
    resolve({"cats.test": ["127.0.0.1"]})
    with pytest.raises(InvalidRequest, match="certificate isn't trusted"):
        fetched(secure_site, "cats.test", target)
    assert secure_site.asked == []
