import pytest

from loradash.errors import InvalidKey
from loradash.storage import keys

ID = "train_01k9x3q4zt8m2v7c0hde"


def test_everything_of_a_process_lies_below_its_prefix():
    for key in (keys.result(ID, "lora", "a"), keys.result_config(ID), keys.manifest(ID)):
        assert key.startswith(f"{keys.results(ID)}/")


def test_a_result_is_stored_by_kind_and_name():
    assert keys.result(ID, "samples", "0001.png") == f"results/{ID}/samples/0001.png"


@pytest.mark.parametrize("name", ["", "..", "a/../b", "a\\b", "a\0"])
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(InvalidKey):
        keys.result(ID, "lora", name)
