import pytest

from loradash.domain.schema import nearest, path_text


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ((), "(top level)"),
        (("name",), "name"),
        (("config", "process", 0, "train", "lr"), "config.process[0].train.lr"),
        (("datasets", 1, "resolution", 2), "datasets[1].resolution[2]"),
    ],
)
def test_a_place_is_written_as_in_a_program(location, text):
    assert path_text(location) == text


def test_the_nearest_word_is_proposed_and_nothing_far_fetched():
    assert nearest("stesp", ["steps", "seed"]) == "; did you mean 'steps'?"
    assert nearest("entirely", ["steps", "seed"]) == ""
