"""Where clients are sent for a file: to the store, to this server, or nowhere."""

from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from loradash.errors import StoreRefused, StoreUnavailable
from loradash.services.results.links import Links
from loradash.storage.keys import published
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore
from loradash.storage.store import Capabilities

from .world import URL, World, adapter

KEY = "results/train_00000000000000000000/lora/cat.safetensors"


class SigningStore(MemoryStore):
    """A store that signs URLs, if its provider can, and counts how often it was asked."""

    def __init__(self, presign=True, error=None):
        super().__init__()
        self.able = Capabilities(presign=presign)
        self.error = error
        self.asked = 0

    @property
    def capabilities(self):
        self.asked += 1
        if self.error:
            raise self.error
        return self.able

    @capabilities.setter
    def capabilities(self, value):
        pass

    def get_url(self, key, *, filename, expires_s):
        return f"https://bucket.example/{key}?name={filename}&for={expires_s}"

    def put_url(self, key, *, content_type, size_bytes, expires_s):
        raise AssertionError("downloads upload nothing")

    def post_form(self, key, *, content_type, max_bytes, expires_s):
        raise AssertionError("downloads upload nothing")


def test_a_store_that_signs_is_linked_to_itself_for_as_long_as_is_set():
    for base_url in (URL, ""):
        url = Links(SigningStore(), 77).below(base_url)
        link = url.file(KEY, "my cat.safetensors")
        assert link == f"https://bucket.example/{KEY}?name=my cat.safetensors&for=77"


@pytest.mark.parametrize("kind", ["memory", "local", "provider that doesn't sign"])
def test_of_other_stores_the_link_is_to_the_server_if_there_is_one(tmp_path, kind):
    store = {
        "memory": MemoryStore, "local": lambda: LocalStore(tmp_path),
        "provider that doesn't sign": lambda: SigningStore(presign=False),
    }[kind]()  # fmt: skip
    links = Links(store, 60)
    assert links.below(URL).file(KEY, "cat.safetensors") == f"{URL}/files/{KEY}?download=1"
    assert links.below("").file(KEY, "cat.safetensors") is None


@pytest.mark.parametrize("name", ["a b.png", "ä?.png", "50%.png", "a#b.png", "x&y=z.png", "😀"])
def test_a_link_to_the_server_leads_to_exactly_this_key(name):
    link = Links(MemoryStore(), 60).below(URL).file(f"results/x/{name}", name)
    parts = urlsplit(link)
    assert (parts.query, parts.fragment) == ("download=1", "")
    assert unquote(parts.path) == f"/files/results/x/{name}"


def test_the_store_is_asked_when_a_link_is_needed_and_once_for_all_of_a_reply():
    store = SigningStore()
    url = Links(store, 60).below(URL)
    assert url.zip(["a"], images=True, loras=True)
    assert store.asked == 0
    for n in range(5):
        url.file(f"{KEY}{n}", "x")
    assert store.asked == 1


def test_a_store_that_is_away_is_linked_by_way_of_the_server():
    store = SigningStore(error=StoreUnavailable("it isn't there", remedy="Wait."))
    url = Links(store, 60).below(URL)
    assert [url.file(f"{KEY}{n}", "x") for n in range(3)] == [
        f"{URL}/files/{KEY}{n}?download=1" for n in range(3)
    ]
    assert store.asked == 1
    store.error = None
    assert Links(store, 60).below(URL).file(KEY, "x").startswith("https://bucket.example/")


def test_without_a_server_a_store_that_is_away_is_an_error():
    store = SigningStore(error=StoreUnavailable("it isn't there", remedy="Wait."))
    with pytest.raises(StoreUnavailable):
        Links(store, 60).below("").file(KEY, "x")


def test_a_store_that_refuses_is_an_error_with_a_server_too():
    store = SigningStore(error=StoreRefused("wrong credentials", remedy="Set them."))
    for base_url in (URL, ""):
        with pytest.raises(StoreRefused):
            Links(store, 60).below(base_url).file(KEY, "x")


def test_a_zip_link_says_whose_results_and_which():
    url = Links(SigningStore(), 60).below(URL)
    parts = urlsplit(url.zip(["train_a", "gen_b"], images=True, loras=False))
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"{URL}/download/zip"
    assert parse_qs(parts.query) == {
        "process_id": ["train_a", "gen_b"], "images": ["true"], "loras": ["false"],
    }  # fmt: skip
    assert Links(SigningStore(), 60).below("").zip(["a"], images=True, loras=True) is None


def test_replies_have_signed_links_named_as_the_file_is_saved(tmp_path):
    world = World(tmp_path, store=SigningStore(), max_inline_bytes=10)
    process_id = world.trained().id
    key = f"results/{process_id}/checkpoints/step-000000010/adapter.safetensors"
    link = world.ask("download_by_key", s3_key=key)
    assert published(link["s3_key"]) == key
    stored = link["s3_key"]
    assert link["url"] == f"https://bucket.example/{stored}?name=adapter.safetensors&for=3600"
    reply = world.ask("bulk_download", process_ids=[process_id])
    item, preview = reply["download_items"]
    assert item["url"] == f"https://bucket.example/{item['key']}?name=cat.safetensors&for=3600"
    assert item["size"] == len(adapter())
    assert (item["type"], preview["type"]) == ("lora", "image")
    assert reply["zip_url"].startswith(f"{URL}/download/zip?process_id={process_id}&")
