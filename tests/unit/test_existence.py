from concurrent.futures import ThreadPoolExecutor

import pytest

from loradash.errors import StoreUnavailable
from loradash.storage.existence import ExistenceCache
from loradash.storage.memory import MemoryStore


class Counting(MemoryStore):
    def __init__(self):
        super().__init__()
        self.asked = []
        self.is_away = False

    def head(self, key):
        self.asked.append(key)
        if self.is_away:
            raise StoreUnavailable("away")
        return super().head(key)


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def store():
    return Counting()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cache(store, clock):
    return ExistenceCache(store, present_s=100, absent_s=2, most=5, clock=clock)


def test_what_is_there_is_asked_once_for_a_while(cache, store, clock):
    info = store.put("a", b"x")
    assert [cache.find("a") for _ in range(3)] == [info] * 3
    assert store.asked == ["a"]
    clock.now_s += 101
    assert cache.find("a") == info
    assert store.asked == ["a", "a"]


def test_what_is_missing_is_soon_asked_again(cache, store, clock):
    assert cache.find("a") is None
    assert cache.find("a") is None
    assert store.asked == ["a"]
    info = store.put("a", b"x")
    assert cache.find("a") is None
    clock.now_s += 2.1
    assert cache.find("a") == info


def test_what_was_just_put_is_known_without_asking(cache, store):
    assert cache.find("a") is None
    info = store.put("a", b"x")
    cache.note(info)
    assert cache.find("a") == info
    assert store.asked == ["a"]


def test_what_is_forgotten_is_asked_again(cache, store):
    store.put("a", b"x")
    cache.find("a")
    store.delete("a")
    cache.forget("a")
    assert cache.find("a") is None


def test_no_more_keys_are_remembered_than_allowed(cache, store):
    for n in range(50):
        store.put(f"{n}", b"x")
        cache.find(f"{n}")
    store.asked.clear()
    for n in range(50):
        cache.find(f"{n}")
    assert len(store.asked) >= 45


def test_a_store_that_is_away_is_no_answer(cache, store):
    store.is_away = True
    with pytest.raises(StoreUnavailable):
        cache.find("a")
    store.is_away = False
    info = store.put("a", b"x")
    assert cache.find("a") == info


def test_many_threads_may_ask_at_the_same_time(cache, store):
    for n in range(20):
        store.put(f"{n}", b"x")

    def ask(_):
        for n in range(200):
            assert cache.find(f"{n % 20}") is not None
            cache.forget(f"{(n * 7) % 20}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(8)))
