from urllib.parse import unquote, urlsplit

import pytest

from loradash.errors import InvalidSettings
from loradash.storage.s3.config import CAPABILITIES, S3Config, parse_overrides

SECRET, TOKEN = "the-secret-key", "the-session-token"


def config(endpoint="", **options):
    return S3Config(
        **{
            "bucket": "bucket",
            "access_key_id": "AKID",
            "secret_access_key": SECRET,
            "session_token": TOKEN,
            "endpoint_url": endpoint,
            **options,
        }
    )


# Who it is

PROVIDERS = [
    ("", "AWS S3", "us-east-1", True),
    ("https://s3.us-east-1.amazonaws.com", "AWS S3", "us-east-1", True),
    ("https://S3.Amazonaws.com/", "AWS S3", "us-east-1", True),
    ("https://0123abc.r2.cloudflarestorage.com", "Cloudflare R2", "auto", False),
    ("https://0123abc.eu.r2.cloudflarestorage.com", "Cloudflare R2", "auto", False),
    ("https://s3.us-west-004.backblazeb2.com", "Backblaze B2", "us-west-004", False),
    ("https://S3.eu-central-003.BackblazeB2.com:443", "Backblaze B2", "eu-central-003", False),
    ("https://s3api-eu-ro-1.runpod.io", "RunPod network volume", "EU-RO-1", False),
    ("https://S3API-US-KS-2.runpod.io/", "RunPod network volume", "US-KS-2", False),
    ("http://127.0.0.1:9000", "S3 compatible", "us-east-1", False),
    ("https://minio.example.com", "S3 compatible", "us-east-1", False),
    ("https://amazonaws.com.example.com", "S3 compatible", "us-east-1", False),
    ("https://notamazonaws.com", "S3 compatible", "us-east-1", False),
    ("https://notr2.cloudflarestorage.com", "S3 compatible", "us-east-1", False),
    ("https://s3.us-west-004.backblazeb2.com.example.com", "S3 compatible", "us-east-1", False),
    ("https://runpod.io", "S3 compatible", "us-east-1", False),
]


@pytest.mark.parametrize(("endpoint", "name", "region", "is_virtual"), PROVIDERS)
def test_a_provider_is_known_by_its_host(endpoint, name, region, is_virtual):
    one = config(endpoint)
    assert (one.profile.name, one.region_name, one.is_virtual_hosted) == (name, region, is_virtual)


@pytest.mark.parametrize(
    ("endpoint", "never"),
    [
        ("", set()),
        ("https://a.r2.cloudflarestorage.com", {"post_policy"}),
        (
            "https://s3api-eu-ro-1.runpod.io",
            {"conditional_create", "conditional_replace", "bulk_delete", "presign", "post_policy"},
        ),
        ("https://s3.us-west-004.backblazeb2.com", set()),
        ("http://127.0.0.1:9000", set()),
    ],
)
def test_what_a_provider_documents_it_lacks_is_known_and_nothing_is_promised(endpoint, never):
    known = config(endpoint).profile.known
    assert dict(known) == dict.fromkeys(never, False)
    assert never <= set(CAPABILITIES)


@pytest.mark.parametrize("endpoint", [one[0] for one in PROVIDERS])
def test_a_region_that_is_set_is_the_region(endpoint):
    wanted = "MY-REGION" if "s3api-" in endpoint.lower() else "my-region"
    assert config(endpoint, region="my-region").region_name == wanted


# Where it is


@pytest.mark.parametrize(
    ("endpoint", "addressing", "bucket", "url"),
    [
        ("", "auto", "bucket", "https://bucket.s3.us-east-1.amazonaws.com/"),
        ("", "path", "bucket", "https://s3.us-east-1.amazonaws.com/bucket/"),
        ("", "auto", "with.dots", "https://s3.us-east-1.amazonaws.com/with.dots/"),
        ("", "virtual", "with.dots", "https://with.dots.s3.us-east-1.amazonaws.com/"),
        ("https://a.example", "auto", "bucket", "https://a.example/bucket/"),
        ("https://a.example/", "path", "bucket", "https://a.example/bucket/"),
        ("https://a.example", "virtual", "bucket", "https://bucket.a.example/"),
        ("http://a.example:9000", "virtual", "bucket", "http://bucket.a.example:9000/"),
        ("http://127.0.0.1:9000/", "auto", "bucket", "http://127.0.0.1:9000/bucket/"),
        (
            "https://abc.r2.cloudflarestorage.com",
            "auto",
            "bucket",
            "https://abc.r2.cloudflarestorage.com/bucket/",
        ),
    ],
)
def test_the_bucket_is_in_the_path_or_in_the_host(endpoint, addressing, bucket, url):
    one = config(endpoint, addressing=addressing, bucket=bucket)
    assert one.url() == url
    assert one.url("a/b.png") == f"{url}a/b.png"


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("https://bucket.s3.eu-west-3.amazonaws.com", "https://bucket.s3.eu-west-3.amazonaws.com/"),
        ("https://bucket.s3.amazonaws.com/", "https://bucket.s3.amazonaws.com/"),
        ("https://s3.eu-west-3.amazonaws.com/bucket", "https://bucket.s3.eu-west-3.amazonaws.com/"),
        (
            "https://abc.r2.cloudflarestorage.com/bucket",
            "https://abc.r2.cloudflarestorage.com/bucket/",
        ),
        (
            "https://bucket.abc.eu.r2.cloudflarestorage.com",
            "https://abc.eu.r2.cloudflarestorage.com/bucket/",
        ),
        (
            "https://bucket.s3.us-west-004.backblazeb2.com",
            "https://s3.us-west-004.backblazeb2.com/bucket/",
        ),
        (
            "https://bucket.fra1.digitaloceanspaces.com",
            "https://fra1.digitaloceanspaces.com/bucket/",
        ),
    ],
)
def test_a_bucket_in_a_known_providers_address_is_taken_off(endpoint, url):
    one = config(endpoint)
    assert one.url() == url
    assert one.profile.name == config(one.service_url).profile.name
    assert one.region_name == config(one.service_url).region_name


@pytest.mark.parametrize(
    ("endpoint", "bucket", "free"),
    [
        ("https://bucket.example.com", "bucket", "https://example.com"),
        ("https://example.com/s3/bucket/", "bucket", "https://example.com/s3"),
        ("http://bucket.localhost:9000", "bucket", "http://localhost:9000"),
        ("https://minio.example.com", "bucket", ""),
        ("https://example.com/bucket/s3", "bucket", ""),
        ("https://bucket.com", "bucket", ""),
        ("", "bucket", ""),
    ],
)
def test_what_may_be_a_bucket_in_another_address_is_only_noticed(endpoint, bucket, free):
    one = config(endpoint, bucket=bucket)
    assert one.bucket_free_url == free
    assert one.url() == config(endpoint, bucket=bucket).url()
    if endpoint:
        assert one.url() == f"{endpoint.rstrip('/')}/{bucket}/"


def test_an_address_may_have_a_path():
    endpoint = "https://x.supabase.co/storage/v1/s3"
    assert config(endpoint).url("a") == f"{endpoint}/bucket/a"
    virtual = config(endpoint, addressing="virtual")
    assert virtual.url("a") == "https://bucket.x.supabase.co/storage/v1/s3/a"


@pytest.mark.parametrize(
    ("addressing", "url"),
    [
        ("path", "https://files.example/bucket/a%20b"),
        ("virtual", "https://bucket.files.example/a%20b"),
    ],
)
def test_others_may_have_another_address(addressing, url):
    one = config(
        "http://minio:9000", public_endpoint_url="https://files.example/", addressing=addressing
    )
    assert one.public_url("a b") == url
    assert "minio:9000" in one.url("a b")
    assert config("http://minio:9000").public_url("a") == "http://minio:9000/bucket/a"


def test_amazons_address_is_that_of_the_region():
    one = config(region="eu-west-3")
    assert one.url("a") == "https://bucket.s3.eu-west-3.amazonaws.com/a"


@pytest.mark.parametrize(
    "key",
    ["a b", "a+b", "a%20b", "a#b?c&d=e;f", "Größe/猫 🐈", "a'b(c)*!", "a//b", "-_.~", "…/%/.."],
)
def test_any_key_is_a_plain_path_that_means_just_this_key(key):
    url = config("https://a.example").url(key)
    parts = urlsplit(url)
    assert url.isascii()
    assert (parts.query, parts.fragment) == ("", "")
    assert unquote(parts.path) == f"/bucket/{key}"
    assert "+" not in parts.path, "some servers take it for a space"


@pytest.mark.parametrize("addressing", ["path", "virtual"])
def test_every_key_begins_with_the_prefix(addressing):
    one = config("https://a.example", prefix="some/where", addressing=addressing)
    assert one.full_key("a") == "some/where/a"
    assert one.url("a").endswith("/some/where/a")
    assert "some" not in one.url(), "the bucket itself has no prefix"
    assert config().full_key("a") == "a"


# What is set by hand


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        (" , ,", {}),
        ("presign=off", {"presign": False}),
        (
            " conditional_create=on ,post_policy=off,",
            {"conditional_create": True, "post_policy": False},
        ),
        ("presign=on,presign=off", {"presign": False}),
    ],
)
def test_capabilities_are_read_from_text(text, found):
    assert parse_overrides(text) == found


def test_every_capability_can_be_set():
    for name in CAPABILITIES:
        assert parse_overrides(f"{name}=on") == {name: True}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("presigned=on", "presigned=on"),
        ("presign", "presign"),
        ("presign=", "presign="),
        ("presign=yes", "presign=yes"),
        ("presign=ON", "presign=ON"),
        ("presign = on", "presign = on"),
        ("=on", "=on"),
        ("presign=on post_policy=off", "presign=on post_policy=off"),
        ("presign=on;post_policy=off", "presign=on;post_policy=off"),
        ("presign=on,nonsense", "nonsense"),
        ("x" * 5000, "x" * 80),
    ],
)
def test_text_that_can_not_be_read_is_named_with_what_is_possible(text, wrong):
    with pytest.raises(InvalidSettings) as caught:
        parse_overrides(text)
    assert "S3_CAPABILITIES" in caught.value.message
    assert repr(wrong) in caught.value.message
    assert len(str(caught.value)) < 400
    assert all(name in caught.value.remedy for name in CAPABILITIES)


# Secrets


def test_no_text_of_the_config_tells_a_secret():
    one = config("https://a.example")
    for text in (repr(one), str(one), f"{one}", one.url("a"), one.root_url):
        assert SECRET not in text
        assert TOKEN not in text
    assert "AKID" in repr(one)
