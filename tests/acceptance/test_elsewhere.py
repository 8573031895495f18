"""Commands that train and generate where the settings say, and not on this machine."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import SMALL, CommandLine, Server

pytestmark = pytest.mark.slow


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Server]:
    """A running server with a workspace of its own."""
    (tmp_path / "remote").mkdir()
    server = Server(CommandLine(tmp_path / "remote")).start()
    yield server
    server.close()


def test_with_a_url_commands_train_and_generate_on_that_server(
    remote: Server, cli: CommandLine, dataset: Path, tmp_path: Path
) -> None:
    train = ("train", "--dataset", str(dataset), *SMALL, "--name", "far", "--steps")
    trained = cli.run(*train, "2", "--output", str(tmp_path / "out"), LORADASH_URL=remote.url)
    assert trained.exit_code == 0, trained.err
    process_id = trained.out.split(":")[0]
    assert remote.process(process_id)["status"] == "completed"
    assert (tmp_path / "out" / "far.safetensors").stat().st_size > 1000
    drawn = cli.run(
        "generate", "-a", process_id, "-p", "a sks triangle", "--steps", "1", "--json",
        "--output", str(tmp_path / "images"), LORADASH_URL=remote.url,
    )  # fmt: skip
    assert drawn.exit_code == 0, drawn.err
    assert drawn.result["status"] == "completed"
    assert len(list((tmp_path / "images").iterdir())) == 1

    longer = cli.run("train", "--extend", "far", "--steps", "3", "--json", LORADASH_URL=remote.url)
    assert longer.exit_code == 0, longer.err
    view = remote.process(longer.result["process_id"])
    assert (view["step"], view["name"], view["status"]) == (3, "far-3", "completed")
    assert (view["origin"]["process_id"], view["origin"]["step"]) == (process_id, 2)
    assert [note["from_step"] for note in view["attempts"]] == [2]
    assert "follow that of 3 steps" in longer.err  # its learning rate follows a cosine

    follower = cli.start(*train, "500", LORADASH_URL=remote.url)
    assert follower.stdout
    waiting = follower.stdout.readline().split(":")[0]
    follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    _, said = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert f"cancel {waiting}" in said
    assert remote.process(waiting)["status"] in ("pending", "running")
    remote.ask(type="cancel", process_id=waiting)
    assert cli.written() == [], "something was done on this machine"


def test_with_runpod_a_training_is_queued_in_the_shared_records(
    cli: CommandLine, dataset: Path
) -> None:
    shared = {"LORADASH_EXECUTOR": "runpod", "LORADASH_OBJECTS_SHARED": "true"}
    queued = cli.run("train", "--dataset", str(dataset), *SMALL, "--detach", **shared)
    assert queued.exit_code == 0, queued.err
    process_id = queued.out.strip()
    assert "No control plane is running on this machine" in queued.err
    assert (cli.objects / "processes" / f"{process_id}.json").is_file()
    assert list(cli.objects.glob("dataset/dataset-*/_training_info.json"))
    assert cli.recorded() == []
    listed = cli.run("processes", process_id, **shared)
    assert "pending" in listed.out
