import json
from datetime import UTC, datetime

import pytest

from loradash.domain.dataset import DatasetReport, ImageProblem
from loradash.domain.events import Done, StepDone
from loradash.domain.generation import GenerationRequest
from loradash.domain.training_text import parse_training
from loradash.engines.diffusers import engine as engine_module
from loradash.engines.diffusers import support
from loradash.engines.diffusers.base_models.families import (
    BaseModelSource,
    find_base_model,
    on_this_machine,
)
from loradash.engines.diffusers.base_models.inspection import inspect
from loradash.engines.diffusers.engine import DiffusersEngine
from loradash.engines.diffusers.job import GENERATOR_LINE, Generate, TrainingJob
from loradash.engines.diffusers.support import check
from loradash.engines.engine import Checkpoint, WarmGenerator
from loradash.errors import (
    EngineUnavailable,
    InvalidBaseModel,
    InvalidCheckpoint,
    InvalidConfig,
)

CREATED_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
ID = "train_01k9x3q4zt8m2v7c0hde"


@pytest.fixture
def engine():
    return DiffusersEngine(device="cpu", threads=2, offline=True, python="python3")


@pytest.fixture
def base_model(tmp_path):
    """A folder that says it is the given pipeline."""

    def make(index, name="model"):
        folder = tmp_path / name
        folder.mkdir()
        text = index if isinstance(index, str) else json.dumps(index)
        (folder / "model_index.json").write_text(text)
        return folder

    return make


def config(**sections):
    process = {
        "type": "sd_trainer",
        "network": {},
        "datasets": [{"folder_path": "images"}],
        "train": {"lr": 1e-4},
        "model": {"name_or_path": "emoji-base"},
    }
    for name, value in sections.items():
        if isinstance(process.get(name), dict):
            process[name] = {**process[name], **value}
        else:
            process[name] = value
    return parse_training({"job": "extension", "config": {"name": "mine", "process": [process]}})


def report(folder="images", **fields):
    return DatasetReport(folder=folder, images=(), sha256="ab", **{"problems": (), **fields})


# Base models


def test_the_embedded_base_model_is_found_by_its_name():
    found = find_base_model("emoji-base")
    assert (found.name, found.kind) == ("emoji-base", "folder")
    assert find_base_model(found.location).kind == "folder"


def test_a_diffusers_folder_is_found_with_its_full_path(base_model, monkeypatch, tmp_path):
    folder = base_model({"_class_name": "StableDiffusionPipeline"})
    monkeypatch.chdir(tmp_path)
    found = find_base_model("model", is_v_pred=True)
    assert (found.kind, found.location, found.is_v_pred) == ("folder", str(folder), True)


def test_a_folder_without_model_index_is_refused(tmp_path):
    with pytest.raises(InvalidBaseModel, match=r"no model_index\.json"):
        inspect(find_base_model(str(tmp_path)))


@pytest.mark.parametrize("index", [{"_class_name": "FluxPipeline"}, {"_class_name": None}, {}])
def test_a_pipeline_of_another_family_is_refused_by_name(base_model, index):
    with pytest.raises(InvalidBaseModel, match=str(index.get("_class_name"))) as caught:
        inspect(find_base_model(str(base_model(index))))
    assert "StableDiffusionPipeline" in caught.value.remedy


@pytest.mark.parametrize(
    "index", ["", "{", "[]", "null", "5", '{"_class_name": ["a", "b"]}', '{"_class_name": {}}']
)
def test_a_damaged_model_index_is_refused(base_model, index):
    with pytest.raises(InvalidBaseModel):
        inspect(find_base_model(str(base_model(index))))


def test_a_deeply_nested_model_index_is_refused(base_model):
    with pytest.raises(InvalidBaseModel):
        inspect(find_base_model(str(base_model("[" * 200_000))))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".CKPT"])
def test_a_file_that_can_run_code_is_refused(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(InvalidBaseModel, match="can run code") as caught:
        find_base_model(str(path))
    assert ".safetensors" in caught.value.remedy


@pytest.mark.parametrize("name", ["model.txt", "model"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InvalidBaseModel, match="not base models"):
        find_base_model(str(tmp_path / name))


def test_a_single_safetensors_file_is_found_with_its_extras(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x")
    found = find_base_model(str(path), extras="owner/configs")
    assert (found.kind, found.location, found.extras) == (
        "single_file",
        str(path),
        "owner/configs",
    )


@pytest.mark.parametrize("name", ["owner/model", "stabilityai/sd-1.5_x"])
def test_a_hub_id_is_taken_by_its_form(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = find_base_model(name)
    assert (found.kind, found.location) == ("hub", name)


@pytest.mark.parametrize(
    "name",
    [
        "missing",
        "/missing/model",
        "./owner/model",
        "../owner/model",
        "owner/model/more",
        "~/missing-model",
        "~nobody-has-this-name/model",
        "x" * 300,
        "a/" * 2000,
        "nul\0byte",
        "owner/model\n",
        "http://example.org/model",
    ],
)
def test_a_base_model_that_is_nowhere_is_refused_with_examples(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidBaseModel) as caught:
        find_base_model(name)
    assert "emoji-base" in caught.value.remedy


# Which settings have an effect


def test_a_config_without_special_settings_gives_no_warning():
    assert check(config()) == ()


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"noise_scheduler": "flowmatch"}}, "train.noise_scheduler"),
        ({"train": {"force_first_sample": True}}, "train.force_first_sample has no effect"),
        ({"logging": {"use_wandb": True}}, "logging.use_wandb has no effect"),
        ({"model": {"is_flux": True}}, "model.is_flux: ignored, the base model says itself"),
        ({"train": {"lr_scheduler": "linear"}}, "linear falls to 0 here"),
        ({"train": {"lr_scheduler": "constant_with_warmup"}}, "1000 are taken"),
        ({"model": {"quantize": True}}, "model.quantize has no effect"),
        ({"datasets": [{"folder_path": "a", "flip_y": True}]}, "datasets[0].flip_y"),
        ({"sample": {"prompts": ["a cat --fps 5"]}}, "sample.prompts[0]: --fps has no effect"),
        ({"sample": {"samples": [{"prompt": "(x:1.2)"}]}}, "sample.samples[0]: drawn as words"),
        ({"train": {"steps": 100, "gradient_accumulation_steps": 4}}, "25 optimizer updates"),
        ({"train": {"optimizer": "prodigy"}}, "prodigy finds the rate itself, so 1 is used"),
        ({"train": {"text_encoder_lr": 1e-5}}, "train.text_encoder_lr has no effect"),
        ({"save": {"save_every": 0}}, "a crash costs the whole training"),
    ],
)
def test_a_setting_without_effect_is_mentioned_once(sections, words):
    (warning,) = check(config(**sections))
    assert words in warning


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"arch": "sdxl"}, "model.arch: sdxl"),
        ({"is_xl": True}, "model.is_xl"),
        ({"is_xl": False, "arch": "sd15"}, ""),
        ({"is_v2": True}, ""),
    ],
)
def test_a_trainable_family_that_is_not_the_base_models_is_mentioned(engine, model, named):
    warnings = engine.check_training(config(model=model))
    about = [one for one in warnings if "Stable Diffusion 1.x or 2.x" in one]
    assert [one.split(" has no effect")[0] for one in about] == ([named] if named else [])


@pytest.mark.parametrize(
    ("device", "found", "words"),
    [
        ("cpu", object(), "a CUDA GPU;"),
        ("cuda", None, "the package bitsandbytes;"),
        ("cpu", None, "a CUDA GPU and the package bitsandbytes; trained here, it is adamw"),
    ],
)
def test_eight_bits_that_this_machine_lacks_are_mentioned_by_the_check(
    monkeypatch, device, found, words
):
    monkeypatch.setattr(support, "find_spec", lambda name: found)
    wanted = config(train={"optimizer": "adamw8bit"})
    (warning,) = DiffusersEngine(device=device, threads=1, offline=True).check_training(wanted)
    assert words in warning


def test_eight_bits_that_this_machine_has_are_not_mentioned(monkeypatch):
    monkeypatch.setattr(support, "find_spec", lambda name: object())
    wanted = config(train={"optimizer": "adamw8bit"})
    assert DiffusersEngine(device="cuda", threads=1, offline=True).check_training(wanted) == ()


def test_a_learning_rate_that_is_not_given_is_mentioned():
    document = {
        "type": "sd_trainer", "network": {}, "datasets": [{"folder_path": "a"}], "train": {},
        "model": {"name_or_path": "emoji-base"},
    }  # fmt: skip
    parsed = parse_training({"job": "extension", "config": {"name": "x", "process": [document]}})
    (warning,) = check(parsed)
    assert "0.0001" in warning


@pytest.mark.parametrize(
    ("sections", "path"),
    [
        ({"train": {"do_cfg": True}}, "train.do_cfg"),
        ({"train": {"start_step": 100}}, "train.start_step"),
        ({"train": {"weight_jitter": 0.1}}, "train.weight_jitter"),
        ({"train": {"timestep_type": "one_step"}}, "train.timestep_type"),
        ({"train": {"ema_config": {"use_ema": True, "use_feedback": True}}}, "use_feedback"),
        ({"network": {"lorm": {"x": 1}}}, "network.lorm"),
        ({"network": {"network_kwargs": {"rank_dropout": 0.1}}}, "network_kwargs.rank_dropout"),
        ({"model": {"lora_path": "a.safetensors"}}, "model.lora_path"),
        ({"datasets": [{"folder_path": "a", "mask_path": "b"}]}, "datasets[0].mask_path"),
        ({"model": {"arch": "flux"}}, "model.arch"),
        ({"model": {"name_or_path": "owner/model", "is_flux": True}}, "model.is_flux"),
        ({"model": {"name_or_path": "owner/model", "is_v3": True}}, "model.is_v3"),
        ({"model": {"name_or_path": "owner/model", "is_v3": True}}, "model.is_v3"),
    ],
)
def test_a_setting_that_asks_for_another_training_is_refused(sections, path):
    with pytest.raises(InvalidConfig) as caught:
        check(config(**sections))
    assert path in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("value", [False, None, 0, "", []])
def test_a_refused_setting_that_is_switched_off_is_fine(value):
    assert check(config(train={"do_cfg": value}, model={"lora_path": value})) == ()


def test_settings_of_nearly_every_file_are_not_mentioned():
    assert check(config(training_folder="/out", device="cuda:0", model={"dtype": "fp16"})) == ()


# The engine


def test_the_engine_can_stay_warm(engine):
    assert isinstance(engine, WarmGenerator)


def test_checking_a_training_looks_at_the_base_model(engine):
    assert engine.check_training(config()) == ()
    with pytest.raises(InvalidBaseModel):
        engine.check_training(config(model={"name_or_path": "missing"}))


def test_checking_a_base_model_finds_it_without_loading_it(engine, base_model):
    engine.check_base_model("emoji-base")
    engine.check_base_model(find_base_model("emoji-base").location)
    with pytest.raises(InvalidBaseModel, match="names no unet"):
        engine.check_base_model(str(base_model({"_class_name": "StableDiffusionPipeline"})))
    with pytest.raises(InvalidBaseModel):
        engine.check_base_model("missing")


def test_an_embedded_base_model_is_where_loradash_is_installed():
    found = find_base_model("emoji-base")
    elsewhere = found.model_copy(update={"location": "/elsewhere/emoji_base/model"})
    assert on_this_machine(elsewhere) == found
    other = BaseModelSource(name="/models/x", kind="folder", location="/models/x")
    assert on_this_machine(other) is other


def test_a_job_file_holds_all_that_a_training_needs(engine, tmp_path):
    problem = ImageProblem(relative_path="bad.png", kind="corrupt", message="x")
    engine.write_training_job(ID, config(), (report(problems=(problem,)),), tmp_path, CREATED_AT)
    assert list(tmp_path.iterdir()) == [engine.job_file(tmp_path)]
    assert engine.job_file(tmp_path) == tmp_path / "job.json"
    job = TrainingJob.model_validate_json((tmp_path / "job.json").read_bytes())
    assert (job.process_id, job.threads, job.device, job.offline) == (ID, 2, "cpu", True)
    assert job.config == config()
    assert job.datasets[0].skip == ("bad.png",)
    assert job.datasets[0].folder == "images"
    assert job.dataset_sha256 == "ab"


def test_the_job_is_the_same_whichever_attempt_writes_it(engine, tmp_path):
    """Its hash is in each checkpoint, and its date in the adapter."""
    texts = set()
    for _ in range(2):
        engine.write_training_job(ID, config(), (report(),), tmp_path, CREATED_AT)
        texts.add((tmp_path / "job.json").read_bytes())
    assert len(texts) == 1


def test_the_command_of_a_training_keeps_the_threads_it_began_with(engine, tmp_path):
    engine.write_training_job(ID, config(), (report(),), tmp_path, CREATED_AT)
    other = DiffusersEngine(device="cpu", threads=7, offline=False, python="python3")
    command = other.training_command(tmp_path)
    assert command.argv[:3] == ("python3", "-m", "loradash.engines.diffusers")
    assert command.argv[3:] == ("train", str(tmp_path / "job.json"))
    assert command.environment["OMP_NUM_THREADS"] == "2"
    assert command.working_directory == tmp_path


@pytest.mark.parametrize("content", [None, "", "{}", "[]"])
def test_a_folder_without_a_readable_job_has_no_command(engine, tmp_path, content):
    if content is not None:
        (tmp_path / "job.json").write_text(content)
    with pytest.raises(InvalidCheckpoint):
        engine.training_command(tmp_path)


def test_offline_reaches_the_child(engine, tmp_path):
    command = engine.serve_command(tmp_path)
    assert command.environment["HF_HUB_OFFLINE"] == "1"
    assert "--offline" in command.argv
    online = DiffusersEngine(device="cpu", threads=1, offline=False).serve_command(tmp_path)
    assert "HF_HUB_OFFLINE" not in online.environment
    assert "--offline" not in online.argv


def test_a_generation_line_is_what_the_child_reads(engine, tmp_path):
    request = GenerationRequest(
        base_model="emoji-base",
        prompts=("a\ncat\u2028",),
        adapters=({"path": "a", "weight": 0.5},),
    )
    line = engine.generation_line("gen_1", request, (tmp_path / "a.safetensors",), tmp_path)
    assert "\n" not in line
    read = GENERATOR_LINE.validate_json(line)
    assert isinstance(read, Generate)
    assert (read.request_id, read.request, read.folder) == ("gen_1", request, tmp_path)
    assert [(item.path, item.weight) for item in read.adapters] == [
        (tmp_path / "a.safetensors", 0.5)
    ]


def test_images_that_are_there_already_are_named_to_the_child(engine, tmp_path):
    request = GenerationRequest(base_model="emoji-base", prompts=("a", "b", "c"))
    line = engine.generation_line("gen_1", request, (), tmp_path, (0, 2))
    assert GENERATOR_LINE.validate_json(line).done == (0, 2)
    line = engine.generation_line("gen_1", request, (), tmp_path)
    assert GENERATOR_LINE.validate_json(line).done == ()


def test_lines_that_are_no_events_are_nothing(engine):
    assert engine.parse("Loading weights: 100%") is None
    assert engine.parse(Done(step=1).model_dump_json()) == Done(step=1)
    step = StepDone(step=1, total_steps=2, loss=0.5, learning_rate=0.1)
    assert engine.parse(step.model_dump_json()) == step


def test_results_are_adapter_samples_and_job(engine, tmp_path):
    for name in (
        "lora/mine.safetensors", "lora/.mine.partial", "samples/2.webp", "samples/1.jpg",
        "config.yaml", "events.jsonl", "log.txt", "job.json", "cache/x", "checkpoints/step-1/a",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [
        (kind, path.relative_to(tmp_path).as_posix()) for kind, path in engine.artifacts(tmp_path)
    ] == [
        ("lora", "lora/mine.safetensors"),
        ("sample", "samples/1.jpg"),
        ("sample", "samples/2.webp"),
        ("job", "job.json"),
    ]
    assert engine.has_checkpoint(tmp_path)
    folder = tmp_path / "checkpoints/step-1"
    assert engine.checkpoints(tmp_path) == [Checkpoint(folder, (folder / "a",))]
    assert folder.parent == engine.checkpoint_folder(tmp_path)


def test_a_new_training_has_no_results_and_no_checkpoint(engine, tmp_path):
    assert engine.artifacts(tmp_path) == []
    assert not engine.has_checkpoint(tmp_path)
    assert engine.checkpoints(tmp_path) == []
    assert engine.images(tmp_path / "images") == []


def test_without_torch_it_says_so_before_a_process_is_started(monkeypatch, tmp_path):
    engine = DiffusersEngine(device="cpu", threads=2, offline=True)
    assert engine.serve_command(tmp_path).argv
    monkeypatch.setattr(engine_module, "find_spec", lambda name: None)
    with pytest.raises(EngineUnavailable, match="torch") as caught:
        engine.serve_command(tmp_path)
    assert "loradash[diffusers]" in caught.value.remedy


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"network": {"target_modules": ["to_x"]}}, "no layer of the unet matches to_x"),
        (
            {"network": {"network_kwargs": {"only_if_contains": ["nowhere"]}}},
            "no layer of the unet matches to_q",
        ),
        ({"network": {"network_kwargs": {"ignore_if_contains": ["blocks", "mid"]}}}, "no layer"),
        ({"network": {"target_modules": ["to_q"]}}, ""),
        ({"network": {"target_modules": ["to_x"], "conv": 4}}, ""),
    ],
)
def test_a_network_without_any_layer_is_refused_before_it_is_loaded(engine, sections, words):
    if not words:
        engine.check_training(config(**sections))
        return
    with pytest.raises(InvalidConfig) as caught:
        engine.check_training(config(**sections))
    assert words in str(caught.value)


def test_what_is_wrong_with_config_and_base_model_is_told_together(engine, base_model):
    folder = base_model({"_class_name": "FluxPipeline"})
    with pytest.raises(InvalidConfig) as caught:
        engine.check_training(config(model={"name_or_path": str(folder), "arch": "flux"}))
    told = " ".join(caught.value.problems)
    assert [word for word in ("FluxPipeline", "model.arch") if word not in told] == []


def test_an_engine_without_torch_is_told(monkeypatch):
    engine = DiffusersEngine(device="cpu", threads=1, offline=True)
    monkeypatch.setattr(engine_module, "find_spec", lambda name: None)
    with pytest.raises(EngineUnavailable, match="torch"):
        engine.require_installed()
