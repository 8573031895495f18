import pytest

from loradash.domain.dataset_references import parse_dataset_reference
from loradash.errors import InvalidDataset
from loradash.services.datasets.found import find_dataset
from loradash.services.datasets.store import DatasetStore
from loradash.services.path_policy import ANYWHERE
from loradash.storage.memory import MemoryStore


@pytest.mark.parametrize(
    ("text", "kind", "meant"),
    [
        ("photos", "either", "photos"),
        ("my/photos", "either", "my/photos"),
        ("dataset/photos", "either", "dataset/photos"),
        ("./photos", "folder", "./photos"),
        ("../photos", "folder", "../photos"),
        (".", "folder", "."),
        ("/data/photos", "folder", "/data/photos"),
        ("~/photos", "folder", "~/photos"),
        ("folder:photos", "folder", "photos"),
        ("folder:/data/photos", "folder", "/data/photos"),
        ("dataset:photos", "stored", "photos"),
        ("dataset:dataset/photos", "stored", "dataset/photos"),
        ("s3://bucket/dataset/photos", "stored", "s3://bucket/dataset/photos"),
        ("S3://bucket/dataset/photos", "stored", "S3://bucket/dataset/photos"),
        (".hidden", "either", ".hidden"),
    ],
)
def test_a_reference_says_what_it_means(text, kind, meant):
    assert parse_dataset_reference(text) == (kind, meant)


@pytest.mark.parametrize(("name", "words"), [("a.zip", "is a file"), ("none", "doesn't exist")])
def test_a_folder_that_is_none_is_refused_for_its_reason(tmp_path, name, words):
    (tmp_path / "a.zip").write_bytes(b"PK")
    datasets = DatasetStore(MemoryStore())
    with pytest.raises(InvalidDataset, match=words):
        find_dataset(datasets, f"folder:{tmp_path / name}", "dataset", ANYWHERE)
