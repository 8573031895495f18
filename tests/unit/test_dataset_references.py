import pytest

from loradash.domain.dataset_references import parse_dataset_reference


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
