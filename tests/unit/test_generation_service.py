import hashlib
import json
import sys
import time
from datetime import UTC, datetime

import pytest

from loradash.data import base_model_folder
from loradash.domain import process as changes
from loradash.domain.addresses import NO_ADDRESS, Address
from loradash.domain.events import parse_event
from loradash.domain.generation import GenerationRequest
from loradash.domain.ids import is_process_id
from loradash.domain.process import ProcessRecord, Status
from loradash.domain.yaml_text import load_mapping
from loradash.engines.catalogue import Engines
from loradash.engines.diffusers.base_models.families import find_base_model
from loradash.engines.engine import Artifact, Command, Trains, WarmGenerator
from loradash.errors import (
    DiskFull,
    InvalidAdapter,
    InvalidBaseModel,
    InvalidConfig,
    LoradashError,
    NotFound,
)
from loradash.registry.registry import StoredArtifact
from loradash.registry.sql import SqlRegistry
from loradash.runtime.manifests import write_manifest
from loradash.runtime.supervisor import Limits, StopRequest
from loradash.runtime.warm_pipeline import WarmPipeline
from loradash.services.generation.service import GenerationService
from loradash.services.path_policy import ANYWHERE, PathPolicy
from loradash.services.processes.running import generate_here
from loradash.storage import keys
from loradash.storage.memory import MemoryStore

from .conftest import PRELUDE
from .here import TIMING, Here
from .published import content

ID = "train_01k9x3q4zt8m2v7c0hde"
GENERATOR = """
for line in sys.stdin:
    job = json.loads(line)
    if job["type"] == "cancel":
        continue
    id, folder = job["request_id"], job["folder"]
    os.makedirs(folder, exist_ok=True)
    total = len(job["prompts"])
    emit("phase", request_id=id, phase="generating", done=len(job["done"]), total=total)
    for n, prompt in enumerate(job["prompts"]):
        if n in job["done"]:
            continue
        if prompt == "crash" and not os.path.exists(f"{folder}/crashed"):
            open(f"{folder}/crashed", "w").close()
            os._exit(3)
        if prompt == "hang":
            emit("phase", request_id=id, phase="generating", done=n, total=total, detail="hang")
            time.sleep(60)
        path = f"{folder}/image_{n:04d}.png"
        open(path, "w").write(prompt)
        emit("image", request_id=id, index=n, path=path, prompt=prompt, seed=job["seed"] + n,
             duration_s=0)
        emit("phase", request_id=id, phase="generating", done=n + 1, total=total)
    if "fail" in job["prompts"]:
        emit("failed", request_id=id, code="out_of_memory", message="full")
    else:
        emit("done", request_id=id)
    emit("ready")
"""


class ScriptedEngine(Trains, WarmGenerator):
    """Draws an image by writing its prompt into a file; an adapter is any file with ``LORA``."""

    name = "scripted"
    version = "1"

    def __init__(self, folder):
        self.folder = folder
        self.lines = []

    def check_base_model(self, name):
        find_base_model(name)

    def check_generation(self, request):
        pass

    def artifacts(self, folder):
        return [Artifact("lora", path) for path in sorted(folder.glob("lora/*"))]

    def verify_adapter(self, path):
        return self.adapter_metadata(path)

    def adapter_metadata(self, path):
        if not path.read_text().startswith("LORA"):
            raise InvalidAdapter(f"{path}: no LoRA", remedy="Train again.")
        return json.loads(path.read_text()[4:] or "{}")

    def serve_command(self, working_directory):
        script = self.folder / "engine_script.py"
        script.write_text(PRELUDE + GENERATOR)
        return Command(
            argv=(sys.executable, "-S", "-E", str(script)), working_directory=self.folder
        )

    def generation_line(self, request_id, request, adapters, folder, done=()):
        line = {
            "type": "generate", "request_id": request_id, "prompts": request.prompts,
            "seed": request.seed, "base_model": request.base_model, "folder": str(folder),
            "adapters": [str(path) for path in adapters], "done": done,
        }  # fmt: skip
        self.lines.append(line)
        return json.dumps(line)

    def parse(self, line):
        return parse_event(line)


@pytest.fixture
def engine(tmp_path):
    return ScriptedEngine(tmp_path)


@pytest.fixture
def make(tmp_path, engine):
    """Return a function that makes all the parts around a generation service."""
    services = []

    def make_here(address=NO_ADDRESS, **parts):
        here = Here(tmp_path / "work", **parts)
        here.pipelines = {}

        def make_pipeline(engine, device, environment):
            log = tmp_path / f"log-{device}.txt"
            pipeline = WarmPipeline(engine, log, idle_unload_s=60, environment=environment)
            here.pipelines[device] = pipeline
            return pipeline

        limits = Limits(timeout_s=20, stall_s=20, grace_s=1)
        here.service = GenerationService(
            Engines([engine], engine.name),
            make_pipeline,
            here.workspace,
            here.store,
            here.registry,
            limits,
            address,
        )
        here.works["generation"] = here.service
        services.append(here.service)
        return here

    yield make_here
    for service in services:
        service.close()


@pytest.fixture
def here(make):
    return make()


@pytest.fixture
def service(here):
    return here.service


@pytest.fixture
def store(here):
    return here.store


@pytest.fixture
def workspace(here):
    return here.workspace


@pytest.fixture
def trained(here):
    """Return a function that makes the record of a training, with an adapter in the store."""

    def make_training(content=b"LORA", id_=ID, name="mine.safetensors", kind="lora", folder="lora"):
        now = datetime.now(UTC)
        take = here.runner.taking("local")
        record = ProcessRecord(
            id=id_, kind="training", name="mine", created_at=now, enqueued_at=now, updated_at=now
        )
        token = here.registry.create(take(record)).lease.token
        if content is not None:
            key = f"results/{id_}/{folder}/{name}"
            here.store.put(key, content)
            entry = StoredArtifact(
                process_id=id_, key=key, kind=kind, name=name, size_bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(), created_at=now,
            )  # fmt: skip
            here.registry.put_artifacts(token, [entry])
        prefix = f"results/{id_}"
        here.registry.change(
            id_, lambda one: changes.completed(one, token, now=now, output_prefix=prefix)
        )
        return f"results/{id_}/{folder}/{name}"

    return make_training


@pytest.fixture
def adapter(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text('LORA{"loradash.base_model": "emoji-base"}')
    return path


def request(*prompts, base_model="emoji-base", **fields):
    return GenerationRequest(base_model=base_model, prompts=prompts, **fields)


def draw(here, *prompts, on_event=lambda event: None, stop=None, **fields):
    """Check, submit and run a generation here."""
    return generate_here(
        here.service, here.runner, request(*prompts, **fields), on_event, stop or StopRequest()
    )


def submit(here, *prompts, **fields):
    return here.service.submit(here.service.check(request(*prompts, **fields))).id


def test_images_are_drawn_and_stored(here, store, workspace):
    events = []
    result = draw(here, "a cat", "a dog", on_event=events.append)
    assert result.ending.type == "done"
    assert is_process_id(result.process_id)
    assert [event.prompt for event in result.images] == ["a cat", "a dog"]
    told = [event.type for event in events if event.type != "phase"]
    assert told == ["image", "image"]
    folder = workspace.generation(result.process_id)
    assert (folder / "image_0001.png").read_text() == "a dog"
    assert content(store, f"results/{result.process_id}/images/image_0001.png") == b"a dog"


def test_a_failed_generation_tells_which_images_are_there_and_keeps_them(here):
    result = draw(here, "a cat", "fail")
    assert result.ending.code == "out_of_memory"
    assert len(result.images) == 2
    record = here.record(result.process_id)
    assert (record.status, record.error.code) == (Status.FAILED, "out_of_memory")
    assert record.error.resumable
    assert list(here.artifacts(record.id, "image")) == ["image_0000.png", "image_0001.png"]


def test_a_generation_with_an_unknown_adapter_starts_nothing(here, workspace):
    with pytest.raises(NotFound, match=r"missing\.safetensors"):
        draw(here, "a cat", adapters=({"path": "missing.safetensors"},))
    assert here.registry.page().records == ()
    assert here.keys() == []
    assert not workspace.root.exists()


def test_an_adapter_is_found_by_its_path(service, adapter, monkeypatch):
    assert service.find_adapter(str(adapter)) == adapter
    monkeypatch.chdir(adapter.parent)
    assert service.find_adapter("a.safetensors") == adapter


def test_an_adapter_is_found_by_the_training_that_made_it(service, workspace, trained):
    trained(b"LORA")
    path = workspace.training(ID) / "lora" / "mine.safetensors"
    path.parent.mkdir(parents=True)
    path.write_text("LORA")
    assert service.find_adapter(ID) == path


def test_a_file_in_the_workspace_that_is_not_what_was_stored_is_not_used(
    service, workspace, trained
):
    trained(b"LORA {}")
    path = workspace.training(ID) / "lora" / "mine.safetensors"
    path.parent.mkdir(parents=True)
    path.write_text("LORA[]!")  # as long, and another one
    found = service.find_adapter(ID)
    assert found.read_text() == "LORA {}"
    assert found.is_relative_to(workspace.lora(ID))


def test_an_adapter_that_was_damaged_in_the_store_is_refused(service, store, trained, workspace):
    store.put(trained(b"LORA"), b"LORB")
    with pytest.raises(LoradashError) as caught:
        service.find_adapter(ID)
    assert caught.value.code == "results_not_stored"
    assert not list(workspace.root.rglob("*.safetensors"))


def test_an_adapter_is_found_by_its_key_and_by_its_address_in_the_bucket(make, trained, here):
    key = trained(b"LORA")
    path = here.service.find_adapter(key)
    assert path.read_text() == "LORA"
    other = make(Address("ours", "some/where"), store=here.store, registry=here.registry)
    for address in (f"s3://ours/some/where/{key}", f"S3://ours/some/where/{key}"):
        assert other.service.find_adapter(address) == path
        assert other.service.check_adapter(address, PathPolicy([])) == address
    with pytest.raises(NotFound, match="there is no adapter"):
        other.service.find_adapter(f"s3://ours/some/where/results/{ID}/lora/another.safetensors")


@pytest.mark.parametrize(
    "address",
    ["s3://theirs/some/where/KEY", "s3://ours/KEY", "s3://ours/some/where-else/KEY",
     "S3://theirs/KEY", "s3://ours/some/where/dataset/cats/a.safetensors", "s3://", "s3://ours"],
)  # fmt: skip
def test_an_adapter_outside_of_our_bucket_and_prefix_is_refused(
    make, trained, here, tmp_path, monkeypatch, address
):
    key = trained(b"LORA")
    other = make(Address("ours", "some/where"), store=here.store, registry=here.registry)
    monkeypatch.chdir(tmp_path)
    address = address.replace("KEY", key)
    local = tmp_path / address  # 's3:/theirs/...' is a path as well
    local.parent.mkdir(parents=True, exist_ok=True)
    if local.suffix:
        local.write_text("LORA")
    for call in (
        lambda: other.service.find_adapter(address),
        lambda: other.service.check_adapter(address, ANYWHERE),
    ):
        with pytest.raises(NotFound, match="isn't a result in this server's store") as caught:
            call()
        assert "list_models" in caught.value.remedy


def test_a_checkpoint_of_a_training_can_be_used_as_an_adapter_by_its_key(service, trained):
    key = trained(
        name="step-000000003/adapter.safetensors", kind="checkpoint", folder="checkpoints"
    )
    assert service.find_adapter(key).read_text() == "LORA"
    with pytest.raises(NotFound):
        service.find_adapter(ID)


def test_adapters_of_a_training_that_only_the_store_knows_are_found(make, here, trained):
    """Another machine with a registry of its own, and the same store."""
    lora = trained(b"LORA{}")
    checkpoint = f"results/{ID}/checkpoints/step-000000003/adapter.safetensors"
    here.store.put(checkpoint, b"LORA[]")
    listed = [
        *here.registry.artifacts(ID),
        StoredArtifact(
            process_id=ID, key=checkpoint, kind="checkpoint", name="step-000000003/x",
            size_bytes=6, sha256=hashlib.sha256(b"LORA[]").hexdigest(),
            created_at=datetime.now(UTC),
        ),
    ]  # fmt: skip
    write_manifest(here.store, ID, keys.attempt_mark(1, "token"), listed)
    other = make(store=here.store)
    for reference, text in ((ID, "LORA{}"), (lora, "LORA{}"), (checkpoint, "LORA[]")):
        assert other.service.find_adapter(reference).read_text() == text
    with pytest.raises(NotFound):
        other.service.find_adapter(f"results/{ID}/lora/another.safetensors")


def test_an_adapter_of_a_training_that_nobody_knows_is_not_found(service):
    for reference in (ID, f"results/{ID}/lora/mine.safetensors"):
        with pytest.raises(NotFound):
            service.find_adapter(reference)


def test_an_adapter_of_another_machine_is_fetched_once(service, trained):
    trained(b"LORA")
    path = service.find_adapter(ID)
    assert path.read_text() == "LORA"
    before = path.stat().st_mtime_ns
    assert service.find_adapter(ID) == path
    assert path.stat().st_mtime_ns == before


def test_a_fetched_adapter_that_is_not_whole_is_fetched_again(service, trained):
    trained(b"LORA{}")
    service.find_adapter(ID).write_text("LO")
    assert service.find_adapter(ID).read_text() == "LORA{}"


def test_a_training_without_an_adapter_is_told(service, trained):
    trained(content=None)
    with pytest.raises(NotFound, match="no finished adapter") as caught:
        service.find_adapter(ID)
    assert ID in caught.value.remedy


def test_an_adapter_that_does_not_verify_is_refused(service, adapter):
    adapter.write_text("something else")
    with pytest.raises(InvalidAdapter):
        service.find_adapter(str(adapter))


def test_all_adapters_that_cannot_be_used_are_told_at_once(service, adapter, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_text("something else")
    uses = [str(adapter), str(broken), str(tmp_path / "gone.safetensors")]
    with pytest.raises(InvalidConfig, match="can't start: 2 things are wrong") as caught:
        service.check(request("a cat", adapters=uses))
    told = "\n".join(caught.value.problems)
    assert "gone.safetensors doesn't exist" in told
    assert str(adapter) not in told
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.bin", "a"])
def test_only_safetensors_files_are_adapters(service, tmp_path, name):
    (tmp_path / name).write_text("LORA")
    with pytest.raises(InvalidAdapter, match=r"only \.safetensors"):
        service.find_adapter(str(tmp_path / name))


def test_the_letter_case_of_an_adapters_ending_does_not_matter(service, tmp_path):
    (tmp_path / "UPPER.SAFETENSORS").write_text("LORA")
    assert service.find_adapter(str(tmp_path / "UPPER.SAFETENSORS")).read_text() == "LORA"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("cat", "Give it with its ending: cat.safetensors."),
        ("cat.safetensors:0.8", "Give cat.safetensors as the path, and '0.8' as its weight."),
        ("dog", "the id or name of a training"),
        ("dog.ckpt", "the id or name of a training"),
    ],
)
def test_an_adapter_that_is_no_file_is_not_found_with_what_may_be_meant(
    service, tmp_path, name, remedy
):
    (tmp_path / "cat.safetensors").write_text("LORA")
    with pytest.raises(NotFound, match="doesn't exist") as caught:
        service.find_adapter(str(tmp_path / name))
    assert remedy in caught.value.remedy


def test_a_folder_is_not_an_adapter(service, tmp_path):
    with pytest.raises(InvalidAdapter, match="is a folder"):
        service.find_adapter(str(tmp_path))


@pytest.mark.parametrize(
    "reference", ["~nobody-has-this-name/a.safetensors", f"{'x' * 300}.safetensors"]
)
def test_an_adapter_that_can_not_exist_is_refused(service, reference):
    with pytest.raises(LoradashError) as caught:
        service.find_adapter(reference)
    assert caught.value.remedy


def test_an_adapter_names_its_base_model(service, adapter):
    assert service.base_model_of(str(adapter)) == "emoji-base"
    adapter.write_text("LORA")
    with pytest.raises(InvalidAdapter, match="which base model"):
        service.base_model_of(str(adapter))


# What is submitted


def stored_request(here, process_id):
    return load_mapping(content(here.store, f"results/{process_id}/config.yaml").decode(), "config")


def test_submitting_stores_the_request_and_a_record_that_waits(here, service):
    wanted = service.check(request("a cat", "a dog", num_images=2, name="pets"))
    record = service.submit(wanted, request_id="req_1", priority=-2)
    assert here.record(record.id) == record
    assert (record.kind, record.name, record.status) == ("generation", "pets", Status.PENDING)
    assert (record.request_id, record.priority) == ("req_1", -2)
    assert record.progress.total_steps == 4
    assert (record.summary["prompt"], record.summary["prompts"]) == ("a cat", 2)
    assert [waiting.id for waiting in here.registry.pending("generation")] == [record.id]
    assert here.keys() == [f"results/{record.id}/config.yaml"]
    assert GenerationRequest.model_validate(stored_request(here, record.id)) == wanted
    assert not here.workspace.root.exists()


def test_a_seed_that_is_not_given_is_drawn_at_the_submit_and_stays(here, engine):
    process_id = submit(here, "a cat", "crash")
    seed = stored_request(here, process_id)["seed"]
    assert here.record(process_id).summary["seed"] == seed
    assert here.run(process_id).code == "engine_crashed"
    assert here.run(process_id).type == "done"
    assert [line["seed"] for line in engine.lines] == [seed, seed]
    assert stored_request(here, submit(here, "a cat"))["seed"] != seed


@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_that_is_given_is_kept(here, engine, seed):
    draw(here, "a cat", seed=seed)
    assert engine.lines[0]["seed"] == seed


def test_relative_paths_are_stored_in_full(here, adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(base_model_folder("emoji-base"))
    process_id = submit(
        here, "a cat", base_model="model", adapters=({"path": "a.safetensors", "weight": 0.5},)
    )
    stored = stored_request(here, process_id)
    assert stored["base_model"] == str(tmp_path / "model")
    assert stored["adapters"] == [{"path": str(adapter), "weight": 0.5}]
    monkeypatch.chdir("/")
    assert here.run(process_id).type == "done"


def test_names_that_are_no_paths_are_stored_as_they_are(here, trained, tmp_path, monkeypatch):
    trained()
    monkeypatch.chdir(tmp_path)
    process_id = submit(here, "a cat", adapters=({"path": ID},))
    stored = stored_request(here, process_id)
    assert (stored["base_model"], stored["adapters"]) == ("emoji-base", [{"path": ID}])
    process_id = submit(here, "a cat", base_model="owner/model")
    assert stored_request(here, process_id)["base_model"] == "owner/model"


@pytest.mark.parametrize(
    "prompt", ["${HOME}", "no", "1e3", "a: b\n# c", "'\"\\ {} [] & *", "\u2028 é 😀", "- a", "~"]
)
def test_a_prompt_is_drawn_as_it_came_whatever_it_holds(here, prompt):
    result = draw(here, prompt, "another")
    assert result.ending.type == "done"
    assert result.images[0].prompt == prompt


def test_a_request_that_could_not_be_read_back_is_refused_at_its_submit(here):
    with pytest.raises(InvalidConfig):
        draw(here, *(f"{n} {'x' * 9000}" for n in range(200)))
    assert here.registry.page().records == ()
    assert here.keys() == []


def test_a_base_model_that_is_nowhere_is_refused_at_the_check(here):
    with pytest.raises(InvalidBaseModel):
        draw(here, "a cat", base_model="/no/where")
    assert here.registry.page().records == ()


# PathPolicy


@pytest.fixture
def path_policy(workspace):
    workspace.ensure()
    return PathPolicy([workspace.root])


def test_a_request_may_name_files_in_the_workspace(service, path_policy, workspace):
    path = workspace.root / "models" / "a.safetensors"
    path.write_text("LORA")
    checked = service.check(request("a", adapters=({"path": str(path)},)), path_policy)
    assert checked.adapters[0].path == str(path)


def test_a_request_may_not_name_an_adapter_outside_of_the_workspace(
    service, path_policy, workspace, adapter, monkeypatch
):
    monkeypatch.chdir(adapter.parent)
    link = workspace.root / "models" / "link.safetensors"
    link.symlink_to(adapter)
    folder = workspace.root / "models" / "folder"
    folder.symlink_to(adapter.parent)
    for path in (
        str(adapter), "a.safetensors", "./a.safetensors", str(link), f"{folder}/{adapter.name}",
        f"{workspace.root}/../{adapter.name}",
    ):  # fmt: skip
        with pytest.raises(InvalidAdapter, match="not a place that requests may name"):
            service.check(request("a", adapters=({"path": path},)), path_policy)
    service.check(request("a", adapters=({"path": str(adapter)},)), PathPolicy([adapter.parent]))


def test_a_request_may_not_ask_whether_a_file_outside_exists(service, path_policy, tmp_path):
    messages = []
    for name in ("a.safetensors", "missing.safetensors"):
        (tmp_path / "a.safetensors").write_text("LORA")
        with pytest.raises(InvalidAdapter) as caught:
            service.check(request("a", adapters=({"path": str(tmp_path / name)},)), path_policy)
        messages.append(str(caught.value).replace(name, ""))
    assert messages[0] == messages[1]


def test_a_request_may_not_name_a_base_model_outside_of_the_workspace(
    service, path_policy, workspace, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(base_model_folder("emoji-base"))
    (workspace.root / "models" / "link").symlink_to(base_model_folder("emoji-base"))
    for path in (tmp_path / "model", "model", "./model", workspace.root / "models" / "link"):
        with pytest.raises(InvalidBaseModel, match="not a place that requests may name"):
            service.check(request("a", base_model=str(path)), path_policy)
    assert service.check(request("a"), path_policy).base_model == "emoji-base"


def test_results_of_trainings_may_always_be_named(service, path_policy, trained):
    key = trained()
    for reference in (ID, key):
        checked = service.check(request("a", adapters=({"path": reference},)), path_policy)
        assert checked.adapters[0].path == reference


# The record


def test_the_record_of_a_generation_that_is_done(here):
    result = draw(here, "a cat", "a dog")
    record = here.record(result.process_id)
    assert (record.status, record.error, record.lease) == (Status.COMPLETED, None, None)
    assert record.output_prefix == f"results/{record.id}"
    assert (record.progress.step, record.progress.total_steps) == (2, 2)
    assert record.ended_at
    assert [(one.number, one.ending) for one in record.attempts] == [(1, "completed")]
    images = here.artifacts(record.id, "image")
    assert {name: entry.index for name, entry in images.items()} == {
        "image_0000.png": 0,
        "image_0001.png": 1,
    }
    for entry in images.values():
        data = here.store.get(entry.key)
        assert entry.sha256 == hashlib.sha256(data).hexdigest()
        assert entry.size_bytes == len(data)
    manifest = json.loads(content(here.store, f"results/{record.id}/manifest.json"))
    assert {entry["key"] for entry in manifest["files"]} == {e.key for e in images.values()}
    log = here.log(record.id, "loradash")
    assert log[-1] == "completed"
    assert any("image_0001.png" in line for line in log)


def test_the_record_of_a_generator_that_crashed(here):
    process_id = submit(here, "a cat", "crash", "a dog")
    ending = here.run(process_id)
    assert (ending.type, ending.code) == ("failed", "engine_crashed")
    record = here.record(process_id)
    assert (record.status, record.error.code) == (Status.FAILED, "engine_crashed")
    assert record.error.resumable
    assert record.attempt.ending == "failed"
    assert here.log(process_id)[-1].startswith("failed (engine_crashed)")


def test_a_resumed_generation_draws_only_the_images_that_are_missing(here, engine):
    process_id = submit(here, "a cat", "crash", "a dog", seed=5)
    here.run(process_id)
    first = here.artifacts(process_id, "image")
    assert list(first) == ["image_0000.png"]
    events = []
    assert here.run(process_id, events.append).type == "done"
    assert [line["done"] for line in engine.lines] == [(), (0,)]
    assert [(event.index, event.seed) for event in events if event.type == "image"] == [
        (1, 6),
        (2, 7),
    ]
    images = here.artifacts(process_id, "image")
    assert list(images) == ["image_0000.png", "image_0001.png", "image_0002.png"]
    assert images["image_0000.png"] == first["image_0000.png"]
    record = here.record(process_id)
    assert (record.status, record.error) == (Status.COMPLETED, None)
    assert [one.ending for one in record.attempts] == ["failed", "completed"]
    assert (record.progress.step, record.progress.total_steps) == (3, 3)


def test_images_in_the_workspace_that_were_not_stored_are_drawn_again(here, engine):
    process_id = submit(here, "a cat", "a dog")
    folder = here.workspace.generation(process_id)
    folder.mkdir(parents=True)
    (folder / "image_0000.png").write_text("perhaps half of an image")
    assert here.run(process_id).type == "done"
    assert content(here.store, f"results/{process_id}/images/image_0000.png") == b"a cat"


def test_a_generation_whose_images_can_not_be_stored_has_failed_and_can_go_on(make, engine):
    class FullStore(MemoryStore):
        is_full = True

        def put_file(self, key, path):
            if self.is_full and key.endswith("_0001.png"):
                raise DiskFull("the disk is full")
            return super().put_file(key, path)

    here = make(store=FullStore())
    process_id = submit(here, "a cat", "a dog", "a fish")
    ending = here.run(process_id)
    assert (ending.code, ending.resumable) == ("disk_full", True)
    assert here.record(process_id).error.code == "disk_full"
    here.store.is_full = False
    assert here.run(process_id).type == "done"
    assert engine.lines[-1]["done"] == (0, 2)
    assert len(here.artifacts(process_id, "image")) == 3


def test_an_adapter_that_is_gone_when_the_work_begins_fails_the_generation(here, adapter):
    process_id = submit(here, "a cat", adapters=({"path": str(adapter)},))
    adapter.unlink()
    assert here.run(process_id).code == "not_found"
    assert here.record(process_id).error.code == "not_found"


def cancel(here, process_id):
    here.registry.change(process_id, lambda one: changes.cancel_requested(one, datetime.now(UTC)))


def test_a_cancel_ends_a_generator_that_does_not_listen_within_the_grace(make):
    here = make(timing=TIMING._replace(cancel_grace_s=0.5))
    process_id = submit(here, "a cat", "hang")
    cancelled_at = []

    def cancel_when_it_hangs(event):
        if event.type == "phase" and event.detail == "hang":
            cancelled_at.append(time.monotonic())
            cancel(here, process_id)

    ending = here.run(process_id, cancel_when_it_hangs)
    took_s = time.monotonic() - cancelled_at[0]
    assert ending.type == "stopped"
    assert took_s < 5
    record = here.record(process_id)
    assert (record.status, record.attempt.ending) == (Status.CANCELLED, "cancelled")
    assert record.lease is None
    assert list(here.artifacts(process_id, "image")) == ["image_0000.png"]
    assert "cancel requested" in here.log(process_id)
    assert here.pipelines["local"].pid is None


def test_a_generation_that_is_stopped_before_it_begins_starts_no_generator(here):
    process_id = submit(here, "a cat")
    stop = StopRequest()
    stop("cancel")
    assert here.run(process_id, stop=stop).type == "stopped"
    assert here.record(process_id).status is Status.CANCELLED
    assert here.pipelines == {}


def test_a_generation_of_a_server_that_shuts_down_waits_again(here, engine):
    process_id = submit(here, "a cat", "hang")
    stop = StopRequest()

    def shut_down(event):
        if event.type == "phase" and event.detail == "hang":
            stop("shutdown", 0.1)

    assert here.run(process_id, shut_down, stop).type == "stopped"
    record = here.record(process_id)
    assert (record.status, record.attempt.ending) == (Status.PENDING, "released")
    assert [waiting.id for waiting in here.registry.pending("generation")] == [process_id]


# Pipelines


def test_each_device_has_a_pipeline_of_its_own_that_stays_warm(here, service):
    for device in ("cuda:0", "cuda:1", "cuda:0"):
        wanted = service.check(request("a cat"))
        record = service.submit(wanted, taking=here.runner.taking(device))
        assert here.runner.run(record, None, StopRequest()).type == "done"
    assert {name: pipeline.starts for name, pipeline in here.pipelines.items()} == {
        "cuda:0": 1,
        "cuda:1": 1,
    }


def test_a_pipeline_gives_way_on_its_device_only(here, service):
    for device in ("cuda:0", "cuda:1"):
        record = service.submit(service.check(request("a")), taking=here.runner.taking(device))
        here.runner.run(record, None, StopRequest())
    service.unload_pipeline("cuda:0")
    service.unload_pipeline("unknown")
    assert here.pipelines["cuda:0"].pid is None
    assert here.pipelines["cuda:1"].pid is not None
    service.close()
    assert here.pipelines["cuda:1"].pid is None


def test_all_of_it_works_with_a_registry_on_disk(make, tmp_path):
    here = make(registry=SqlRegistry(f"sqlite:///{tmp_path}/registry.sqlite3"))
    process_id = submit(here, "a cat", "crash")
    assert here.run(process_id).code == "engine_crashed"
    assert here.run(process_id).type == "done"
    record = here.record(process_id)
    assert (record.status, record.attempt_count) == (Status.COMPLETED, 2)
    assert len(here.artifacts(process_id, "image")) == 2
    here.registry.close()
