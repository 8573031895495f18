import pytest

from loradash.error_list import ErrorList
from loradash.errors import InvalidBaseModel, InvalidConfig, InvalidDataset, StoreUnavailable


def test_one_error_is_raised_as_it_is():
    errors = ErrorList("it can't start")
    error = InvalidDataset("no folder", remedy="Make it.")
    with errors.noted():
        raise error
    with pytest.raises(InvalidDataset) as caught:
        errors.raise_all()
    assert caught.value is error


def test_several_errors_are_told_at_once_with_remedies_and_problems():
    errors = ErrorList("it can't start")
    assert not errors
    with errors.noted():
        raise InvalidDataset("2 images can't be used", problems=["a.png: cut off"], remedy="Mend.")
    with errors.noted():
        raise InvalidBaseModel("unet is empty", remedy="Download it.")
    with pytest.raises(InvalidConfig) as caught:
        errors.raise_all()
    assert caught.value.message == "it can't start: 2 things are wrong"
    assert caught.value.problems == (
        "2 images can't be used. Mend.", "a.png: cut off", "unet is empty. Download it.",
    )  # fmt: skip


def test_errors_of_one_kind_stay_of_that_kind():
    errors = ErrorList("it can't start")
    for text in ("a", "b"):
        with errors.noted():
            raise InvalidDataset(text)
    with pytest.raises(InvalidDataset):
        errors.raise_all()


def test_nothing_noted_is_nothing_raised():
    ErrorList("x").raise_all()


def test_a_store_that_is_away_is_no_error_of_the_input():
    with pytest.raises(StoreUnavailable), ErrorList("x").noted():
        raise StoreUnavailable("away")
