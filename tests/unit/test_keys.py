import pytest

from loradash.domain.addresses import Address, bucket_of, result_key_in
from loradash.errors import InvalidKey
from loradash.storage import keys

ID = "train_01k9x3q4zt8m2v7c0hde"
MARK = keys.attempt_mark(3, "a token")


def test_everything_of_a_process_lies_below_its_prefix():
    for key in (
        keys.result(ID, "lora", MARK, "a"), keys.result_config(ID), keys.manifest(ID, MARK),
        keys.submitted_config(ID, "0" * 16), keys.old_manifest(ID),
    ):  # fmt: skip
        assert key.startswith(f"{keys.results(ID)}/")
        assert keys.process_of(key) == ID


def test_what_an_owner_writes_has_his_mark_and_is_known_without_it():
    other = keys.attempt_mark(3, "another token")
    assert other != MARK
    assert "a token" not in MARK
    name = "step-000000010/adapter.safetensors"
    key = keys.result(ID, "checkpoints", f"{MARK}.2", name)
    assert key == f"results/{ID}/checkpoints/{MARK}.2/{name}"
    assert keys.mark_of(key) == keys.Mark(3, is_edit=False, text=MARK)
    assert keys.published(key) == f"results/{ID}/checkpoints/{name}"
    for kind in ("job", "manifest"):
        assert keys.published(f"results/{ID}/{kind}/{MARK}/{kind}.json") == (
            f"results/{ID}/{kind}.json"
        )
    assert keys.published(keys.submitted_config(ID, "0" * 16)) == keys.result_config(ID)
    assert keys.mark_of(keys.submitted_config(ID, "0" * 16)).attempt == -1
    edit = keys.manifest(ID, keys.edit_mark(3, "0" * 10))
    assert keys.mark_of(edit)[:2] == (3, True)
    assert keys.is_manifest(edit)
    assert keys.is_manifest(keys.manifest(ID, MARK))
    assert keys.is_manifest(keys.old_manifest(ID))


@pytest.mark.parametrize(
    "key",
    [
        f"results/{ID}/lora/cat.safetensors",
        f"results/{ID}/checkpoints/step-000000010/adapter.safetensors",
        f"results/{ID}/samples/manifest.json",
        f"results/{ID}/lora/a1-0123456789",
        "dataset/cats/upload_1/a1-0123456789/x",
    ],
)
def test_keys_of_earlier_releases_are_known_as_they_are(key):
    assert keys.published(key) == key
    assert keys.mark_of(key) == keys.Mark()
    assert not keys.is_manifest(key)


@pytest.mark.parametrize("name", ["", "..", "a/../b", "a\\b", "a\0"])
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(InvalidKey):
        keys.result(ID, "lora", MARK, name)


def test_everything_of_a_dataset_lies_below_its_prefix():
    assert keys.dataset_manifest("cats") == "dataset/cats/_training_info.json"
    assert keys.dataset_file("cats", "upload_1", "a.png") == "dataset/cats/upload_1/a.png"
    assert keys.dataset("cats").startswith(f"{keys.datasets()}/")


@pytest.mark.parametrize("folder", ["", "..", "a/b", "a/..", "a\\b", "a\0", "x" * 201])
def test_a_dataset_is_one_folder(folder):
    for key in (
        keys.dataset,
        keys.dataset_manifest,
        lambda name: keys.dataset_file(name, "u", "a"),
    ):
        with pytest.raises(InvalidKey):
            key(folder)


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("dataset/cats/a.png", ("cats", "a.png")),
        ("dataset/cats/u/sub/a.png", ("cats", "u/sub/a.png")),
        ("dataset/cats", ("", "")),
        ("dataset/cats/", ("", "")),
        ("dataset", ("", "")),
        ("datasets/cats/a.png", ("", "")),
        ("results/x/lora/a", ("", "")),
    ],
)
def test_a_key_tells_the_dataset_that_it_belongs_to(key, parts):
    assert keys.dataset_of(key) == parts


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (Address(), "results/a"),
        (Address("ours"), "s3://ours/results/a"),
        (Address("ours", "lora/x"), "s3://ours/lora/x/results/a"),
    ],
)
def test_a_key_is_found_again_by_how_it_was_shown(address, shown):
    assert address.shown("results/a") == shown
    assert address.key_of(shown) == address.key_of("results/a") == "results/a"


@pytest.mark.parametrize(
    "reference",
    [
        "s3://theirs/lora/results/a",
        "s3://ours/results/a",
        "s3://ours/loraresults/a",
        "s3://",
        "a/b",
    ],
)
def test_what_lies_outside_the_prefix_has_no_key(reference):
    assert Address("ours", "lora").key_of(reference) == ""


def test_without_a_bucket_no_address_of_one_has_a_key():
    assert Address().key_of("s3:///results/a") == ""


@pytest.mark.parametrize(
    ("reference", "key"),
    [
        ("results/a/lora/x", "results/a/lora/x"), ("s3://any/where/results/a/x", "results/a/x"),
        ("S3://any/results/a/x", "results/a/x"), ("dataset/cats", ""), ("a name", ""),
    ],
)  # fmt: skip
def test_a_results_key_is_found_at_the_end_of_any_stores_address(reference, key):
    assert result_key_in(reference) == key


def test_an_address_names_its_bucket_and_a_key_names_none():
    assert bucket_of("s3://ours/results/a") == bucket_of("S3://ours") == "ours"
    assert bucket_of("results/a") == bucket_of("s3:/ours/a") == ""
    assert not Address().has("s3://")
