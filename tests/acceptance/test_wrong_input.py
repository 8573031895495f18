"""Wrong input: an error that names field and remedy, an exit code, and nothing half-written."""

from pathlib import Path

import pytest
from PIL import Image

from tests.acceptance.conftest import CommandLine

GOOD = """
dataset: {dataset}
base_model: emoji-base
steps: 2
resolution: 64
"""
FULL = """
job: extension
config:
  name: x
  process:
    - type: sd_trainer
      network: {{type: lora, linear: {rank}, linear_alpha: 4}}
      datasets: [{{folder_path: {dataset}, resolution: 64}}]
      train: {{steps: 2, lr: 1e-4, {train}}}
      model: {{name_or_path: {base}}}
      sample: {{prompts: ["{prompt}"]}}
"""


def full(
    dataset: Path, rank: str = "4", train: str = "", base: str = "emoji-base", prompt: str = ""
) -> str:
    return FULL.format(dataset=dataset, rank=rank, train=train, base=base, prompt=prompt)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(lambda d: "a: [1, 2", ["line", "YAML"], id="broken-yaml"),
        pytest.param(lambda d: "- 1\n- 2", ["mapping"], id="not-a-mapping"),
        pytest.param(lambda d: GOOD.format(dataset=d) + "stesp: 3", ["stesp", "steps"], id="typo"),
        pytest.param(lambda d: full(d, train="stesp: 4"), ["stesp", "'steps'"], id="deep"),
        pytest.param(lambda d: full(d, rank="0"), ["network.linear", "got 0"], id="rank-0"),
        pytest.param(lambda d: full(d, prompt="${HOME}"), ["prompts[0]", "${HOME}"], id="variable"),
        pytest.param(lambda d: full(d, base="/nowhere"), ["/nowhere", "hub id"], id="no-base"),
        pytest.param(lambda d: full(d, base=str(d)), ["model_index.json"], id="base-is-no-model"),
        pytest.param(
            lambda d: GOOD.format(dataset="/no/where"), ["/no/where", "caption"], id="no-dataset"
        ),
        pytest.param(
            lambda d: full(d, train="do_cfg: true"), ["train.do_cfg", "not supported"], id="refused"
        ),
        pytest.param(
            lambda d: full(d).replace("sd_trainer", "slider"), ["process[0].type"], id="wrong-type"
        ),
    ],
)  # fmt: skip
def test_wrong_config_is_named_and_nothing_is_written(
    cli: CommandLine, dataset: Path, tmp_path: Path, text, expected: list[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text(dataset))
    result = cli.run("train", str(config))
    assert result.exit_code == 1
    for part in expected:
        assert part in result.err
    assert "Traceback" not in result.err
    assert cli.written() == []


def test_corrupt_image_is_named_and_skipped_only_if_asked_for(
    cli: CommandLine, dataset: Path, tmp_path: Path
) -> None:
    (dataset / "3.png").write_bytes((dataset / "3.png").read_bytes()[:70])
    (dataset / "page.jpg").write_text("<html>not found</html>")
    config = tmp_path / "config.yaml"
    config.write_text(GOOD.format(dataset=dataset))
    refused = cli.run("train", str(config))
    assert refused.exit_code == 1
    assert "3.png" in refused.err
    assert "page.jpg" in refused.err
    assert "on_bad_image: skip" in refused.err
    assert cli.written() == []
    accepted = cli.run("train", str(config), "--set", "on_bad_image=skip", "--check")
    assert accepted.exit_code == 0
    assert "5 images" in accepted.out


def test_empty_dataset_is_an_error(cli: CommandLine, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("no image here")
    result = cli.run("train", "--dataset", str(empty), "--base-model", "emoji-base")
    assert result.exit_code == 1
    assert "no usable image" in result.err


def test_base_model_that_can_run_code_is_refused(
    cli: CommandLine, dataset: Path, tmp_path: Path
) -> None:
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(b"\x80\x04.")
    result = cli.run("train", "--dataset", str(dataset), "--base-model", str(pickle))
    assert result.exit_code == 1
    assert ".safetensors" in result.err


@pytest.mark.slow
def test_hub_model_without_network_fails_with_a_remedy(cli: CommandLine, dataset: Path) -> None:
    result = cli.run(
        "train", "--dataset", str(dataset), "--base-model", "somebody/some-model", "--steps", "1"
    )
    assert result.exit_code == 1
    assert "isn't in the hub's cache" in result.err
    assert "HF_HUB_OFFLINE" in result.err


@pytest.mark.slow
def test_broken_base_model_fails_with_a_remedy(
    cli: CommandLine, dataset: Path, tmp_path: Path
) -> None:
    import shutil

    from loradash.data import base_model_folder

    broken = tmp_path / "broken"
    shutil.copytree(base_model_folder("emoji-base"), broken)
    weights = broken / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    for arguments in (("--check",), ()):
        result = cli.run(
            "train", "--dataset", str(dataset), "--base-model", str(broken), *arguments
        )
        assert result.exit_code == 1
        assert "unet/diffusion_pytorch_model.safetensors is cut off: 100,000 of" in result.err
    assert not list(cli.workspace.glob("output/training/*"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("train",), "--dataset"),
        (("train", "missing.yaml"), "missing.yaml"),
        (("train", "--resume", "train_00000000000000000000"), "there is no process"),
        (("train", "--resume", "../../etc"), "there is no process"),
        (("generate", "--base-model", "emoji-base"), "prompt"),
        (("generate", "-p", "x", "-a", "nowhere.safetensors"), "nowhere.safetensors"),
        (("generate", "-p", "x", "-a", "nowhere.pt"), "nowhere.pt"),
        (("generate", "-p", "x", "--base-model", "emoji-base", "--steps", "0"), "steps"),
        (("datasets", "check", "/no/where"), "/no/where"),
    ],
)
def test_wrong_arguments_are_named(
    cli: CommandLine, arguments: tuple[str, ...], expected: str
) -> None:
    result = cli.run(*arguments)
    assert result.exit_code == 1
    assert expected in result.err
    assert "Traceback" not in result.err


def test_bad_setting_names_the_variable(cli: CommandLine) -> None:
    result = cli.run("train", "--list", TRAINING_TIMEOUT="soon")
    assert result.exit_code == 1
    assert "TRAINING_TIMEOUT" in result.err


def test_output_folder_that_cannot_be_written_is_named(cli: CommandLine, dataset: Path) -> None:
    result = cli.run("generate", "-p", "x", "--base-model", "emoji-base", "--steps", "1",
                     "--output", str(dataset / "0.png" / "below"))  # fmt: skip
    assert result.exit_code == 1
    assert "0.png" in result.err
    assert "Traceback" not in result.err


def test_traceback_is_shown_only_for_debugging(cli: CommandLine) -> None:
    assert "Traceback" not in cli.run("train", "missing.yaml").err
    assert "Traceback" in cli.run("train", "missing.yaml", DEBUG="true").err


def test_errors_are_json_for_programs(cli: CommandLine) -> None:
    result = cli.run("train", "missing.yaml", "--json")
    assert result.exit_code == 1
    assert result.result["type"] == "error"
    assert result.result["code"] == "config_invalid"
    assert result.result["remedy"]


def test_dataset_check_reports_everything(cli: CommandLine, dataset: Path) -> None:
    good = cli.run("datasets", "check", str(dataset), "--resolution", "64", "--step", "16")
    assert good.exit_code == 0
    assert "bucket 64x64" in good.out
    (dataset / "bad.webp").write_bytes(b"RIFF")
    (dataset / "0.txt").unlink()
    Image.open(dataset / "1.png").save(dataset / "copy.png")
    bad = cli.run("datasets", "check", str(dataset), "--json")
    assert bad.exit_code == 1
    report = bad.result
    assert report["usable"] is False
    assert report["problems"][0]["relative_path"] == "bad.webp"
    assert report["missing_captions"] == ["0.png", "copy.png"]


def test_doctor_tells_what_is_there(cli: CommandLine) -> None:
    result = cli.run("doctor", "--json")
    findings = {finding["subject"]: finding for finding in result.result["findings"]}
    assert result.exit_code == 0, result.out
    assert findings["torch"]["verdict"] == "ok"
    assert findings["downloads"]["verdict"] == "off"
    assert findings["base model emoji-base"]["verdict"] == "ok"
    table = cli.run("doctor")
    assert "device" in table.out
