"""Trainings and generations that run elsewhere: sent, followed to their end, files fetched.

Elsewhere is the server at LORADASH_URL, or, with LORADASH_EXECUTOR=runpod, the records that a
control plane and its workers share. Following only shows: the process goes on without us.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from loradash.cli.backend import POLL_S, Backend
from loradash.cli.lines import say
from loradash.cli.output_folder import OutputFolder, written
from loradash.data import EMBEDDED_BASE_MODELS
from loradash.domain.artifacts import LISTED_KINDS, RESULT_KINDS
from loradash.domain.dataset_references import parse_dataset_reference
from loradash.domain.ids import is_process_id
from loradash.domain.kinds import TRAINING, kind_of_id
from loradash.errors import (
    InvalidAdapter,
    InvalidDataset,
    NotFound,
    RegistryUnavailable,
    ServerUnreachable,
    StoreUnavailable,
    TransferFailed,
)
from loradash.paths import full_path
from loradash.settings import Settings

if TYPE_CHECKING:
    from loradash.cli.output import Reporter
    from loradash.datasets.inventory import FolderFile
    from loradash.domain.training_config import TrainingConfig

PATIENCE_S = 600.0
"""So long a server that doesn't answer is asked again while a process is followed."""

_LOG_LINES = 500
_AWAY = (ServerUnreachable, RegistryUnavailable, StoreUnavailable)


class Wanted(NamedTuple):
    """What to do besides sending the process."""

    detach: bool
    output: OutputFolder | None
    as_json: bool


def runs_elsewhere(settings: Settings, *, here: bool) -> bool:
    """Whether the settings say that this program shall not do the work itself."""
    return not here and bool(settings.server_url or settings.executor == "runpod")


def place(settings: Settings) -> str:
    """Return where processes go, as people read it."""
    return settings.server_url or (
        f"RunPod endpoint {settings.runpod_endpoint_id}".strip()
        if settings.executor == "runpod"
        else "the queue of this machine"
    )


def for_elsewhere(
    target: Backend, config: "TrainingConfig", say: Callable[[str], None]
) -> "TrainingConfig":
    """Store the dataset folders of this machine where the training runs; name them in the config.

    Other local paths are given in full: whether they may be used is for that machine to say.

    An upload's name holds a hash of its files: what is there already isn't sent again, and no other
    dataset is replaced. Raises `InvalidDataset` and what uploading raises.
    """
    from loradash.cli.dataset_upload import files_to_upload, upload_files
    from loradash.domain.dataset_files import CAPTION_SUFFIXES
    from loradash.domain.dataset_findings import left_out_warnings
    from loradash.domain.training_text import parse_training_text, training_text

    model, network = config.process.model, config.process.network
    named = {
        "model.name_or_path": model.name_or_path,
        "model.extras_name_or_path": model.extras_name_or_path,
        "network.pretrained_lora_path": network.pretrained_lora_path,
    }
    uploaded: dict[str, Any] = {
        key: full_path(text)
        for key, text in named.items()
        if text and text not in EMBEDDED_BASE_MODELS and full_path(text) != text
    }
    for number, section in enumerate(config.process.datasets):
        kind, text = parse_dataset_reference(section.folder_path)
        folder = Path(text).expanduser()
        if kind == "stored" or not folder.is_dir():
            continue  # the name of a dataset that is there, or a folder of that machine
        if section.caption_suffix.lower() not in CAPTION_SUFFIXES:
            raise InvalidDataset(
                f"datasets[{number}]: folder {folder} is on this machine, and only captions in "
                f".txt and .caption files can be uploaded, not {section.caption_suffix}",
                remedy="Rename the captions, or train on this machine with --here.",
            )
        wanted = files_to_upload(folder)
        name = f"{folder.resolve().name}-{_digest(wanted.files)}"
        say(f"uploading {folder} as dataset {name!r} (as `loradash datasets upload` does)")
        for text in left_out_warnings(wanted.left_out):
            say(f"warning: {text}")
        reply = upload_files(target, wanted, name=name, trigger_word=config.trigger_word, add=False)
        uploaded[f"datasets.{number}.folder_path"] = reply["dataset_folder"]
    return parse_training_text(training_text(config), uploaded) if uploaded else config


def check_adapters(references: Sequence[str], settings: Settings) -> None:
    """Raises `InvalidAdapter` for a file of this machine, which the other one doesn't see."""
    for reference in references:
        path = Path(reference).expanduser()
        if path.is_file() and not path.is_absolute():
            raise InvalidAdapter(
                f"adapter {reference} is a file on this machine, and images are drawn on "
                f"{place(settings)}",
                remedy="Give the process id of a training, or generate on this machine with "
                "--here.",
            )


def base_model_of(target: Backend, reference: str) -> str:
    """Return the base model of a training that runs or has run there. Raises `NotFound`."""
    if not is_process_id(reference):
        if base_model := target.adapter(reference).model.base_model:
            return base_model
    else:
        with contextlib.suppress(LookupError, TypeError):
            shown = target.ask(type="process_status", process_id=reference)["config"]
            if name := shown["config"]["process"][0]["model"]["name_or_path"]:
                return str(name)
    raise NotFound(f"no base model is known of adapter {reference}", remedy="Give --base-model.")


def send(target: Backend, settings: Settings, wanted: Wanted, **request: Any) -> int:
    """Queue a process; unless that is all, follow it to its end. Return the exit code."""
    from loradash.cli.output import to_stderr

    reply = target.ask(**request)
    process_id = str(reply["process_id"])
    for warning in reply.get("warnings", ()):
        to_stderr(f"warning: {warning}")
    return _queued(target, settings, wanted, process_id)


def _queued(target: Backend, settings: Settings, wanted: Wanted, process_id: str) -> int:
    from loradash.cli.output import print_result, program, to_stderr

    if wanted.detach:
        if wanted.as_json:
            print_result({"process_id": process_id, "status": "pending"})
        else:
            say(process_id)
            to_stderr(_how_to_go_on(program(), process_id))
        _tell_if_nobody_takes_it(settings)
        return 0
    if not wanted.as_json:
        say(f"{process_id}: queued on {place(settings)}")
    return follow(target, settings, wanted, process_id)


def send_again(target: Backend, settings: Settings, wanted: Wanted, process_id: str) -> int:
    """Queue a failed or cancelled process again, and go on as `send` does."""
    target.resume(process_id)
    return _queued(target, settings, wanted, process_id)


def follow(target: Backend, settings: Settings, wanted: Wanted, process_id: str) -> int:
    """Show a process until it has ended, fetch its files, and return the exit code.

    Ctrl-C ends the following only.
    """
    from loradash.cli.output import program, reporter, to_stderr

    _tell_if_nobody_takes_it(settings)
    kind = kind_of_id(process_id)
    what = kind.doing if kind else "running"
    try:
        with reporter(wanted.as_json, what) as shown:
            view = _until_ended(target, process_id, shown)
    except KeyboardInterrupt:
        to_stderr("", f"{process_id} goes on. {_how_to_go_on(program(), process_id)}")
        return 130
    except _AWAY:
        to_stderr(f"{process_id} may go on. {_how_to_go_on(program(), process_id)}")
        raise
    files, missing = _fetched(target, view, wanted.output)
    exit_code = _tell_end(view, files, wanted.as_json, missing)
    if missing:
        to_stderr(*missing.lines)
    return exit_code or (1 if missing else 0)


def _until_ended(target: Backend, process_id: str, shown: "Reporter") -> dict[str, Any]:
    """Show progress and log lines; return the process as it is at its end."""
    with target.watching(process_id) as wait_for_change:
        return _shown_until_ended(target, process_id, shown, wait_for_change)


def _shown_until_ended(
    target: Backend, process_id: str, shown: "Reporter", wait_for_change: Callable[[], None]
) -> dict[str, Any]:
    from loradash.cli.output import ENDED_EXIT_CODES
    from loradash.domain.events import PhaseChanged, StepDone

    after, step, waiting = 0, 0, ""
    while True:
        view = _asked(target, process_id, after, shown)
        for line in view["log"]:
            after = line["number"]
            shown.note(line["text"])
        if view["step"] > step and view["loss"] is not None:
            step = view["step"]
            shown.event(
                StepDone(
                    step=step, total_steps=view["total_steps"], loss=view["loss"],
                    learning_rate=view["learning_rate"] or 0.0, steps_per_s=view["steps_per_s"],
                    eta_s=view["eta"],
                )
            )  # fmt: skip
        if view["phase"]:
            with contextlib.suppress(ValueError):  # phases of a newer server
                shown.event(PhaseChanged(phase=view["phase"], detail=view["phase_detail"] or ""))
        place_text = f"waiting, position {view['queue_position']} in the queue"
        if view["status"] == "pending" and place_text != waiting:
            waiting = place_text
            shown.note(place_text)
        if len(view["log"]) == _LOG_LINES:
            continue
        if view["status"] in ENDED_EXIT_CODES:
            return view
        wait_for_change()


def _asked(target: Backend, process_id: str, after: int, shown: "Reporter") -> dict[str, Any]:
    """Return the process with new log lines, waiting for a server that is away for a while."""
    deadline: float | None = None
    while True:
        try:
            return target.ask(
                type="process_status", process_id=process_id, log_after=after, log_limit=_LOG_LINES
            )
        except _AWAY as error:
            now = time.monotonic()
            if deadline is None:
                deadline = now + PATIENCE_S
                shown.note(f"no answer ({error.message}); asking again")
            if now > deadline:
                raise
        time.sleep(POLL_S)


def _fetched(
    target: Backend, view: dict[str, Any], output: OutputFolder | None
) -> tuple[list[Path], TransferFailed | None]:
    """Fetch a completed process's adapter, previews and images, if a folder is given for them."""
    if output is None or view["status"] != "completed":
        return [], None

    def fetch(entry: dict[str, Any]) -> Path:
        return output.write(
            Path(entry["name"]).name, partial(target.fetch, entry["key"]), entry["sha256"]
        )

    return written(
        [(entry["name"], partial(fetch, entry)) for entry in _results(view)],
        "Fetch them again from where they are stored.",
    )


def _results(view: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (entry for entry in view["artifacts"] if entry["kind"] in LISTED_KINDS)


def _tell_end(
    view: dict[str, Any], files: Sequence[Path], as_json: bool, missing: TransferFailed | None
) -> int:
    from loradash.cli.output import (
        ENDED_EXIT_CODES,
        duration_text,
        fail_lines,
        print_result,
        program,
        to_stderr,
    )

    process_id, status = view["process_id"], view["status"]
    if as_json:
        wanted = ("process_id", "status", "error_code", "error_message", "remedy", "elapsed_time")
        print_result(
            {
                **{name: view[name] for name in wanted},
                "results": [entry["key"] for entry in _results(view)],
                "files": files,
                "output_error": str(missing) if missing else None,
            }
        )
    elif status == "completed":
        say(f"{process_id}: completed in {duration_text(view['elapsed_time'])}")
        for path in files:
            say(f"  file      {path}")
        if not files:
            for entry in _results(view):
                if entry["kind"] in RESULT_KINDS:
                    say(f"  result    {entry['key']}")
        if view["type"] == TRAINING.name:
            say(f'  use it    {program()} generate --adapter {process_id} --prompt "..."')
    elif status == "failed":
        problems = tuple(view["error_problems"])
        to_stderr(*fail_lines(view["error_code"], view["error_message"], view["remedy"], problems))
        to_stderr(f"Continue with: {program()} resume {process_id}")
    else:
        to_stderr(f"{process_id} was cancelled. Continue with: {program()} resume {process_id}")
    return ENDED_EXIT_CODES[status]


def _how_to_go_on(program: str, process_id: str) -> str:
    return (
        f"Follow it with `{program} logs -f {process_id}`, "
        f"cancel it with `{program} cancel {process_id}`."
    )


def _tell_if_nobody_takes_it(settings: Settings) -> None:
    """Say that no server runs here, where one is needed; it may run on another machine."""
    from loradash.cli.output import program, to_stderr
    from loradash.executors.server_lock import server_is_running
    from loradash.wiring.core import server_lock

    if settings.server_url or server_is_running(server_lock(settings)):
        return
    kind = "control plane" if settings.executor == "runpod" else "server"
    to_stderr(
        f"No {kind} is running on this machine. The process waits until one takes it: start it "
        f"with `{program()} up`."
    )


def _digest(files: "Sequence[FolderFile]") -> str:
    """Return eight digits that stand for these files."""
    digest = hashlib.sha256()
    for file in files:
        with file.path.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.name}\0{content}\0".encode())
    return digest.hexdigest()[:8]
