"""What libraries warn of reaches the user, once, and not what says nothing."""

import logging
import warnings

import pytest

from loradash.engines.diffusers.child.library_warnings import MAX_WARNINGS, library_warnings


class Warnings:
    """An emitter that keeps what it is warned of."""

    def __init__(self):
        self.texts = []
        self.codes = set()

    def warn(self, code, message):
        self.texts.append(message)
        self.codes.add(code)


@pytest.fixture
def told():
    emitter = Warnings()
    with library_warnings(emitter):
        yield emitter


def test_a_line_of_a_librarys_log_becomes_one_event(told):
    logger = logging.getLogger("diffusers.loaders.peft")
    for _ in range(3):
        logger.warning("Unexpected keys:\n  %s", "a.lora_A")
    assert told.texts == ["diffusers: Unexpected keys: a.lora_A"]
    assert told.codes == {"library_warning"}


def test_a_warning_of_python_becomes_an_event_and_a_deprecation_does_not(told):
    warnings.warn("overflow in cast", RuntimeWarning, stacklevel=1)
    warnings.warn("the weights are tied", UserWarning, stacklevel=1)
    warnings.warn("use another name", FutureWarning, stacklevel=1)
    warnings.warn("use another name", DeprecationWarning, stacklevel=1)
    assert [text.partition(": ")[2] for text in told.texts] == [
        "overflow in cast",
        "the weights are tied",
    ]


def test_what_says_nothing_about_the_result_is_left_out(told):
    logging.getLogger("transformers").warning(
        "`CLIPImageProcessor` requires torchvision (not installed); falling back to Pil"
    )
    logging.getLogger("diffusers").info("loading the UNet")
    assert told.texts == []


def test_a_flood_is_cut_off_with_a_word(told):
    for number in range(3 * MAX_WARNINGS):
        logging.getLogger("peft").warning("layer %s has no place", number)
    assert len(told.texts) == MAX_WARNINGS + 1
    assert "see the log" in told.texts[-1]


def test_a_text_without_end_is_shortened(told):
    logging.getLogger("peft").error("no place for " + "key " * 1000)
    assert len(told.texts[0]) < 520


def test_a_library_that_was_muted_is_heard_and_muted_again_afterwards():
    logger = logging.getLogger("diffusers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        emitter = Warnings()
        with library_warnings(emitter):
            logger.warning("a part has no weights")
        logger.warning("nobody listens")
        assert emitter.texts == ["diffusers: a part has no weights"]
        assert logger.level == logging.CRITICAL
    finally:
        logger.setLevel(before)


def test_a_second_run_is_told_again():
    for _ in range(2):
        emitter = Warnings()
        with library_warnings(emitter):
            warnings.warn("cut off", UserWarning, stacklevel=1)
            logging.getLogger("transformers").warning("a part is missing")
        assert len(emitter.texts) == 2
