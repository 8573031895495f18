"""The servers that other tests stand on: they are real, and they differ where it matters."""

import pytest
from botocore.exceptions import ClientError


@pytest.fixture(params=["seaweedfs", "juicefs"])
def server(request):
    return request.getfixturevalue(request.param)


def test_what_is_put_is_read_listed_and_deleted(server):
    bucket, client = server.new_bucket(), server.client()
    client.put_object(Bucket=bucket, Key="a/b.txt", Body=b"content")
    assert client.get_object(Bucket=bucket, Key="a/b.txt")["Body"].read() == b"content"
    listed = client.list_objects_v2(Bucket=bucket)["Contents"]
    assert [(entry["Key"], entry["Size"]) for entry in listed] == [("a/b.txt", 7)]
    client.delete_object(Bucket=bucket, Key="a/b.txt")
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_each_bucket_is_new(server):
    first, second = server.new_bucket(), server.new_bucket()
    server.client().put_object(Bucket=first, Key="a", Body=b"")
    assert server.client().list_objects_v2(Bucket=second)["KeyCount"] == 0


def test_wrong_keys_are_refused(server):
    bucket, client = server.new_bucket(), server.client()
    client._request_signer._credentials.secret_key = "wrong"
    with pytest.raises(ClientError) as caught:
        client.put_object(Bucket=bucket, Key="a", Body=b"")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_seaweedfs_keeps_the_condition_that_an_object_must_be_new(seaweedfs):
    assert second_create_of_one_key(seaweedfs) == (412, b"first")


def test_juicefs_ignores_the_condition_and_says_that_all_is_well(juicefs):
    assert second_create_of_one_key(juicefs) == (200, b"second")


def second_create_of_one_key(server):
    """Return the status of a second put with ``If-None-Match: *``, and what is stored then."""
    bucket, client = server.new_bucket(), server.client()
    client.put_object(Bucket=bucket, Key="a", Body=b"first", IfNoneMatch="*")
    try:
        reply = client.put_object(Bucket=bucket, Key="a", Body=b"second", IfNoneMatch="*")
    except ClientError as error:
        reply = error.response
    stored = client.get_object(Bucket=bucket, Key="a")["Body"].read()
    return reply["ResponseMetadata"]["HTTPStatusCode"], stored
