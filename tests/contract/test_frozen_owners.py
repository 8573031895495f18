"""An owner is frozen before each of its writes in turn; `tests.chaos.frozen` plays it."""

import pytest

from tests.chaos.frozen import Place, folder_place, in_memory, play, rounds, unnamed_rows


def test_whenever_an_owner_is_frozen_it_replaces_nothing_and_what_it_puts_late_is_swept(tmp_path):
    place, write, late = in_memory(), 1, 0
    while (played := play(place, write, tmp_path)).was_frozen:
        assert played.problems == (), write
        late += played.late_objects
        write += 1
    assert played.problems == ()
    assert write > 30  # each put, each list and each look of the ticker
    assert late > 5


@pytest.mark.parametrize("shared", [False, True], ids=["folder", "volume"])
def test_at_random_moments_with_the_records_in_the_store_too(tmp_path, shared):
    place = folder_place(tmp_path / "objects", shared=shared)
    played = rounds(place, 8, 5, tmp_path / "work", 8, most=45)
    assert [one.problems for one in played if one.problems] == []
    assert sum(one.was_taken_over for one in played) >= 4
    assert unnamed_rows(place) == []


def test_the_game_finds_an_owner_that_replaces_what_another_has_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("loradash.storage.keys.attempt_mark", lambda *_: "a1-0000000000")
    place = in_memory()
    problems = [
        problem
        for write in range(4, 30)
        for problem in play(Place("shared keys", *place[1:]), write, tmp_path).problems
    ]
    assert any("changed" in one or "isn't what was listed" in one for one in problems)
