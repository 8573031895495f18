"""Signatures of S3 requests (AWS Signature Version 4), for what obstore can't sign.

Those are URLs with a file name, a content type or a size in them, forms, and requests about parts.
Sources: "Authenticating Requests" in the Amazon S3 API reference (headers, query parameters, POST).
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit

UNSIGNED = "UNSIGNED-PAYLOAD"
MAX_EXPIRY_S = 7 * 24 * 3600

_ALGORITHM = "AWS4-HMAC-SHA256"


class Credentials(NamedTuple):
    """Who signs. ``session_token`` is '' unless the credentials are temporary."""

    access_key_id: str
    secret_access_key: str
    session_token: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.access_key_id!r})"


def _now() -> datetime:
    return datetime.now(UTC)


class Signer:
    """Signs requests to one region's S3."""

    def __init__(
        self, credentials: Credentials, region: str, clock: Callable[[], datetime] = _now
    ) -> None:
        self._credentials = credentials
        self._region = region
        self._clock = clock

    def headers(
        self, method: str, url: str, headers: Mapping[str, str], payload_sha256: str = UNSIGNED
    ) -> dict[str, str]:
        """Return the headers with which to send a request now, the given ones among them."""
        now = self._clock()
        signed = {
            **{name.lower(): value for name, value in headers.items()},
            "host": _host(url),
            "x-amz-content-sha256": payload_sha256,
            "x-amz-date": _stamp(now),
        }
        if self._credentials.session_token:
            signed["x-amz-security-token"] = self._credentials.session_token
        signature = self._signature(method, url, (), signed, payload_sha256, now)
        names = ";".join(sorted(signed))
        signed["authorization"] = (
            f"{_ALGORITHM} Credential={self._credential(now)}, SignedHeaders={names}, "
            f"Signature={signature}"
        )
        return signed

    def presigned_url(
        self, method: str, url: str, headers: Mapping[str, str], expires_s: int
    ) -> str:
        """Return a URL that is good for so many seconds, with exactly these headers.

        What the URL's query asks for is signed too. Raises `ValueError` for a time that S3 refuses.
        """
        if not 1 <= expires_s <= MAX_EXPIRY_S:
            raise ValueError(f"expires_s: {expires_s} isn't between 1 and {MAX_EXPIRY_S}")
        now = self._clock()
        signed = {name.lower(): value for name, value in headers.items()}
        signed["host"] = _host(url)
        query = [
            ("X-Amz-Algorithm", _ALGORITHM),
            ("X-Amz-Credential", self._credential(now)),
            ("X-Amz-Date", _stamp(now)),
            ("X-Amz-Expires", str(expires_s)),
            ("X-Amz-SignedHeaders", ";".join(sorted(signed))),
        ]
        if self._credentials.session_token:
            query.append(("X-Amz-Security-Token", self._credentials.session_token))
        signature = self._signature(method, url, query, signed, UNSIGNED, now)
        joined = "&".join(f"{_encoded(name)}={_encoded(value)}" for name, value in query)
        separator = "&" if urlsplit(url).query else "?"
        return f"{url}{separator}{joined}&X-Amz-Signature={signature}"

    def post_fields(
        self, bucket: str, key: str, *, content_type: str, max_bytes: int, expires_s: int
    ) -> dict[str, str]:
        """Return the fields of a form that may upload one object of at most ``max_bytes``."""
        now = self._clock()
        fields = {
            "key": key,
            "Content-Type": content_type,
            "x-amz-algorithm": _ALGORITHM,
            "x-amz-credential": self._credential(now),
            "x-amz-date": _stamp(now),
        }
        if self._credentials.session_token:
            fields["x-amz-security-token"] = self._credentials.session_token
        conditions: list[Any] = [{"bucket": bucket}, ["content-length-range", 0, max_bytes]]
        conditions += [{name: value} for name, value in fields.items()]
        expiration = (now + timedelta(seconds=expires_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
        document = json.dumps({"expiration": expiration, "conditions": conditions})
        policy = base64.b64encode(document.encode()).decode()
        signature = hmac.digest(self._key(now), policy.encode(), "sha256").hex()
        return {**fields, "policy": policy, "x-amz-signature": signature}

    def _signature(
        self,
        method: str,
        url: str,
        query: Sequence[tuple[str, str]],
        headers: Mapping[str, str],
        payload_sha256: str,
        now: datetime,
    ) -> str:
        parts = urlsplit(url)
        pairs = [*parse_qsl(parts.query, keep_blank_values=True), *query]
        encoded = sorted((_encoded(name), _encoded(value)) for name, value in pairs)
        canonical = "\n".join(
            (
                method,
                parts.path or "/",  # already encoded once, which is what S3 wants
                "&".join(f"{name}={value}" for name, value in encoded),
                *(f"{name}:{' '.join(headers[name].split())}" for name in sorted(headers)),
                "",
                ";".join(sorted(headers)),
                payload_sha256,
            )
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"{_ALGORITHM}\n{_stamp(now)}\n{self._scope(now)}\n{digest}"
        return hmac.digest(self._key(now), text.encode(), "sha256").hex()

    def _key(self, now: datetime) -> bytes:
        key = f"AWS4{self._credentials.secret_access_key}".encode()
        for part in (f"{now:%Y%m%d}", self._region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return key

    def _scope(self, now: datetime) -> str:
        return f"{now:%Y%m%d}/{self._region}/s3/aws4_request"

    def _credential(self, now: datetime) -> str:
        return f"{self._credentials.access_key_id}/{self._scope(now)}"


def _host(url: str) -> str:
    """Return the host as browsers send it: in lower case, without the scheme's own port."""
    parts = urlsplit(url)
    return parts.netloc.lower().removesuffix({"http": ":80", "https": ":443"}.get(parts.scheme, ""))


def _stamp(now: datetime) -> str:
    return now.strftime("%Y%m%dT%H%M%SZ")


def _encoded(text: str) -> str:
    return quote(text, safe="-_.~")
