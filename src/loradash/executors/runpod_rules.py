"""What is to be done about a waiting process for which a job was sent to RunPod. No I/O.

RunPod delivers at least once, and now and then not at all: a worker may take a job and end before
it has begun, a job may vanish after its time, or be ended by a person in RunPod's console. The
record says whether a worker works on the process; the job only says whether one is going to.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from loradash.domain.kinds import KINDS, Kind
from loradash.domain.process import Problem, ProcessRecord
from loradash.domain.sizes import counted
from loradash.errors import TimedOut, WorkerLost
from loradash.executors.runpod_client import RunpodJob

RUN_PROCESS = "run_process"
"""Type of the jobs by which a control plane brings the process ``process_id`` to a worker.

No request of clients, whose requests are refused if they name it.
"""

_MARGIN_S = 900.0
"""What a job may take beside the time of its process: fetching a model, storing results."""

_WAIT_S = 24 * 3600.0


class JobRules(NamedTuple):
    """How long jobs may take, in seconds, and how often one is sent until a process is given up.

    ``take_timeout_s`` is how long a worker may have a job without having taken its process;
    ``settle_s`` how long after an attempt has ended without an end of its process; ``missing_s``
    how long RunPod must not know a job, since a 404 may be an answer of one moment, and
    ``unclear_s`` how long a job may be in a state that isn't known here.
    """

    timeout_s: Mapping[Kind, float]
    take_timeout_s: float = 60.0
    settle_s: float = 10.0
    missing_s: float = 180.0
    unclear_s: float = 600.0
    max_dispatches: int = 3
    webhook: str = ""

    def execution_timeout_s(self, kind: Kind) -> float:
        """How long RunPod may let a worker have the job."""
        return self.timeout_s[kind] + _MARGIN_S

    def ttl_s(self, kind: Kind) -> float:
        """How long RunPod keeps the job: it ends even a running one then."""
        return self.execution_timeout_s(kind) + _WAIT_S


class Verdict(NamedTuple):
    """What to do: wait, send another job because of ``reason``, cancel the process, or fail it."""

    action: Literal["wait", "resend", "cancel", "fail"]
    reason: str = ""
    problem: Problem | None = None


WAIT = Verdict("wait")


def input_of(process_id: str) -> dict[str, Any]:
    """Return the input of a job that brings this process to a worker."""
    return {"type": RUN_PROCESS, "process_id": process_id}


def judge(  # noqa: C901, PLR0911 - one branch per state of a job
    record: ProcessRecord, job: RunpodJob | None, seen: timedelta, rules: JobRules
) -> Verdict:
    """Return what to do about a waiting process, given its job as RunPod sees it.

    ``job`` is None if RunPod doesn't know it (any more); ``seen`` tells for how long it has been
    seen as it is now, since the process began to wait.
    """
    if job is None:
        if seen < timedelta(seconds=rules.missing_s):
            return WAIT
        return _again(record, "RunPod no longer knows its job", rules)
    match job.status:
        case "IN_PROGRESS":
            taken = record.was_taken_since_dispatch
            patience_s = rules.settle_s if taken else rules.take_timeout_s
            if seen < timedelta(seconds=patience_s):
                return WAIT
            worker = f"worker {job.worker_id}" if job.worker_id else "a worker"
            what = "has stopped working on it" if taken else "took its job and never started it"
            return _again(record, f"{worker} {what}", rules)
        case "COMPLETED":
            return _again(record, _told(job) or "its job ended without having run it", rules)
        case "FAILED":
            return _again(record, _told(job) or "its job failed", rules)
        case "CANCELLED":
            return Verdict("cancel", "its job was cancelled at RunPod")
        case "TIMED_OUT" if record.was_taken_since_dispatch:
            return Verdict("fail", problem=_out_of_time(record.kind, rules))
        case "TIMED_OUT":
            return _again(record, "RunPod ended its job at its time limit", rules)
        case "UNKNOWN" if seen >= timedelta(seconds=rules.unclear_s):
            return _again(record, f"its job is {job.word!r} at RunPod, an unknown state", rules)
        case _:  # in the queue, or in a state that may become clear
            return WAIT


def waiting_reason(jobs: Mapping[str, int], workers: Mapping[str, int]) -> str:
    """Return why what is queued at RunPod may have to wait, by the endpoint's own counts.

    A queue that no worker works off has two causes that look the same from outside: no GPU is
    free, or workers crash as they start. Their counts tell.
    """
    if not jobs.get("inQueue") or any(workers.get(state) for state in ("idle", "ready", "running")):
        return ""
    others = [f"{count} {state}" for state, count in sorted(workers.items()) if count]
    return f"RunPod has no worker for it yet ({', '.join(others) or 'none is starting'})"


def _again(record: ProcessRecord, reason: str, rules: JobRules) -> Verdict:
    count = record.dispatch.count if record.dispatch else 0
    if count < rules.max_dispatches or record.was_taken_since_dispatch:
        return Verdict("resend", reason)
    problem = Problem(
        code=WorkerLost.code,
        message=f"no worker took it: RunPod was sent {counted(count, 'job')}; the last: {reason}",
        remedy="Check the endpoint's workers and their logs in RunPod's console, then resume it.",
        resumable=True,
    )
    return Verdict("fail", reason, problem)


def _told(job: RunpodJob) -> str:
    text = job.error or (job.output.get("error") if isinstance(job.output, dict) else "")
    return str(text).strip().partition("\n")[0][:300] if text else ""


def _out_of_time(kind: Kind, rules: JobRules) -> Problem:
    facts = KINDS[kind]
    return Problem(
        code=TimedOut.code,
        message=f"RunPod ended its job after {rules.execution_timeout_s(kind):.0f} s",
        remedy=f"Raise {facts.timeout_variable}, then resume it"
        + (": it goes on from its last checkpoint." if facts.is_resumable else "."),
        resumable=facts.is_resumable,
    )
