"""``loradash processes``, ``logs``, ``cancel``, ``resume`` and ``queue``."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from loradash.cli.completion import process_ids
from loradash.cli.lines import say, say_json
from loradash.domain.artifacts import RESULT_KINDS
from loradash.domain.kinds import kind_names

if TYPE_CHECKING:
    from loradash.executors.state import ExecutorState
    from loradash.services.processes.views import QueueView

_LOG_LINES = 2000

Json = Annotated[bool, typer.Option("--json", help="The reply as JSON.")]
ProcessId = Annotated[str, typer.Argument(help="Id of the process.", autocompletion=process_ids)]


def _kind(text: str) -> str:
    if text not in kind_names():
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(map(repr, kind_names()))}.")
    return text


def processes(
    process_id: Annotated[
        str | None,
        typer.Argument(help="Show this process and its attempts.", autocompletion=process_ids),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="Only this kind.", parser=_kind, metavar="|".join(kind_names())),
    ] = None,
    status: Annotated[
        list[str] | None, typer.Option(help="Only this status; may be given several times.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=200)] = 20,
    as_json: Json = False,
) -> None:
    """List trainings and generations, the newest first, or show one of them."""
    from loradash.cli.terminal import print_table

    with _backend() as backend:
        if process_id:
            _show(backend.ask(type="process_status", process_id=process_id), as_json)
            return
        request: dict[str, Any] = {"type": "processes", "limit": limit}
        request |= {"kind": kind} if kind else {}
        request |= {"status": status} if status else {}
        reply = backend.ask(**request)
    if as_json:
        say_json(reply)
        return
    rows = [
        (
            one["id"], one["name"], _state(one), _steps(one),
            "" if one["loss"] is None else f"{one['loss']:.4f}", _duration(one["elapsed_time"]),
            _duration(one["eta"]), str(one["attempt"]),
        )
        for one in reply["processes"]
    ]  # fmt: skip
    heads = ("process id", "name", "status", "step", "loss", "time", "left", "attempt")
    print_table(heads, rows, "no processes yet")


def logs(
    process_id: ProcessId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing until it has ended.")
    ] = False,
    after: Annotated[int, typer.Option(min=0, help="Only lines after this number.")] = 0,
) -> None:
    """Print a process's log. With --follow the exit code tells how the process ended."""
    from loradash.cli.output import ENDED_EXIT_CODES

    with _backend() as backend:
        if not follow:
            _print_log(backend, process_id, after)
            return
        with backend.watching(process_id) as wait_for_change:
            while True:
                status, after = _print_log(backend, process_id, after)
                if status in ENDED_EXIT_CODES:
                    raise typer.Exit(ENDED_EXIT_CODES[status])
                wait_for_change()


def _print_log(backend: Any, process_id: str, after: int) -> tuple[str, int]:
    """Print lines after that number; return the process's status and the last line's number."""
    while True:
        reply = backend.ask(
            type="process_status", process_id=process_id, log_after=after, log_limit=_LOG_LINES
        )
        for line in reply["log"]:
            say(f"{line['time'][11:19]} {line['text']}")
            after = line["number"]
        if len(reply["log"]) < _LOG_LINES:
            return str(reply["status"]), after


def cancel(process_id: ProcessId) -> None:
    """End a process that waits or runs. A training writes a checkpoint if it can."""
    with _backend() as backend:
        say(backend.ask(type="cancel", process_id=process_id)["message"])


def resume(process_id: ProcessId) -> None:
    """Queue a failed or cancelled process again; it goes on from its last checkpoint."""
    from loradash.cli.output import program, to_stderr
    from loradash.executors.server_lock import server_is_running
    from loradash.settings import load_settings
    from loradash.wiring.core import server_lock

    settings = load_settings()
    with _backend() as backend:
        backend.resume(process_id)
    say(f"{process_id} is queued")
    if not settings.server_url and not server_is_running(server_lock(settings)):
        to_stderr(f"No server is running: start one with `{program()} up`.")


def queue(
    action: Annotated[Literal["show", "pause", "resume"], typer.Argument()] = "show",
    as_json: Json = False,
) -> None:
    """Show what waits in which order, or stop and go on starting processes."""
    from loradash.cli.terminal import print_table
    from loradash.protocol.process_json import queue_json

    with _backend() as backend:
        view: QueueView = backend.queue(action)
    if as_json:
        say_json(queue_json(view))
        return
    paused = ", paused" if view.is_paused else ""
    say(f"{view.running_count} running, {view.pending_count} waiting{paused}")
    for slot in view.executor.slots:
        for lane in slot.lanes:
            say(f"  {slot.name} {lane.name}: {lane.process_id or lane.waiting_reason or '-'}")
    for line in _endpoint_lines(view.executor):
        say(f"  {line}")
    rows = [
        (str(place), one.id, one.kind, one.name, str(one.priority))
        for place, one in enumerate(view.waiting, start=1)
    ]
    print_table(("", "process id", "type", "name", "priority"), rows, "nothing is waiting")


def _endpoint_lines(executor: "ExecutorState") -> list[str]:
    """What is known of an endpoint elsewhere, and why nothing can be started."""
    lines = []
    if endpoint := executor.endpoint:
        workers = endpoint.workers or {}
        counts = ", ".join(f"{n} {name}" for name, n in workers.items() if n) or "none"
        lines = [f"RunPod endpoint {endpoint.id}: workers: {counts}", endpoint.waiting_reason]
    return [line for line in (*lines, executor.error) if line]


def _backend() -> Any:
    from loradash.cli.backend import backend
    from loradash.settings import load_settings

    return backend(load_settings())


def _show(one: dict[str, Any], as_json: bool) -> None:
    if as_json:
        say_json(one)
        return
    say(f"{one['id']}  {one['name']} ({one['type']})")
    say(f"  status    {_state(one)} {one['phase']} {one['phase_detail']}".rstrip())
    say(f"  step      {_steps(one)}")
    say(f"  time      {_duration(one['elapsed_time'])}")
    if origin := one.get("origin"):
        say(f"  goes on   {_origin(origin)}")
    if one["queue_position"]:
        say(f"  position  {one['queue_position']} in the queue")
    if one["error_code"]:
        say(f"  error     {one['error_message']} ({one['error_code']})")
        for problem in one["error_problems"]:
            say(f"            - {problem}")
        say(f"  remedy    {one['remedy']}")
    for warning in one["process"].get("warnings", ()):  # an older server has none
        say(f"  warning   {warning}")
    for note in one["attempts"]:
        say(f"  attempt {note['number']}: {_attempt(note, one)}")
    for entry in one["artifacts"]:
        if entry["kind"] in RESULT_KINDS:
            say(f"  result    {entry['key']}")


def _attempt(note: dict[str, Any], one: dict[str, Any]) -> str:
    if ending := note["ending"]:
        return f"steps {note['from_step']} to {note['to_step']}, {ending}"
    return f"from step {note['from_step']}, {_state(one)}"  # its last step isn't noted yet


def _origin(origin: dict[str, Any]) -> str:
    if origin["kind"] == "extends":
        return f"after step {origin['step']} of {origin['process_id']}"
    return f"from the adapter {origin['name']}"


def _state(one: dict[str, Any]) -> str:
    if one["lost"]:
        return "lost"
    if one["cancel_requested"] and one["status"] == "running":
        return "stopping"
    return str(one["status"])


def _steps(one: dict[str, Any]) -> str:
    return f"{one['step']}/{one['total_steps'] or '?'}"


def _duration(seconds: float | None) -> str:
    from loradash.cli.output import duration_text

    return "" if seconds is None else duration_text(seconds)
