"""The main job as users do it: train, look, generate."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.acceptance.conftest import SMALL, CommandLine

TEMPLATE = Path(__file__).parents[1] / "data" / "training_flux.yaml"


@pytest.mark.slow
def test_train_then_generate_with_the_result(
    cli: CommandLine, dataset: Path, tmp_path: Path
) -> None:
    trained = cli.run(
        "train", "--dataset", str(dataset), *SMALL, "--steps", "6", "--name", "triangle",
        "--sample-prompt", "a [trigger] triangle", "--sample-every", "3", "--set", "sample_steps=2",
        "--output", str(tmp_path / "out"),
    )  # fmt: skip
    assert trained.exit_code == 0, trained.err
    assert "completed" in trained.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "triangle.safetensors", "loss.png", "samples.png"
    }  # fmt: skip
    process_id = trained.out.split(":")[0]

    (path,) = (cli.objects / "results" / process_id / "manifest").rglob("manifest.json")
    manifest = json.loads(path.read_text())
    kinds = {entry["kind"] for entry in manifest["files"]}
    assert kinds == {"lora", "sample", "checkpoint", "config", "job", "metrics", "log"}
    for entry in manifest["files"]:
        assert (cli.objects / entry["key"]).stat().st_size == entry["size_bytes"]

    drawn = cli.run(
        "generate", "--adapter", f"{process_id}:0.8", "-p", "a sks triangle", "-n", "2", "--seed",
        "4", "--steps", "2", "--output", str(tmp_path / "images"), "--json",
    )  # fmt: skip
    assert drawn.exit_code == 0, drawn.err
    assert drawn.result["status"] == "completed"
    assert [event["seed"] for event in drawn.events if event["type"] == "image"] == [4, 5]
    images = sorted((tmp_path / "images").iterdir())
    assert len(images) == 2
    with Image.open(images[0]) as image:
        assert image.size == (64, 64)
        assert "<lora:triangle:0.8>" in image.text["parameters"]


@pytest.mark.slow
def test_adapter_is_found_in_the_object_store_when_the_workspace_is_gone(
    cli: CommandLine, dataset: Path
) -> None:
    import shutil

    trained = cli.run("train", "--dataset", str(dataset), *SMALL, "--steps", "2", "--json").result
    shutil.rmtree(cli.workspace)
    drawn = cli.run(
        "generate", "-a", trained["process_id"], "-p", "a sks triangle", "--steps", "1", "--json"
    )
    assert drawn.result["status"] == "completed", drawn.err


@pytest.mark.slow
def test_template_of_the_published_client_trains_on_a_local_base(
    cli: CommandLine, dataset: Path
) -> None:
    """Only what must differ is set: where base and data lie, and sizes that suit a tiny model."""
    trained = cli.run(
        "train", str(TEMPLATE), "--base-model", "emoji-base", "--dataset", str(dataset),
        "--steps", "3", "--set", "sample.width=64", "--set", "sample.height=64",
        "--set", "sample.sample_steps=2", "--json",
    )  # fmt: skip
    assert trained.exit_code == 0, trained.err
    assert trained.result["status"] == "completed"
    assert "is_flux: ignored" in trained.err
    assert "flowmatch" in trained.err
    warnings = {event["code"] for event in trained.events if event["type"] == "warning"}
    assert warnings == {"optimizer_fallback"}
    assert Path(trained.result["ending"]["path"]).name == "my_new_dataset.safetensors"


@pytest.mark.slow
def test_demo_shows_the_logo_and_leaves_the_rest_alone(cli: CommandLine, tmp_path: Path) -> None:
    shown = cli.run("demo", "--output", str(tmp_path / "demo"), "--json", timeout_s=600)
    assert shown.exit_code == 0, shown.err or shown.out[-2000:]
    result = shown.result
    assert result["holds"] is True
    assert result["approach"] >= 0.40
    measures = result["measures"]
    assert measures["change_in_the_mix"] <= 0.15
    assert measures["change_not_in_the_mix"] <= 0.15
    assert measures["between_subjects"] > 0.3
    with Image.open(tmp_path / "demo/demo.png") as sheet:
        assert sheet.width > 1000
    assert (tmp_path / "demo/demo_logo.safetensors").stat().st_size > 100_000
