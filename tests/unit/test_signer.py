"""Signatures are compared with those of botocore, made at the same second of the same things."""

import base64
import functools
import hashlib
import json
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote, urlsplit

import boto3
import pytest
from botocore.auth import S3SigV4Auth, S3SigV4PostAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials as BotoCredentials

from loradash.storage.s3.config import S3Config
from loradash.storage.s3.signer import MAX_EXPIRY_S, UNSIGNED, Credentials, Signer

ID, SECRET = "AKIDEXAMPLE", "s3cret/of+ours=and/longer"
TOKEN = "a/session+token==with&all?of#them%"
ENDPOINT = "https://storage.example.com"
STAMP = "%Y%m%dT%H%M%SZ"

KEYS = [
    "a.png",
    "some/where/a b.png",
    "a+b=c&d?e#f%g",
    "100%/%20/%2F",
    "Größe/猫 🐈.png",
    "e\u0301 and \u00e9",
    "a;b,c:d@e!f$g'h(i)*j",
    '-_.~/[x]{y}|^`"<>',
    ".hidden/..a/...",
]
STYLES = ["path", "virtual"]
REGIONS = ["us-east-1", "eu-central-1", "auto", "EU-RO-1"]


@functools.cache
def boto_client(style, region, token, endpoint=ENDPOINT):
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=ID,
        aws_secret_access_key=SECRET,
        aws_session_token=token or None,
        config=Config(
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            s3={"addressing_style": style, "us_east_1_regional_endpoint": "regional"},
        ),
    )


def config(style="path", region="us-east-1", token="", endpoint=ENDPOINT):
    return S3Config(
        "bucket", ID, SECRET, token, region=region, endpoint_url=endpoint, addressing=style
    )


def signer_at(stamp, *, region="us-east-1", token=""):
    """A signer whose clock shows the time of another signature."""
    now = datetime.strptime(stamp, STAMP).replace(tzinfo=UTC)
    return Signer(Credentials(ID, SECRET, token), region, lambda: now)


def query_of(url):
    return dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))


def assert_same_url(ours, theirs):
    """The same address and the same parameters, whose order is nobody's business."""
    assert ours.partition("?")[0] == theirs.partition("?")[0]
    assert query_of(ours) == query_of(theirs)
    assert len(urlsplit(ours).query.split("&")) == len(query_of(ours)), "a parameter comes twice"


def boto_url(operation, key, style, region, token, endpoint=ENDPOINT, **parameters):
    return boto_client(style, region, token, endpoint).generate_presigned_url(
        operation, Params={"Bucket": "bucket", "Key": key, **parameters}, ExpiresIn=1234
    )


def our_url(method, theirs, key, style, region, token, endpoint=ENDPOINT, query="", headers=None):
    url = config(style, region, token, endpoint).url(key) + (f"?{query}" if query else "")
    signer = signer_at(query_of(theirs)["X-Amz-Date"], region=region, token=token)
    return signer.presigned_url(method, url, headers or {}, 1234)


@pytest.mark.parametrize("token", ["", TOKEN])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("key", KEYS)
def test_a_download_is_signed_as_botocore_signs_it(key, style, token):
    theirs = boto_url("get_object", key, style, "us-east-1", token)
    assert_same_url(our_url("GET", theirs, key, style, "us-east-1", token), theirs)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("key", KEYS)
def test_a_download_under_another_name_is_signed_as_botocore_signs_it(key, region):
    disposition = f"attachment; filename*=UTF-8''{quote(key, safe='')}"
    theirs = boto_url(
        "get_object", key, "path", region, TOKEN, ResponseContentDisposition=disposition
    )
    query = f"response-content-disposition={quote(disposition, safe='')}"
    assert_same_url(our_url("GET", theirs, key, "path", region, TOKEN, query=query), theirs)


@pytest.mark.parametrize("token", ["", TOKEN])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("key", KEYS)
def test_an_upload_of_one_type_and_size_is_signed_as_botocore_signs_it(key, style, token):
    theirs = boto_url(
        "put_object", key, style, "eu-central-1", token, ContentType="image/png", ContentLength=77
    )
    headers = {"Content-Type": "image/png", "Content-Length": "77"}
    ours = our_url("PUT", theirs, key, style, "eu-central-1", token, headers=headers)
    assert_same_url(ours, theirs)
    assert query_of(ours)["X-Amz-SignedHeaders"] == "content-length;content-type;host"


@pytest.mark.parametrize("upload_id", ["abc", "a/b+c=d&e f~g", "x" * 200])
@pytest.mark.parametrize("number", [1, 10_000])
@pytest.mark.parametrize("style", STYLES)
def test_the_upload_of_a_part_is_signed_as_botocore_signs_it(style, number, upload_id):
    theirs = boto_url(
        "upload_part", "a b+c", style, "us-east-1", TOKEN, UploadId=upload_id, PartNumber=number
    )
    query = f"partNumber={number}&uploadId={quote(upload_id, safe='')}"
    assert_same_url(our_url("PUT", theirs, "a b+c", style, "us-east-1", TOKEN, query=query), theirs)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1"])
def test_amazons_own_addresses_are_those_of_botocore(region, style):
    theirs = boto_url("get_object", "a b", style, region, "", endpoint=None)
    assert_same_url(our_url("GET", theirs, "a b", style, region, "", endpoint=""), theirs)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://storage.example.com:443",
        "http://storage.example.com:80",
        "http://storage.example.com:8333",
        "https://Storage.Example.COM",
    ],
)
def test_the_host_is_signed_as_browsers_send_it(endpoint):
    """In lower case, and without the scheme's own port."""
    theirs = boto_url("get_object", "a", "path", "us-east-1", "", endpoint=endpoint)
    ours = our_url("GET", theirs, "a", "path", "us-east-1", "", endpoint=endpoint)
    assert query_of(ours) == query_of(theirs)


def test_the_order_of_the_urls_own_query_changes_nothing():
    base = "https://storage.example.com/bucket/a"
    signed = [
        query_of(signer_at("20240229T235959Z").presigned_url("PUT", f"{base}?{query}", {}, 60))
        for query in ("zeta=1&Alpha=2&X-Amz-A=&uploads=", "uploads=&X-Amz-A=&Alpha=2&zeta=1")
    ]
    assert signed[0] == signed[1]


@pytest.mark.parametrize(
    "change",
    [
        {"method": "HEAD"},
        {"url": "https://storage.example.com/bucket/b"},
        {"url": "https://other.example.com/bucket/a"},
        {"url": "http://storage.example.com:81/bucket/a"},
        {"url": "https://storage.example.com/bucket/a?versionId=1"},
        {"headers": {"Content-Type": "image/png"}},
        {"headers": {"Content-Type": "image/jpeg", "Content-Length": "5"}},
        {"headers": {"Content-Type": "image/png", "Content-Length": "6"}},
        {"expires_s": 61},
    ],
)
def test_everything_that_matters_changes_the_signature(change):
    wanted = {
        "method": "PUT",
        "url": "https://storage.example.com/bucket/a",
        "headers": {"Content-Type": "image/png", "Content-Length": "5"},
        "expires_s": 60,
    }
    signer = signer_at("20240229T235959Z")
    first = query_of(signer.presigned_url(**wanted))
    second = query_of(signer.presigned_url(**{**wanted, **change}))
    assert first["X-Amz-Signature"] != second["X-Amz-Signature"]


@pytest.mark.parametrize("other", [{"region": "us-east-2"}, {"token": "t"}])
def test_region_and_session_change_the_signature(other):
    url = "https://storage.example.com/bucket/a"
    first, second = (
        query_of(signer_at("20240229T235959Z", **given).presigned_url("GET", url, {}, 60))
        for given in ({}, other)
    )
    assert first["X-Amz-Signature"] != second["X-Amz-Signature"]


def test_what_is_signed_is_dated_by_the_day_of_the_clock():
    just_before, just_after = (
        query_of(signer_at(stamp).presigned_url("GET", "https://a.example/b/c", {}, 60))
        for stamp in ("20231231T235959Z", "20240101T000000Z")
    )
    assert just_before["X-Amz-Credential"] == f"{ID}/20231231/us-east-1/s3/aws4_request"
    assert just_after["X-Amz-Credential"] == f"{ID}/20240101/us-east-1/s3/aws4_request"


@pytest.mark.parametrize("expires_s", [0, -1, MAX_EXPIRY_S + 1, 10**9])
def test_a_time_that_s3_refuses_is_an_error(expires_s):
    signer = signer_at("20240229T235959Z")
    with pytest.raises(ValueError, match="expires_s") as caught:
        signer.presigned_url("GET", "https://a.example/b/c", {}, expires_s)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("expires_s", [1, MAX_EXPIRY_S])
def test_the_shortest_and_the_longest_time_are_signed(expires_s):
    url = signer_at("20240229T235959Z").presigned_url("GET", "https://a.example/b", {}, expires_s)
    assert query_of(url)["X-Amz-Expires"] == str(expires_s)


# Forms


def read_policy(fields):
    policy = json.loads(base64.b64decode(fields["policy"]))
    conditions = sorted(json.dumps(one, sort_keys=True) for one in policy["conditions"])
    expires = datetime.strptime(policy["expiration"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return conditions, expires


@pytest.mark.parametrize("token", ["", TOKEN])
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("key", KEYS)
def test_a_form_has_the_fields_and_the_conditions_that_botocore_gives_it(key, region, token):
    form = boto_client("path", region, token).generate_presigned_post(
        Bucket="bucket",
        Key=key,
        Fields={"Content-Type": "image/png"},
        Conditions=[{"Content-Type": "image/png"}, ["content-length-range", 0, 99]],
        ExpiresIn=600,
    )
    theirs = form["fields"]
    ours = signer_at(theirs["x-amz-date"], region=region, token=token).post_fields(
        "bucket", key, content_type="image/png", max_bytes=99, expires_s=600
    )
    made_by_hand = ("policy", "x-amz-signature")  # botocore's conditions are in another order
    assert {**ours, **dict.fromkeys(made_by_hand)} == {**theirs, **dict.fromkeys(made_by_hand)}
    (conditions, expires), (their_conditions, their_expires) = (
        read_policy(ours),
        read_policy(theirs),
    )
    assert conditions == their_conditions
    assert abs(expires - their_expires) <= timedelta(seconds=1)
    signed_at = datetime.strptime(ours["x-amz-date"], STAMP).replace(tzinfo=UTC)
    assert expires - signed_at == timedelta(seconds=600)
    assert ours["x-amz-signature"] == boto_policy_signature(ours, region, token)


def boto_policy_signature(fields, region, token):
    credentials = BotoCredentials(ID, SECRET, token or None)
    request = AWSRequest("POST", ENDPOINT)
    request.context["timestamp"] = fields["x-amz-date"]
    auth = S3SigV4PostAuth(credentials, "s3", region)
    return auth.signature(fields["policy"], request)


def test_each_field_of_a_form_is_under_a_condition():
    """S3 refuses a form with a field that its policy doesn't name."""
    fields = signer_at("20240229T235959Z", token=TOKEN).post_fields(
        "bucket", "a", content_type="image/png", max_bytes=1, expires_s=60
    )
    policy = json.loads(base64.b64decode(fields["policy"]))
    named = {name for one in policy["conditions"] if isinstance(one, dict) for name in one}
    assert set(fields) - {"policy", "x-amz-signature"} == named - {"bucket"}


# Headers


def boto_headers(method, url, headers, *, body, region, token):
    request = AWSRequest(method, url, headers=headers, data=body or b"")
    request.context["client_config"] = Config(s3={"payload_signing_enabled": body is not None})
    S3SigV4Auth(BotoCredentials(ID, SECRET, token or None), "s3", region).add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


@pytest.mark.parametrize("token", ["", TOKEN])
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize(
    ("method", "query", "headers", "body"),
    [
        ("GET", "", {}, b""),
        ("PUT", "", {"content-length": "7", "content-type": "text/plain"}, b"content"),
        ("PUT", "partNumber=2&uploadId=a%2Fb%2Bc", {"content-md5": "abc=="}, None),
        ("PUT", "", {"If-None-Match": "*"}, b"x"),
        ("PUT", "", {"if-match": '"0123"'}, b"x"),
        ("POST", "delete=", {"content-type": "application/xml"}, b"<Delete/>"),
        ("POST", "uploads=", {}, b""),
        ("GET", "list-type=2&prefix=a%20b%2B%2F&delimiter=%2F&continuation-token=x%3D", {}, b""),
        ("DELETE", "uploadId=a%3D", {"X-Amz-Meta-A": "  two   spaces  "}, b""),
    ],
)
def test_headers_are_signed_as_botocore_signs_them(method, query, headers, body, region, token):
    url = config().url("a b+ä/#?&%") + (f"?{query}" if query else "")
    theirs = boto_headers(method, url, headers, body=body, region=region, token=token)
    digest = UNSIGNED if body is None else hashlib.sha256(body).hexdigest()
    ours = signer_at(theirs["x-amz-date"], region=region, token=token).headers(
        method, url, headers, digest
    )
    assert ours.pop("host") == "storage.example.com"
    assert ours == theirs


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("key", KEYS)
def test_headers_for_odd_keys_are_signed_as_botocore_signs_them(key, style):
    url = config(style).url(key)
    theirs = boto_headers("GET", url, {}, body=b"", region="us-east-1", token="")
    digest = hashlib.sha256(b"").hexdigest()
    ours = signer_at(theirs["x-amz-date"]).headers("GET", url, {}, digest)
    assert ours["authorization"] == theirs["authorization"]


def test_the_callers_headers_stay_as_they_are():
    headers = {"Content-Type": "image/png"}
    signer_at("20240229T235959Z").headers("GET", "https://a.example/b", headers)
    assert headers == {"Content-Type": "image/png"}


# Secrets


def test_no_text_of_a_signer_tells_a_secret():
    credentials = Credentials(ID, SECRET, TOKEN)
    signer = Signer(credentials, "us-east-1")
    for text in (repr(credentials), str(credentials), f"{credentials}", repr(signer), str(signer)):
        assert SECRET not in text
        assert TOKEN not in text
    assert ID in repr(credentials)


def test_what_is_signed_holds_no_secret():
    signer = signer_at("20240229T235959Z")
    url = "https://a.example/b"
    fields = signer.post_fields("b", "k", content_type="a/b", max_bytes=1, expires_s=1)
    policy = base64.b64decode(fields["policy"]).decode()
    for text in (
        signer.presigned_url("GET", url, {}, 60),
        str(signer.headers("GET", url, {})),
        str(fields),
        policy,
    ):
        assert SECRET not in text
        assert quote(SECRET, safe="") not in text


def test_without_a_clock_the_signature_is_of_now():
    before = datetime.now(UTC).replace(microsecond=0)
    url = Signer(Credentials(ID, SECRET), "us-east-1").presigned_url("GET", "https://a/b", {}, 60)
    signed_at = datetime.strptime(query_of(url)["X-Amz-Date"], STAMP).replace(tzinfo=UTC)
    assert before <= signed_at <= datetime.now(UTC)
