import math
import sys
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from loradash.domain.process import Status
from loradash.domain.upload_fields import MAX_CONTENT_CHARACTERS
from loradash.domain.yaml_text import MAX_CHARACTERS, MAX_DEPTH, MAX_NODES, load_mapping
from loradash.errors import InvalidConfig, InvalidRequest
from loradash.protocol.request_fields import MAX_YAML_CHARACTERS
from loradash.protocol.requests import (
    MAX_PROBLEMS,
    REQUEST_TYPES,
    AnyRequest,
    Request,
    parse_request,
    unknown_fields,
)

YAML = "job: extension\r\nconfig:\r\n  name: cat\r\n"
PNG = {"filename": "a.png", "content": "aGVsbG8="}
ID = "train_01k9x3q4zt8m2v7c0hde"
UPLOAD_ID = "upload_01k9x3q4zt8m2v7c0hde"

VALID = {
    "health": {},
    "train": {"yaml_config": YAML, "priority": -10},
    "train_with_yaml": {"config": {"job": "extension", "config": {"process": []}}},
    "generate": {
        "config": YAML, "prompt": "a cat", "adapters": [{"path": ID, "weight": 0.5}], "seed": 1,
        "negative_prompt": "dog", "num_images": 2, "steps": 3, "guidance_scale": 7.5, "width": 64,
        "height": 64, "scheduler": "ddim", "base_model": "tiny", "priority": 10, "model_path": "x",
    },
    "processes": {"limit": 1, "cursor": "x", "kind": "training", "status": ["running", "failed"]},
    "process_status": {
        "process_id": ID, "log_after": 0, "log_limit": 1, "metrics_after": 3, "metrics_limit": 9,
    },
    "cancel": {"process_id": ID},
    "download": {"process_id": ID, "s3_key": "results/x"},
    "download_by_key": {"s3_key": "s3://bucket/results/x"},
    "download_file": {"file_path": "s3://bucket/results/x"},
    "lora": {"limit": 1000},
    "list_models": {"cursor": "x"},
    "list_files": {"path": "results", "limit": 3},
    "bulk_download": {"process_ids": [ID, "b", ID], "include_images": False},
    "delete_results": {"process_ids": [ID], "result_type": "images"},
    "upload_training_data": {
        "training_name": "my cats", "trigger_word": "sks", "cleanup_existing": False,
        "dataset_folder": "cats", "files": [PNG, {**PNG, "filename": "a.txt", "size": 5}],
    },
    "create_upload": {
        "training_name": "my cats", "trigger_word": "sks", "cleanup_existing": False,
        "dataset_folder": "cats",
        "files": [{"filename": "a.png", "size": 5, "sha256": "0f" * 32},
                  {"filename": "a.txt", "size": 0}],
    },
    "complete_upload": {"dataset_folder": "cats", "upload_id": UPLOAD_ID},
    "abort_upload": {"dataset_folder": "cats", "upload_id": UPLOAD_ID},
    "clear_logs": {"log_type": "app"},
    "list_dataset_folders": {},
}  # fmt: skip


def parsed(kind, /, **fields):
    return parse_request({"type": kind, **fields})


def refused(kind, /, **fields):
    with pytest.raises(InvalidRequest) as caught:
        parsed(kind, **fields)
    assert caught.value.remedy
    return str(caught.value)


def upload(*names, **fields):
    files = [{"filename": name, "content": ""} for name in names]
    return {"type": "upload_training_data", "files": files, **fields}


def stored_names(*names, **fields):
    return [file.filename for file in parse_request(upload(*names, **fields)).files]


# The union


def test_each_type_has_an_example_here():
    assert len(REQUEST_TYPES) == len(set(REQUEST_TYPES)) == 21
    assert set(VALID) == set(REQUEST_TYPES)
    assert len(get_args(AnyRequest)) == 19


@pytest.mark.parametrize("kind", REQUEST_TYPES)
def test_a_request_survives_the_way_to_json_and_back(kind):
    request = parsed(kind, **VALID[kind])
    assert request.type == kind
    assert parse_request(request.model_dump()) == request
    assert parse_request(request.model_dump(mode="json")) == request
    assert unknown_fields(request) == ()


@pytest.mark.parametrize("kind", REQUEST_TYPES)
def test_the_union_tells_its_members_by_their_type(kind):
    request = parsed(kind, **VALID[kind])
    assert TypeAdapter(Request).validate_python({"type": kind, **VALID[kind]}) == request


@pytest.mark.parametrize("kind", REQUEST_TYPES)
def test_requests_are_frozen(kind):
    with pytest.raises(ValidationError):
        parsed(kind, **VALID[kind]).type = "x"


@pytest.mark.parametrize("data", [None, [], "x", 3, True, math.nan, b"{}", [("type", "health")]])
def test_an_input_that_is_no_mapping_is_refused(data):
    with pytest.raises(InvalidRequest, match="not a mapping"):
        parse_request(data)


@pytest.mark.parametrize("data", [{}, {"type": None}, {"prompt": None}, {"config": YAML}])
def test_a_missing_type_is_answered_with_all_of_them(data):
    with pytest.raises(InvalidRequest, match="type: missing") as caught:
        parse_request(data)
    assert all(kind in caught.value.remedy for kind in REQUEST_TYPES)


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("proceses", "'processes'"),
        ("train_yaml", "'train_with_yaml'"),
        ("Health", "'health'"),
        ("list_model", "'list_models'"),
    ],
)
def test_an_unknown_type_is_answered_with_the_nearest(kind, hint):
    with pytest.raises(InvalidRequest, match="is unknown; did you mean") as caught:
        parse_request({"type": kind})
    assert hint in caught.value.message
    assert all(kind in caught.value.remedy for kind in REQUEST_TYPES)


@pytest.mark.parametrize(
    "kind",
    ["", "\0", "\ud800", 3, True, [], {}, math.nan, "x" * 10**7, 10**5000, ["health"]],
    ids=lambda value: type(value).__name__,
)
def test_a_hostile_type_gives_a_short_error(kind):
    with pytest.raises(InvalidRequest, match="is unknown") as caught:
        parse_request({"type": kind, "prompt": "x"})
    assert len(caught.value.message) < 200


def test_a_prompt_without_a_type_is_a_generation():
    assert parse_request({"prompt": "a cat"}).type == "generate"
    assert parse_request({"type": None, "prompt": "a cat"}).prompt == "a cat"


@pytest.mark.parametrize("kind", REQUEST_TYPES)
def test_null_means_not_given(kind):
    nothing = dict.fromkeys(type(parsed(kind, **VALID[kind])).known_fields())
    request = parsed(kind, **{**nothing, **VALID[kind], "type": kind})
    assert request == parsed(kind, **VALID[kind])


def test_unknown_fields_are_told_and_the_nearest_known_ones_named():
    request = parsed("generate", prompt="x", promt="y", zzz=1)
    assert unknown_fields(request) == (
        "unknown field 'promt' has no effect; did you mean 'prompt'?",
        "unknown field 'zzz' has no effect",
    )
    assert unknown_fields(parsed("processes", process_type="training")) == ()


def test_unknown_fields_are_bounded():
    data = {"type": "health", **{"x" * 1000 + str(n): n for n in range(5000)}, 3: 4, "\ud800": 5}
    told = unknown_fields(parse_request(data))
    assert len(told) == MAX_PROBLEMS + 1
    assert max(map(len, told)) < 150
    assert told[-1] == "4982 more unknown fields have no effect"
    assert unknown_fields(parse_request({"type": "health", 3: 4, "\ud800": 5})) == (
        "unknown field 3 has no effect",
        "unknown field '\\ud800' has no effect",
    )


def test_every_problem_names_its_field():
    text = refused("process_status", log_after=-1, log_limit=2001, metrics_limit="9")
    assert "process_status: 4 problems" in text
    assert "process_id: missing" in text
    assert "log_after: must be at least 0 (got -1)" in text
    assert "log_limit: must be at most 2000 (got 2001)" in text
    assert "metrics_limit: must be a whole number (got '9')" in text


def test_a_thousand_problems_are_told_in_twenty_lines():
    files = [{"filename": "x" * 255 + str(n), "content": n} for n in range(1000)]
    with pytest.raises(InvalidRequest) as caught:
        parsed("upload_training_data", files=files)
    assert len(caught.value.problems) == MAX_PROBLEMS
    assert caught.value.problems[-1] == "and 1981 more"
    assert len(str(caught.value)) < 5000


def test_errors_hold_neither_the_input_nor_long_values():
    with pytest.raises(InvalidRequest) as caught:
        parsed("list_files", path="x" * 2000)
    assert len(caught.value.problems[0]) < 200
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


# Single values


@pytest.mark.parametrize(
    ("kind", "field", "good", "bad"),
    [
        ("train", "priority", [-10, 0, 10], [-11, 11, 1.0, "1", True, math.nan, 10**400]),
        ("generate", "priority", [-10, 10], [-11, 11, False]),
        ("generate", "prompt", ["", "x" * 10_000], ["x" * 10_001, 3, "a\0", "\udfff", ["x"]]),
        ("generate", "lora", ["x", "x" * 4096], ["", "x" * 4097, 3]),
        ("processes", "limit", [1, 200], [0, 201, -1, True, 2.0, "2", [], {}]),
        ("processes", "cursor", ["", "x" * 1000], ["x" * 1001, 3, "\0", "\ud800"]),
        ("processes", "kind", ["training", "generation"], ["train", "", 3, ["training"]]),
        ("processes", "process_type", ["generation"], ["Training", 3]),
        ("process_status", "log_after", [0, 2**63 - 1], [-1, 2**63, True, "0", 1.0]),
        ("process_status", "log_limit", [1, 2000], [0, 2001]),
        ("process_status", "metrics_after", [0, 2**63 - 1], [-1, 2**63]),
        ("process_status", "metrics_limit", [1, 5000], [0, 5001]),
        ("download", "s3_key", ["x", "x" * 2000], ["", "x" * 2001, 3]),
        ("download_by_key", "s3_key", ["x", "x" * 2000], ["", "x" * 2001, None]),
        ("download_file", "file_path", ["x", "x" * 2000], ["", "x" * 2001, None, "a\0"]),
        ("lora", "limit", [1, 1000], [0, 1001]),
        ("list_models", "cursor", ["x" * 1000], ["x" * 1001]),
        ("list_files", "path", ["", "x" * 1000], ["x" * 1001, 3]),
        ("list_files", "limit", [1, 1000], [0, 1001]),
        ("bulk_download", "include_images", [True, False], [0, 1, "true", []]),
        ("bulk_download", "include_loras", [True, False], [1, "false"]),
        ("delete_results", "result_type",
         ["lora", "samples", "images", "checkpoints", "logs", "all"], ["", "lor", 3, ["lora"]]),
        ("clear_logs", "log_type", ["app", "requests", "errors", "system", "all"],
         [None, "", "APP", "engine", "../x"]),
        ("upload_training_data", "training_name", ["", "x" * 100, "Мои коты", "a/b"],
         ["x" * 101, 3, "a\0", "\ud800"]),
        ("upload_training_data", "trigger_word", ["", "x" * 100], ["x" * 101, 3]),
        ("upload_training_data", "cleanup_existing", [True, False], ["true", 1]),
        ("upload_training_data", "dataset_folder", ["a", "A.b_c-9", "x" * 150, None, ""],
         ["x" * 151, ".a", "_a", "..", "a b", "a/b", "ä", "a\n", 3, False]),
    ],
)  # fmt: skip
def test_each_value_has_its_limits(kind, field, good, bad):
    others = {name: value for name, value in VALID[kind].items() if name != field}
    if field in ("lora", "process_type"):
        others = {name: value for name, value in others.items() if name not in ("adapters", "kind")}
    for value in good:
        parsed(kind, **{**others, field: value})
    for value in bad:
        assert f"{field}: " in refused(kind, **{**others, field: value}), value


@pytest.mark.parametrize(
    "kind",
    ["process_status", "cancel", "download", "delete_results"],
)
def test_process_ids_are_plain_words(kind):
    for good in ("a", "x" * 64, "A-b_9", ID):
        assert parsed(kind, process_id=good).process_id == good
    for bad in ("", "x" * 65, "a b", "a/b", "a\n", "ä", "..", "a\0", 3, True, [], {"a": 1}):
        assert "process_id: must be" in refused(kind, process_id=bad)


@pytest.mark.parametrize(
    "reference",
    [f"results/{ID}/images/a b.png", f"s3://bucket/some/prefix/results/{ID}/lora/ä.safetensors"],
)
def test_a_download_may_name_a_file_in_place_of_a_process(reference):
    assert parsed("download", process_id=reference).process_id == reference
    assert parsed("bulk_download", process_ids=[ID, reference]).process_ids == (ID, reference)
    for bad in (reference + "x" * 1000, f"{reference}\0"):
        assert "process_id: " in refused("download", process_id=bad)
    assert "process_id: must be" in refused("cancel", process_id=reference)


def test_what_is_left_out_has_the_contracts_defaults():
    processes = parsed("processes")
    assert (processes.limit, processes.cursor, processes.kind, processes.status) == (
        200, "", None, (),
    )  # fmt: skip
    status = parsed("process_status", process_id="a")
    assert (status.log_after, status.log_limit) == (None, 500)
    assert (status.metrics_after, status.metrics_limit) == (None, 1000)
    assert parsed("lora").limit == parsed("list_files").limit == 200
    bulk = parsed("bulk_download", process_ids=["a"])
    assert (bulk.include_images, bulk.include_loras) == (True, True)
    assert parsed("delete_results", process_id="a").result_type == "all"
    sent = parse_request(upload("a.png"))
    assert (sent.training_name, sent.trigger_word, sent.cleanup_existing) == ("", "", True)
    assert sent.dataset_folder is None
    assert parsed("train", config=YAML).priority == 0


# Configs


@pytest.mark.parametrize("kind", ["train", "train_with_yaml"])
@pytest.mark.parametrize("field", ["config", "yaml_config"])
def test_a_training_has_the_same_config_whatever_it_is_called(kind, field):
    request = parsed(kind, **{field: YAML})
    assert request.text == YAML
    assert request.document == load_mapping(YAML)
    document = {"job": "extension", "config": {"name": "1e3", "n": [1, None, True, 0.5]}}
    request = parsed(kind, **{field: document})
    assert request.document == document
    assert load_mapping(request.text) == document


def test_a_training_needs_exactly_one_config():
    assert "config: missing" in refused("train")
    assert "config: missing" in refused("train", config="", yaml_config=" \n")
    assert "both are given" in refused("train", config=YAML, yaml_config=YAML)
    assert parsed("train", config="", yaml_config=YAML).text == YAML
    assert parsed("train", config=YAML, yaml_config=None).text == YAML


def test_a_text_that_is_no_yaml_mapping_is_told_when_it_is_parsed():
    for text in ("a: [", "- 1", "3"):
        with pytest.raises(InvalidConfig):
            _ = parsed("train", config=text).document


def test_the_length_of_a_config_is_bounded():
    text = "#" * MAX_YAML_CHARACTERS
    assert parsed("train", config=text).text == text
    assert "10,485,761 characters" in refused("train", config=text + "#")


@pytest.mark.parametrize("kind", ["train", "generate"])
@pytest.mark.parametrize("config", [3, True, ["a"], math.nan, "a\0", "\ud800", b"a: 1"])
def test_a_config_of_another_kind_is_refused(kind, config):
    assert "config: " in refused(kind, config=config)


def nested(depth):
    value = {}
    for _ in range(depth - 1):
        value = {"a": [value]} if depth < 0 else {"a": value}
    return value


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        (nested(MAX_DEPTH), nested(MAX_DEPTH + 1), "levels deep"),
        ({"a": [0] * (MAX_NODES - 3)}, {"a": [0] * (MAX_NODES - 2)}, "20,000 values"),
        ({"a": "x" * (MAX_CHARACTERS - 1)}, {"a": "x" * MAX_CHARACTERS}, "1,000,000 characters"),
        ({"x" * MAX_CHARACTERS: 0}, {"x" * MAX_CHARACTERS: "x"}, "1,000,000 characters"),
        ({"a": 10**100 - 1}, {"a": 10**100}, "100 digits"),
        ({"a": 1e300}, {"a": math.inf}, "isn't a number"),
        ({"a": None}, {"a": math.nan}, "isn't a number"),
        ({"a": "ä"}, {"a": ["\ud800"]}, "config: a[0]: the character U+D800"),
        ({"a\n": 1}, {"a\0": 1}, "U+0000"),
        ({"3": 1}, {3: 1}, "keys must be text"),
        ({"a": "b"}, {"a": b"b"}, "JSON"),
        ({"a": [[]]}, {"a": [{1}]}, "JSON"),
    ],
)
def test_a_config_that_is_a_mapping_has_the_limits_of_yaml(good, bad, words):
    assert parsed("train", config=good).document is good
    assert parsed("generate", config=good).document is good
    assert words in refused("train", config=bad)
    assert words in refused("generate", config=bad)


def test_no_depth_of_nesting_ends_the_program():
    deep = []
    for _ in range(100 * sys.getrecursionlimit()):
        deep = [deep]
    for kind, field in (("train", "config"), ("generate", "adapters"), ("cancel", "process_id"),
                        ("upload_training_data", "files"), ("generate", "seed"),
                        ("processes", "status"), ("bulk_download", "process_ids")):  # fmt: skip
        assert f"{field}" in refused(kind, **{"prompt": "x", field: deep})
        assert field in refused(kind, **{"prompt": "x", field: {"a": deep}})
    assert unknown_fields(parsed("health", x=deep)) == ("unknown field 'x' has no effect",)
    while deep:  # taken apart without recursion
        deep = deep.pop()


# Generation


@pytest.mark.parametrize("config", ["", None, "  \n"])
def test_an_empty_config_is_absent(config):
    request = parsed("generate", config=config, prompt="x")
    assert (request.text, request.document) == ("", None)
    assert "prompt: missing" in refused("generate", config=config)


def test_a_generation_may_have_config_and_prompt():
    request = parsed("generate", config="base_model: x", prompt="a cat")
    assert request.document == {"base_model": "x"}
    assert request.text == "base_model: x"
    assert request.fields() == {"prompts": ["a cat"]}
    assert load_mapping(parsed("generate", config={"a": 1}).text) == {"a": 1}


def test_direct_fields_are_collected_under_the_names_of_the_generation():
    request = parsed("generate", **VALID["generate"])
    assert request.fields() == {
        "base_model": "tiny", "adapters": [{"path": ID, "weight": 0.5}], "negative_prompt": "dog",
        "num_images": 2, "seed": 1, "steps": 3, "guidance_scale": 7.5, "width": 64, "height": 64,
        "scheduler": "ddim", "prompts": ["a cat"],
    }  # fmt: skip
    assert parsed("generate", prompt="x", lora=ID).fields() == {
        "prompts": ["x"], "adapters": [ID],
    }  # fmt: skip
    assert "both are given" in refused("generate", prompt="x", lora=ID, adapters=[])


def test_zero_is_a_value_and_not_absent():
    assert parsed("generate", prompt="x", seed=0, guidance_scale=0).fields() == {
        "prompts": ["x"], "seed": 0, "guidance_scale": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "field", ["num_images", "seed", "steps", "guidance_scale", "width", "height"]
)
def test_a_number_is_never_a_truth_value_nor_endless(field):
    for bad in (True, False, math.nan, -math.inf, 10**100, "\0"):
        assert f"{field}: " in refused("generate", prompt="x", **{field: bad})
    parsed("generate", prompt="x", **{field: "anything else is checked later"})


# Lists of processes


def test_a_status_may_be_one_or_a_list():
    assert parsed("processes", status="running").status == (Status.RUNNING,)
    every = [str(status) for status in Status]
    assert parsed("processes", status=every).status == tuple(Status)
    assert parsed("processes", status=[]).status == ()
    assert "status[1]: must be one of 'pending'" in refused("processes", status=["failed", "x"])
    for bad in ("", "done", 3, True, {"running": 1}, ["running"] * 6, [["running"]]):
        assert "status" in refused("processes", status=bad)


def test_the_old_name_of_kind_means_the_same():
    assert parsed("processes", process_type="training").kind == "training"
    assert parsed("processes", process_type="training", kind="training").kind == "training"
    assert "differ" in refused("processes", process_type="training", kind="generation")


@pytest.mark.parametrize("kind, most", [("bulk_download", 200), ("delete_results", 50)])
def test_process_ids_are_bounded_and_each_counts_once(kind, most):
    ids = [f"p{n}" for n in range(most)]
    assert list(parsed(kind, process_ids=ids).process_ids) == ids
    assert parsed(kind, process_ids=["b", "a", "b"]).process_ids == ("b", "a")
    assert list(parsed(kind, process_ids=[*ids, *ids, "p0"]).process_ids) == ids
    assert f"at most {most}" in refused(kind, process_ids=[*ids, "x"])
    assert f"at most {most}" in refused(kind, process_ids=["x"] * 1_000_000)
    assert "empty" in refused(kind, process_ids=[])
    assert "process_ids[1]: must be" in refused(kind, process_ids=["a", "a b"])
    for bad in ("a", 3, True, {"a": 1}):
        assert "process_ids: must be a list" in refused(kind, process_ids=bad)


def test_nothing_is_deleted_without_naming_whose():
    assert "say whose results" in refused("delete_results")
    assert "say whose results" in refused("delete_results", result_type="all")
    assert "both are given" in refused("delete_results", process_id="a", process_ids=["b"])
    assert parsed("delete_results", process_id="a").ids == ("a",)
    assert parsed("delete_results", process_ids=["a", "b"]).ids == ("a", "b")


# Uploads


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("a.png", "a.png"),
        ("folder/./sub//a.png", "folder/sub/a.png"),
        ("folder\\a.png", "folder/a.png"),
        ("C:\\pictures\\a.png", "a.png"),
        ("../../etc/a.png", "a.png"),
        ("..\\a.png", "a.png"),
        ("/a.png", "a.png"),
        ("a.JPG", "a.JPG"),
        ("A.b.WebP", "A.b.WebP"),
        ("a\u0308.png", "ä.png"),
        ("猫 (1).bmp", "猫 (1).bmp"),
        ("x" * 196 + ".png", "x" * 196 + ".png"),
        ("y" * 200 + "/" + "x" * 195 + ".png",) * 2,
    ],
)
def test_a_file_has_its_name_with_its_folders(name, stored):
    assert stored_names(name) == [stored]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "bmp"])
def test_images_can_be_uploaded(suffix):
    assert stored_names(f"a.{suffix}") == [f"a.{suffix}"]


@pytest.mark.parametrize("suffix", ["txt", "json", "yaml", "yml"])
def test_other_files_can_be_uploaded_beside_an_image(suffix):
    assert stored_names("a.png", f"a.{suffix}") == ["a.png", f"a.{suffix}"]
    assert "no image" in str(refused("upload_training_data", files=upload(f"a.{suffix}")["files"]))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "1 to 500"),
        ("x" * 497 + ".png", "1 to 500"),
        ("x" * 197 + ".png", "200 bytes"),
        ("ä" * 99 + ".png", "200 bytes"),
        ("ä" * 90 + "/" + "ö" * 90 + "/" + "ü" * 90 + "/ß/" + "é" * 90 + ".png", "600 bytes"),
        ("..", "no name"),
        ("/..", "no name"),
        ("a/", "no name"),
        ("\\", "no name"),
        ("a\n.png", "control"),
        ("a\0.png", "control"),
        ("a\u2028.png", "control"),
        ("a\x7f.png", "control"),
        ("a\x85.png", "control"),
        ("\ud800.png", "control"),
        ("a\n/b.png", "control"),
        (3, "must be text"),
        (True, "must be text"),
        (["a.png"], "must be text"),
    ],
)
def test_a_file_name_that_can_harm_is_refused(name, words):
    assert words in refused("upload_training_data", files=upload("ok.png", name)["files"])


@pytest.mark.parametrize(
    ("one", "two"),
    [("a.png", "a.png"), ("x/a.png", "x\\a.png"), ("a.png", "../a.png"), ("ä.png", "a\u0308.png")],
)
def test_two_files_of_one_name_are_refused_and_named(one, two):
    text = refused("upload_training_data", files=upload(one, "b.png", two)["files"])
    assert "is there twice" in text
    assert stored_names("a.png", "a.jpg", "a.txt") == ["a.png", "a.jpg", "a.txt"]


def test_names_that_differ_in_letter_case_or_folder_are_two_files():
    assert stored_names("Cat.png", "cAt.png", "x/Cat.png") == ["Cat.png", "cAt.png", "x/Cat.png"]


def test_an_upload_of_nothing_but_what_no_dataset_takes_is_refused():
    for name in ("a.svg", ".hidden.png", "_controls/a.png", "a.png.exe"):
        assert "no image" in refused("upload_training_data", files=upload(name)["files"])


def test_the_number_of_files_is_bounded():
    names = [f"{n}.png" for n in range(1001)]
    assert len(stored_names(*names[:1000])) == 1000
    assert "at most 1000" in refused("upload_training_data", files=upload(*names)["files"])
    assert "empty" in refused("upload_training_data", files=[])
    assert "files: missing" in refused("upload_training_data")
    for bad in ("a.png", 3, {"a.png": ""}, True):
        assert "files: must be a list" in refused("upload_training_data", files=bad)
    for bad in ("a.png", 3, [], True, math.nan):
        assert "files[0]: must be a mapping" in refused("upload_training_data", files=[bad])


def test_a_later_part_of_an_upload_may_hold_captions_only():
    assert stored_names("a.txt", cleanup_existing=False) == ["a.txt"]
    text = refused("upload_training_data", **upload("a.txt", type="upload_training_data"))
    assert "cleanup_existing: false" in text


def test_contents_are_bounded_text():
    def content(value):
        return {"files": [{"filename": "a.png", "content": value}]}

    longest = "A" * MAX_CONTENT_CHARACTERS
    assert parsed("upload_training_data", **content(longest)).files[0].content is longest
    text = refused("upload_training_data", **content(longest + "A"))
    assert "files[0].content: " in text
    assert len(text) < 400
    for bad in (3, True, b"AAAA", ["AAAA"], "ä", "\ud800"):
        text = refused("upload_training_data", **content(bad))
        assert "files[0].content: " in text
        assert "got" not in text


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("size", [0, 1, 2**63 - 1, None], [-1, 2**63, True, "1", 1.0, math.nan]),
        ("content_type", ["", "image/png", "x" * 255, None], ["x" * 256, 3, "\0"]),
    ],
)
def test_what_a_file_says_of_itself_is_checked(field, good, bad):
    for value in good:
        parsed("upload_training_data", files=[{**PNG, field: value}])
    for value in bad:
        text = refused("upload_training_data", files=[{**PNG, field: value}])
        assert f"files[0].{field}: " in text


def test_a_folder_is_the_one_that_is_given_and_an_empty_one_is_none():
    for folder, wanted in (("given", "given"), ("", None), (None, None)):
        sent = parse_request(upload("a.png", training_name="Мои коты", dataset_folder=folder))
        assert (sent.dataset_folder, sent.training_name) == (wanted, "Мои коты")


def test_names_become_one_line():
    request = parse_request(upload("a.png", training_name=" a\n\tb\x1b ", trigger_word="s\rks"))
    assert (request.training_name, request.trigger_word) == ("a b", "s ks")


# Anything at all

TEXTS = st.one_of(
    st.text(st.characters(), max_size=20),  # lone surrogates and NUL too
    st.sampled_from(["", "\0", "\ud800", "x" * 5000, "..", ID, "cats", YAML, "a.png", "a: [", "="]),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, 10**99, math.nan, math.inf]),
    st.sampled_from([1, -1]).map(lambda sign: sign * 10**5000),  # its repr is an error
    st.floats(),
    TEXTS,
    st.binary(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(TEXTS, st.integers()), inner, max_size=4),
        st.tuples(inner),
    ),
    max_leaves=12,
)
FIELDS = sorted({name for model in get_args(AnyRequest) for name in model.known_fields()})


def parse_or_refuse(data):
    try:
        request = parse_request(data)
    except InvalidRequest as error:
        text = str(error)
        assert len(text) < 20_000
        text.encode()
        assert len(error.problems) <= MAX_PROBLEMS
        return
    for sentence in unknown_fields(request):
        sentence.encode()
    again = parse_request(request.model_dump())
    assert again.model_dump() == request.model_dump()
    assert parse_request(request.model_dump(mode="json")).model_dump() == request.model_dump()
    assert unknown_fields(again) == ()


@given(VALUES)
def test_any_input_is_read_or_refused(data):
    parse_or_refuse(data)


@given(
    st.sampled_from(REQUEST_TYPES),
    st.dictionaries(st.one_of(st.sampled_from(FIELDS), TEXTS), VALUES, max_size=8),
)
def test_any_fields_of_any_type_are_read_or_refused(kind, fields):
    parse_or_refuse({**fields, "type": kind})


def places(value, path=()):
    """All paths into a nested structure."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(item, (*path, key))
    return found


def changed(value, path, action, replacement):
    """A copy of the structure with one place dropped, replaced, or doubled."""
    if not path:
        return replacement
    key, *rest = path
    if isinstance(value, dict):
        items = dict(value)
        if rest or action == "replace":
            items[key] = changed(items[key], rest, action, replacement)
        elif action == "drop":
            del items[key]
        else:
            items[f"{key}_"] = items[key]
        return items
    items = list(value)
    if rest or action == "replace":
        items[key] = changed(items[key], rest, action, replacement)
    elif action == "drop":
        del items[key]
    else:
        items.insert(key, items[key])
    return items


@given(
    st.sampled_from(REQUEST_TYPES),
    st.lists(
        st.tuples(st.integers(0), st.sampled_from(["drop", "replace", "double"]), VALUES),
        min_size=1,
        max_size=3,
    ),
)
def test_every_damaged_request_is_read_or_refused(kind, changes):
    data = {"type": kind, **VALID[kind]}
    for number, action, replacement in changes:
        if found := places(data):
            data = changed(data, found[number % len(found)], action, replacement)
    parse_or_refuse(data)
