"""Cursors: what was put in comes out, and nothing else is taken for one."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradash.errors import InvalidRequest
from loradash.registry.cursors import ArtifactPlace, ProcessPlace, microseconds

TIMES = st.datetimes(timezones=st.just(UTC))
IDS = st.from_regex(r"(train|gen)_[0-9a-z]{20}", fullmatch=True)
KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
ENCODED = st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="))


@given(TIMES, TIMES)
def test_microseconds_sort_like_times(first, second):
    assert (microseconds(first) < microseconds(second)) == (first < second)


@given(st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.timezones()))
def test_microseconds_are_exact_in_any_zone(time):
    told = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds(time))
    assert told == time.astimezone(UTC)


@given(TIMES, IDS)
def test_a_cursor_of_a_process_reads_as_it_was_written(time, process_id):
    place = ProcessPlace(microseconds(time), process_id)
    assert ProcessPlace.read(place.cursor) == place


@given(TIMES, IDS, KEYS)
def test_a_cursor_of_an_artifact_reads_as_it_was_written(time, process_id, key):
    place = ArtifactPlace(microseconds(time), process_id, key)
    assert ArtifactPlace.read(place.cursor) == place
    assert place.cursor.replace("-", "").replace("_", "").isalnum()
    with pytest.raises(InvalidRequest):
        ProcessPlace.read(place.cursor)


@given(st.text() | ENCODED)
def test_any_other_text_is_refused(text):
    for read in (ProcessPlace.read, ArtifactPlace.read):
        with pytest.raises(InvalidRequest):
            read(text)


@given(TIMES, IDS, st.data())
def test_no_two_cursors_mean_the_same(time, process_id, data):
    place = ProcessPlace(microseconds(time), process_id)
    cursor = place.cursor
    cut = data.draw(st.integers(0, len(cursor)))
    changed = cursor[:cut] + data.draw(st.text(max_size=2)) + cursor[cut + 1 :]
    if changed != cursor:
        try:
            assert ProcessPlace.read(changed) != place
        except InvalidRequest:
            return
