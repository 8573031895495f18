"""How a bucket is reached: address, credentials, sizes and patience; and what providers need."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple
from urllib.parse import quote, urlsplit

from loradash.errors import InvalidSettings
from loradash.resilience.circuit import Policy
from loradash.storage.store import Capabilities

Addressing = Literal["auto", "path", "virtual"]

CAPABILITIES = tuple(one.name for one in fields(Capabilities))


class Profile(NamedTuple):
    """What is known of a provider beforehand. Whatever isn't is found out by the probe."""

    name: str
    addressing: Addressing = "path"
    region: str = "us-east-1"
    known: Mapping[str, bool] = {}


# Hosts, and what their providers document; in `region`, \1 stands for the host's part.
_PROFILES = (
    (r"^s3[.-]([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?$", Profile("AWS S3", "virtual", r"\1")),
    (r"^$|\.amazonaws\.com(?:\.cn)?$", Profile("AWS S3", "virtual")),
    (r"\.r2\.cloudflarestorage\.com$", Profile("Cloudflare R2", region="auto",
                                               known={"post_policy": False})),
    (r"(?:^|\.)s3\.([a-z0-9-]+)\.backblazeb2\.com$", Profile("Backblaze B2", region=r"\1")),
    (r"^s3api-([a-z0-9-]+)\.runpod\.io$", Profile(
        "RunPod network volume", region=r"\1",
        known=dict.fromkeys(("conditional_create", "conditional_replace", "bulk_delete",
                             "presign", "post_policy"), False),
    )),
)  # fmt: skip


# Addresses of services, before which some people write the bucket.
_SERVICES = re.compile(
    r"^(?:s3[.-](?:[a-z0-9-]+\.)*amazonaws\.com(?:\.cn)?|s3\.[a-z0-9-]+\.backblazeb2\.com"
    r"|[a-z0-9-]+(?:\.[a-z0-9-]+)?\.r2\.cloudflarestorage\.com"
    r"|[a-z0-9]+\.digitaloceanspaces\.com)$"
)


@dataclass(frozen=True)
class S3Config:
    """One bucket, for one program run. Part sizes and limits in bytes, times in seconds."""

    bucket: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)
    region: str = ""
    endpoint_url: str = ""
    public_endpoint_url: str = ""
    """Where others reach the provider, by URLs that are signed for them; '': by the same address"""
    prefix: str = ""
    addressing: Addressing = "auto"
    part_bytes: int = 16 * 2**20
    part_concurrency: int = 8
    concurrency: int = 16
    timeout_s: float = 60.0
    small_timeout_s: float = 0.0
    """As ``timeout_s``, for requests with small objects if those have another one."""
    complete_timeout_s: float = 7200.0
    policy: Policy = Policy()  # noqa: RUF009 - a named tuple can't be changed
    overrides: Mapping[str, bool] = field(default_factory=dict)
    """Capabilities that are so, whatever the probe finds."""

    @property
    def service_url(self) -> str:
        """The provider's address, '' for Amazon's; the bucket, which some write there, taken off.

        That is certain with known providers only; see `bucket_free_url`.
        """
        endpoint = self.endpoint_url.rstrip("/")
        free = self.bucket_free_url
        known = _SERVICES.match((urlsplit(free or endpoint).hostname or "").lower())
        return free if free and known else endpoint

    @property
    def bucket_free_url(self) -> str:
        """The address without what may be the bucket in it, '' if nothing there looks like it."""
        parts = urlsplit(self.endpoint_url.rstrip("/"))
        host = parts.netloc.removeprefix(f"{self.bucket}.")
        if host != parts.netloc and ("." in host or host.startswith("localhost")):
            return parts._replace(netloc=host).geturl()
        path = f"{parts.path}/".removesuffix(f"/{self.bucket}/")
        return "" if path == f"{parts.path}/" else parts._replace(path=path).geturl()

    @property
    def profile(self) -> Profile:
        """What is known of the provider, by its host."""
        host = (urlsplit(self.service_url).hostname or "").lower()
        for pattern, profile in _PROFILES:
            if match := re.search(pattern, host):
                region = match.expand(profile.region) if "\\" in profile.region else profile.region
                return profile._replace(region=region)
        return Profile("S3 compatible")

    @property
    def region_name(self) -> str:
        """The region that requests are signed for."""
        region = self.region or self.profile.region
        return region.upper() if self.profile.name == "RunPod network volume" else region

    @property
    def is_virtual_hosted(self) -> bool:
        """Whether the bucket's name is part of the host's."""
        if self.addressing == "auto":  # a certificate for *.host doesn't cover names with dots
            return self.profile.addressing == "virtual" and "." not in self.bucket
        return self.addressing == "virtual"

    @property
    def root_url(self) -> str:
        """Where the bucket's keys begin, without a last slash."""
        domain = "amazonaws.com.cn" if self.region_name.startswith("cn-") else "amazonaws.com"
        return self._root(self.service_url or f"https://s3.{self.region_name}.{domain}")

    def _root(self, service_url: str) -> str:
        if not self.is_virtual_hosted:
            return f"{service_url}/{self.bucket}"
        scheme, _, host = service_url.partition("://")
        return f"{scheme}://{self.bucket}.{host}"

    def full_key(self, key: str) -> str:
        """Return a key with what every key in the bucket begins with."""
        return f"{self.prefix}/{key}" if self.prefix else key

    def url(self, key: str = "") -> str:
        """Return the address of an object, or of the bucket."""
        return f"{self.root_url}/{self._path(key)}"

    def public_url(self, key: str = "") -> str:
        """Return the address by which others reach an object, or the bucket."""
        public = self.public_endpoint_url.rstrip("/")
        return f"{self._root(public) if public else self.root_url}/{self._path(key)}"

    def _path(self, key: str) -> str:
        return quote(self.full_key(key), safe="/-_.~") if key else ""


def parse_overrides(text: str) -> dict[str, bool]:
    """Read ``name=on,name=off``. Raises `InvalidSettings` that names what is wrong."""
    found: dict[str, bool] = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        name, _, value = word.partition("=")
        if name not in CAPABILITIES or value not in ("on", "off"):
            raise InvalidSettings(
                f"S3_CAPABILITIES: {word[:80]!r} isn't a capability with =on or =off",
                remedy=f"The capabilities are {', '.join(CAPABILITIES)}.",
            )
        found[name] = value == "on"
    return found
