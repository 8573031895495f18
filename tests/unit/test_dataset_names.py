"""Names of datasets: any text, each a dataset of its own, and found again by what it was called."""

import base64
import io
import threading
import unicodedata
import zipfile

import pytest

from loradash.domain.dataset_names import folders_of
from loradash.domain.training_text import parse_training_text, training_text
from loradash.services.datasets import store as store_module

from .world import World, logged, picture


@pytest.fixture(autouse=True)
def log():
    with logged() as stream:
        yield stream


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def upload(world, name, number=0, **fields):
    content = base64.b64encode(picture(number)).decode()
    return world.ask(
        "upload_training_data", training_name=name,
        files=[{"filename": f"{number}.png", "content": content}], **fields,
    )  # fmt: skip


def images(world, folder):
    return [file.name for file in world.datasets.details.manifest(folder).files]


def yaml(folder):
    return f"dataset: {folder}\nbase_model: emoji-base\nname: cat\nsteps: 3\n"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("cats", "cats"), ("my cats", "my-cats"), ("  my // cats  ", "my-cats"),
        ("gęś", "ges"), ("gaś", "gas"), ("Zażółć gęślą jaźń", "Zazolc-gesla-jazn"),
        ("Мои коты", "Moi-koty"), ("Straße 5", "Strasse-5"), ("../../etc", "etc"),
        ("._-a_b.c-", "a_b.c"), ("x" * 100, "x" * 100), ("training_1733", "training_1733"),
    ],
)  # fmt: skip
def test_a_name_is_written_with_plain_letters(world, name, folder):
    reply = upload(world, name)
    assert (reply["dataset_folder"], reply["training_folder"]) == (folder, folder)
    assert folders_of(name).plain == folders_of(unicodedata.normalize("NFD", name)).plain == folder


@pytest.mark.parametrize("name", ["!!!", "..", "…"])
def test_a_name_of_which_nothing_can_be_used_has_a_folder_of_its_own(world, name):
    first, again = (upload(world, name)["dataset_folder"] for _ in range(2))
    assert first == again
    assert first != upload(world, "?!")["dataset_folder"]


def test_names_that_look_alike_are_different_datasets(world):
    names = ["gęś", "ges", "gés", "gêś", "Ges!", "ges?"]
    folders = [upload(world, name, number)["dataset_folder"] for number, name in enumerate(names)]
    assert len(set(folders)) == len(names)
    assert folders[0] == "ges"
    for number, (name, folder) in enumerate(zip(names, folders, strict=True)):
        assert images(world, folder) == [f"{number}.png"], name
        # Once more is the same dataset, of whatever form its letters are.
        again = upload(world, unicodedata.normalize("NFD", name), number + 10)
        assert again["dataset_folder"] == folder
        assert images(world, folder) == [f"{number + 10}.png"]
        assert world.datasets.resolve(name) == folder
        assert world.datasets.resolve(folder) in (folder, folders[1])


def test_a_training_finds_its_dataset_by_the_name_and_by_the_folder(world):
    first, second = (upload(world, name)["dataset_folder"] for name in ("gęś", "gés"))
    for name, folder in (("gęś", first), ("gés", second), (second, second)):
        assert world.datasets.resolve(name) == folder
        assert "process_id" in world.ask("train", config=yaml(name))
    assert "error" in world.ask("train", config=yaml("kaczka"))


def test_announced_uploads_of_two_names_are_two_datasets(world):
    def announced(name, number):
        data = picture(number)
        plan = world.ask(
            "create_upload", training_name=name,
            files=[{"filename": f"{number}.png", "size": len(data)}],
        )  # fmt: skip
        world.store.put(plan["files"][0]["key"], data)
        return {name: plan[name] for name in ("dataset_folder", "upload_id")}

    first, second = announced("gęś", 0), announced("gés", 1)
    assert "error" not in world.ask("complete_upload", **first)
    taken = world.ask("complete_upload", **second)  # announced while the folder was free
    assert "another dataset, 'gęś'" in taken["error"]
    assert images(world, "ges") == ["0.png"]
    second = announced("gés", 1)
    assert "error" not in world.ask("complete_upload", **second)
    assert images(world, second["dataset_folder"]) == ["1.png"]
    assert images(world, "ges") == ["0.png"]


def test_two_names_that_arrive_at_once_are_two_datasets(world, monkeypatch):
    """Both find the folder free before either has it."""
    both = threading.Barrier(2, timeout=60)
    found = store_module.DatasetStore.folder_for
    waited = set()

    def meet(self, name):
        folder = found(self, name)
        if name not in waited:
            waited.add(name)
            both.wait()
        return folder

    monkeypatch.setattr(store_module.DatasetStore, "folder_for", meet)
    replies = {}
    names = {"gęś": 0, "gés": 1}
    threads = [
        threading.Thread(target=lambda n=n, i=i: replies.update({n: upload(world, n, i)}))
        for n, i in names.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    folders = {name: reply["dataset_folder"] for name, reply in replies.items()}
    assert len(set(folders.values())) == 2
    for name, folder in folders.items():
        assert images(world, folder) == [f"{names[name]}.png"]


def test_a_zip_is_imported_under_any_name(world):
    def zipped(number):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(f"{number}.png", picture(number))
        return buffer.getvalue()

    headers = {"content-type": "application/zip"}
    with world.client() as client:
        folders = [
            client.post(f"/datasets/{name}/zip?replace=true", content=zipped(number),
                        headers=headers).json()["dataset_folder"]
            for number, name in enumerate(("gęś", "gés"))
        ]  # fmt: skip
        refused = client.post("/datasets/a b/zip", content=zipped(0), headers=headers)
        assert refused.status_code == 400
    assert folders[0] == "ges" != folders[1]
    assert [images(world, folder) for folder in folders] == [["0.png"], ["1.png"]]


def test_another_title_leaves_the_dataset_where_it_is(world):
    upload(world, "gęś", 0)
    world.services.dataset_editor.describe("ges", training_name="Ptaki")
    assert upload(world, "ges", 1)["dataset_folder"] != "ges"
    assert upload(world, "gęś", 2)["dataset_folder"] == "ges"
    assert images(world, "ges") == ["2.png"]


@pytest.mark.parametrize("name", ["gęś", "My cats"])
def test_datasets_of_earlier_releases_belong_to_their_names(world, name):
    folder = {"gęś": "g", "My cats": "My-cats"}[name]
    upload(world, name, 0, dataset_folder=folder)
    assert world.datasets.resolve(name) == folder
    assert upload(world, folder, 1)["dataset_folder"] != folder
    assert images(world, folder) == ["0.png"]


def test_what_is_added_joins_the_dataset_of_the_same_name_only(world):
    upload(world, "gęś", 0)
    assert upload(world, "gęś", 1, cleanup_existing=False)["dataset_folder"] == "ges"
    other = upload(world, "gés", 2, cleanup_existing=False)["dataset_folder"]
    assert images(world, "ges") == ["0.png", "1.png"]
    assert images(world, other) == ["2.png"]


NAMES = ["2026", "1e3", "0123", "2026-11-26", "yes", "null", "true", "1_000", "0x1F", "1.5", ".5"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_yaml_takes_for_something_else_is_a_name(world, name):
    folder = upload(world, name)["training_folder"]
    assert folder == name.lstrip(".")
    for line_end in ("\n", "\r\n"):
        text = (
            "job: extension\nconfig:\n  name: cat\n  process:\n"
            "    - type: diffusion_trainer\n      network: {linear: 4}\n      datasets:\n"
            f"        - folder_path: {folder}\n"
            "      model:\n        name_or_path: emoji-base\n      train:\n        steps: 3\n"
        ).replace("\n", line_end)
        for config in (text, yaml(folder)):
            parsed = parse_training_text(config)
            assert parsed.process.datasets[0].folder_path == folder
            assert parse_training_text(training_text(parsed)) == parsed
            process_id = world.ask("train_with_yaml", config=config)["data"]["process_id"]
            shown = world.ask("process_status", process_id=process_id)["config"]
            assert shown


def test_a_name_of_digits_may_be_a_number_of_json(world):
    upload(world, "2026")
    config = {"dataset": 2026, "base_model": "emoji-base", "steps": 3}
    assert "process_id" in world.ask("train", config=config)
    assert "error" in world.ask("train", config={**config, "dataset": True})


def test_settings_that_are_left_empty_stay_empty():
    config = parse_training_text(yaml("cats") + "trigger_word: null\nregularization:\n")
    assert config.process.trigger_word is None
    assert len(config.process.datasets) == 1
    assert parse_training_text(yaml("cats") + "trigger_word: 007\n").process.trigger_word == "007"
