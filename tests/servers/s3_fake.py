"""A small S3 server in this program that does wrong what real providers do wrong, by choice.

It knows one bucket, keeps objects in memory and checks signatures (by botocore, which has no code
in common with ours), except of signed URLs and forms, which it refuses. Its faults can be switched
while it runs (`FakeS3.faults`); each is what some provider or gateway does:

- ``range_ignored``: a Range is answered with 200 and the whole object.
- ``missing_is_403``: a missing object is answered with 403, and lists are refused: what Amazon does
  for credentials without the right to list.
- ``missing_is_403_listed``: the first alone; lists are given.
- ``no_token``: a list is cut off, says so, and doesn't say how to go on.
- ``no_token_v1``: the same, of a server that knows only the first version of lists (``marker``).
- ``cut_off``: a list is cut off, and doesn't say so.
- ``plus_is_plus``: in lists with ``encoding-type=url`` a ``+`` stands for itself.
- ``always_encoded``: keys are encoded although nobody asked for it.
- ``wrong_region``: 400 that names the bucket's region.
- ``moved_301`` ``moved_307``: the bucket is elsewhere; with the region, or with an address.
- ``to_https``: everything is redirected to the same address with https.
- ``web_page``: everything is answered with a page for people, and 200.
- ``opaque_etags``: etags aren't MD5s.
- ``lost_completion``: the end of an upload in parts takes effect, and its answer gets lost once.
- ``lost_upload``: at its end an upload in parts is lost, without an answer.
- ``wants_md5``: parts without ``Content-MD5`` are refused, as for buckets with object lock.
- ``no_metadata``: metadata of objects isn't kept.

As a process: ``python -m tests.servers.s3_fake --fault NAME --port N`` says where it listens.
"""

import argparse
import base64
import hashlib
import secrets
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit
from xml.sax.saxutils import escape

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

FAULTS = (
    "range_ignored", "missing_is_403", "missing_is_403_listed", "no_token", "no_token_v1",
    "cut_off", "plus_is_plus",
    "always_encoded", "wrong_region", "moved_301", "moved_307", "to_https",
    "web_page", "opaque_etags", "lost_completion", "lost_upload", "wants_md5", "no_metadata",
)  # fmt: skip
REGION, RIGHT_REGION = "us-east-1", "eu-central-7"
_MAX_KEYS = 1000
_XML = '<?xml version="1.0" encoding="UTF-8"?>\n'


class Stored(NamedTuple):
    content: bytes
    etag: str
    modified_s: float
    headers: dict[str, str]


class Refused(Exception):
    """An error reply."""

    def __init__(self, status: int, code: str, more: str = "", **headers: str) -> None:
        super().__init__(code)
        self.status, self.code, self.more = status, code, more
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class FakeS3:
    """The server; a context manager. ``path`` is what its address has behind the host."""

    bucket = "the-bucket"

    def __init__(self, *faults: str, path: str = "", port: int = 0) -> None:
        self.faults = set(faults)
        self.path = path
        self.access_key_id = secrets.token_hex(10).upper()
        self.secret_access_key = secrets.token_hex(20)
        self.objects: dict[str, Stored] = {}
        self.asked: list[str] = []
        """Method and address of each request."""
        self.uploads: dict[str, tuple[str, dict[str, str], dict[int, bytes]]] = {}
        self.max_keys = _MAX_KEYS
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._http.daemon_threads = True

    @property
    def port(self) -> int:
        return self._http.server_port

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def serve(self) -> None:
        """Serve until the program ends."""
        self._http.serve_forever()

    def etag_of(self, content: bytes) -> str:
        if "opaque_etags" in self.faults:
            return f'"opaque-{hashlib.sha256(content).hexdigest()[:20]}"'
        return f'"{hashlib.md5(content).hexdigest()}"'


def _handler(server: FakeS3) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            _Exchange(server, self).answer()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class _Exchange:
    """One request and its reply."""

    def __init__(self, server: FakeS3, http: BaseHTTPRequestHandler) -> None:
        self.server, self.http, self.method = server, http, http.command
        parts = urlsplit(http.path)
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.raw_path = parts.path
        self.headers = {name.lower(): value for name, value in http.headers.items()}
        self.body = http.rfile.read(int(self.headers.get("content-length") or 0))

    @property
    def faults(self) -> set[str]:
        return self.server.faults

    def answer(self) -> None:
        with self.server.lock:
            self.server.asked.append(f"{self.method} {self.http.path}")
            try:
                if not self.is_misdirected():
                    self.check_signature()
                    self.route()
            except Refused as refused:
                text = f"<Error><Code>{refused.code}</Code><Message>So it is.</Message>"
                self.reply(refused.status, f"{text}{refused.more}</Error>", **refused.headers)

    def is_misdirected(self) -> bool:
        """Whether something else than the bucket has answered."""
        faults = self.faults
        if "web_page" in faults:
            self.reply(200, "<!DOCTYPE html><html><body>Welcome</body></html>")
            return True
        if "to_https" in faults:
            where = f"https://127.0.0.1:{self.server.port}{self.http.path}"
            raise Refused(301, "", Location=where)
        if "moved_301" in faults:
            raise Refused(301, "PermanentRedirect", f"<Endpoint>{self.server.bucket}.s3."
                          f"{RIGHT_REGION}.amazonaws.com</Endpoint>",
                          x_amz_bucket_region=RIGHT_REGION)  # fmt: skip
        if "moved_307" in faults:
            where = f"http://elsewhere.invalid:{self.server.port}{self.http.path}"
            raise Refused(307, "TemporaryRedirect", "<Endpoint>elsewhere.invalid</Endpoint>",
                          Location=where)  # fmt: skip
        if "wrong_region" in faults and f"/{RIGHT_REGION}/" not in self.headers.get(
            "authorization", ""
        ):
            raise Refused(400, "AuthorizationHeaderMalformed", f"<Region>{RIGHT_REGION}</Region>",
                          x_amz_bucket_region=RIGHT_REGION)  # fmt: skip
        return False

    def check_signature(self) -> None:
        """Raise unless the request is signed by our key, as botocore reckons it."""
        if "X-Amz-Signature" in self.query or (self.method == "POST" and not self.query):
            raise Refused(403, "AccessDenied")
        given = self.headers.get("authorization", "")
        if not given:
            raise Refused(403, "AccessDenied")
        fields = dict(one.strip().split("=", 1) for one in given.partition(" ")[2].split(","))
        key_id, _, region, *_ = fields["Credential"].split("/")
        signed = {name: self.headers[name] for name in fields["SignedHeaders"].split(";")}
        auth = S3SigV4Auth(
            Credentials(self.server.access_key_id, self.server.secret_access_key), "s3", region
        )
        request = AWSRequest(
            self.method, f"http://{self.headers['host']}{self.http.path}", headers=signed
        )
        request.context["timestamp"] = self.headers["x-amz-date"]
        wanted = auth.signature(
            auth.string_to_sign(request, auth.canonical_request(request)), request
        )
        if (key_id, fields["Signature"]) != (self.server.access_key_id, wanted):
            raise Refused(403, "SignatureDoesNotMatch")
        payload = self.headers["x-amz-content-sha256"]
        if payload not in ("UNSIGNED-PAYLOAD", hashlib.sha256(self.body).hexdigest()):
            raise Refused(400, "XAmzContentSHA256Mismatch")

    def route(self) -> None:
        path = self.raw_path.removeprefix(self.server.path)
        if not self.raw_path.startswith(f"{self.server.path}/"):
            raise Refused(404, "NoSuchKey")
        bucket, _, key = unquote(path[1:]).partition("/")
        if bucket != self.server.bucket:
            raise Refused(404, "NoSuchBucket")
        if not key:
            return self.delete_many() if "delete" in self.query else self.list()
        if "uploads" in self.query or "uploadId" in self.query:
            return self.upload(key)
        verbs = {"PUT": self.put, "GET": self.get, "HEAD": self.get, "DELETE": self.delete}
        if self.method not in verbs:
            raise Refused(405, "MethodNotAllowed")
        return verbs[self.method](key)

    def put(self, key: str) -> None:
        there = self.server.objects.get(key)
        if self.headers.get("if-none-match") == "*" and there:
            raise Refused(412, "PreconditionFailed")
        wanted = self.headers.get("if-match")
        if wanted and (not there or there.etag != wanted):
            raise Refused(412, "PreconditionFailed")
        self.check_md5()
        etag = self.server.etag_of(self.body)
        self.server.objects[key] = Stored(self.body, etag, time.time(), self.kept())
        self.reply(200, "", ETag=etag)

    def check_md5(self) -> None:
        given = self.headers.get("content-md5")
        if given and base64.b64decode(given) != hashlib.md5(self.body).digest():
            raise Refused(400, "BadDigest")

    def kept(self) -> dict[str, str]:
        """The headers that an object keeps."""
        names = [name for name in self.headers if name.startswith("x-amz-meta-")]
        if "no_metadata" in self.faults:
            names = []
        return {name: self.headers[name] for name in [*names, "content-type"]
                if name in self.headers}  # fmt: skip

    def found(self, key: str) -> Stored:
        if key in self.server.objects:
            return self.server.objects[key]
        if self.faults & {"missing_is_403", "missing_is_403_listed"}:
            raise Refused(403, "AccessDenied")
        raise Refused(404, "NoSuchKey")

    def get(self, key: str) -> None:
        found = self.found(key)
        if self.headers.get("if-match", found.etag) != found.etag:
            raise Refused(412, "PreconditionFailed")
        headers = {
            "ETag": found.etag, "Last-Modified": formatdate(found.modified_s, usegmt=True),
            **found.headers,
        }  # fmt: skip
        wanted = self.headers.get("range", "")
        if not wanted or "range_ignored" in self.faults:
            return self.reply(200, found.content, **headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        size = len(found.content)
        start = int(first)
        if start >= size:
            raise Refused(416, "InvalidRange")
        end = min(size, int(last) + 1) if last else size
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        return self.reply(206, found.content[start:end], **headers)

    def delete(self, key: str) -> None:
        self.server.objects.pop(key, None)
        self.reply(204, "")

    def delete_many(self) -> None:
        text = self.body.decode()
        for piece in text.split("<Key>")[1:]:
            key = piece.partition("</Key>")[0]
            for sign, meant in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
                key = key.replace(sign, meant)
            self.server.objects.pop(key, None)
        self.reply(200, "<DeleteResult></DeleteResult>")

    def upload(self, key: str) -> None:
        uploads = self.server.uploads
        if "uploads" in self.query:
            upload_id = secrets.token_hex(8)
            uploads[upload_id] = (key, self.kept(), {})
            return self.reply(
                200,
                "<InitiateMultipartUploadResult>"
                f"<UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>",
            )
        upload_id = self.query["uploadId"]
        if upload_id not in uploads:
            raise Refused(404, "NoSuchUpload")
        _, kept, parts = uploads[upload_id]
        if self.method == "PUT":
            if "wants_md5" in self.faults and "content-md5" not in self.headers:
                raise Refused(400, "InvalidRequest", "<Why>Content-MD5 is required</Why>")
            self.check_md5()
            parts[int(self.query["partNumber"])] = self.body
            return self.reply(200, "", ETag=self.server.etag_of(self.body))
        del uploads[upload_id]
        if self.method == "DELETE":
            return self.reply(204, "")
        if "lost_upload" in self.faults:
            self.http.close_connection = True
            return None
        content = b"".join(parts[number] for number in sorted(parts))
        digests = b"".join(hashlib.md5(parts[number]).digest() for number in sorted(parts))
        etag = f'"{hashlib.md5(digests).hexdigest()}-{len(parts)}"'
        if "opaque_etags" in self.faults:
            etag = self.server.etag_of(content)
        self.server.objects[key] = Stored(content, etag, time.time(), kept)
        if "lost_completion" in self.faults:
            self.server.faults.discard("lost_completion")
            self.http.close_connection = True
            return None
        return self.reply(
            200,
            f"<CompleteMultipartUploadResult><ETag>{escape(etag)}</ETag>"
            "</CompleteMultipartUploadResult>",
        )

    def list(self) -> None:
        if "missing_is_403" in self.faults:
            raise Refused(403, "AccessDenied")
        query, faults = self.query, self.faults
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        if "no_token_v1" in faults:
            after = query.get("marker", "")
        else:
            after = query.get("continuation-token") or query.get("start-after", "")
        wanted = min(int(query.get("max-keys", _MAX_KEYS)), self.server.max_keys)
        rows = [row for row in self.rows(prefix, delimiter) if row > after]
        page, is_cut = rows[:wanted], len(rows) > wanted
        said = is_cut and "cut_off" not in faults
        tells = said and not faults & {"no_token", "no_token_v1"}
        token = (
            f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if tells else ""
        )
        is_encoded = query.get("encoding-type") == "url" or "always_encoded" in faults
        text = (
            f"<ListBucketResult><Name>{self.server.bucket}</Name>"
            f"<IsTruncated>{str(said).lower()}</IsTruncated>{token}"
            f"{'<EncodingType>url</EncodingType>' if is_encoded else ''}"
            f"{''.join(self.row(row, is_encoded) for row in page)}</ListBucketResult>"
        )
        self.reply(200, text)

    def rows(self, prefix: str, delimiter: str) -> Iterator[str]:
        """Keys in their order, and what they have in common up to the delimiter."""
        seen = ""
        for key in sorted(self.server.objects, key=str.encode):
            if not key.startswith(prefix):
                continue
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            row = f"{prefix}{head}{found}" if found else key
            if row != seen:
                yield row
            seen = row

    def row(self, row: str, is_encoded: bool) -> str:
        shown = escape(row)
        if is_encoded:
            # Amazon's way is the one of forms; several others encode a path.
            shown = quote(row, safe="/+") if "plus_is_plus" in self.faults else quote_plus(row, "/")
        if row not in self.server.objects:
            return f"<CommonPrefixes><Prefix>{shown}</Prefix></CommonPrefixes>"
        found = self.server.objects[row]
        modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(found.modified_s))
        return (
            f"<Contents><Key>{shown}</Key><LastModified>{modified}</LastModified>"
            f"<ETag>{escape(found.etag)}</ETag><Size>{len(found.content)}</Size></Contents>"
        )

    def reply(self, status: int, content: str | bytes, **headers: str) -> None:
        if isinstance(content, str):
            content = (_XML + content).encode() if content.startswith("<") else content.encode()
        self.http.send_response(status)
        given = {"Content-Type": "application/xml", **headers, "Content-Length": str(len(content))}
        if "content-type" in headers:
            del given["Content-Type"]
        for name, value in given.items():
            if status != 204 or name != "Content-Length":
                self.http.send_header(name, value)
        self.http.end_headers()
        if self.method != "HEAD" and status != 204:
            self.http.wfile.write(content)


def main() -> None:
    """Serve as a process."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--fault", action="append", default=[], choices=FAULTS)
    options.add_argument("--path", default="")
    options.add_argument("--port", type=int, default=0)
    chosen: Any = options.parse_args()
    server = FakeS3(*chosen.fault, path=chosen.path, port=chosen.port)
    print(
        f"S3_ENDPOINT_URL={server.endpoint_url} S3_BUCKET={server.bucket} "
        f"AWS_ACCESS_KEY_ID={server.access_key_id} "
        f"AWS_SECRET_ACCESS_KEY={server.secret_access_key}",
        flush=True,
    )
    server.serve()


if __name__ == "__main__":
    main()
