import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from loradash.domain.events import Done, Failed, PhaseChanged, StepDone, Stopped, parse_event
from loradash.engines.engine import Command
from loradash.runtime import supervisor
from loradash.runtime.child import Child
from loradash.runtime.orphans import ChildRecords
from loradash.runtime.supervisor import Limits, StopRequest, supervise

PATIENT = Limits(timeout_s=60, stall_s=60, grace_s=60)

IGNORES_SIGNALS = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
emit("phase", phase="training")
while True:
    time.sleep(0.05)
    emit("phase", phase="training")
"""
GRANDCHILD = """
subprocess.Popen(
    [sys.executable, "-S", "-E", "-c",
     "import signal, time\\n"
     "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\\n"
     "print('up', flush=True); time.sleep(60)"],
    close_fds=False, stdout=subprocess.PIPE,
).stdout.readline()
"""


@pytest.fixture(autouse=True)
def short_steps_between_signals(monkeypatch):
    monkeypatch.setattr(supervisor, "_STEP_BETWEEN_SIGNALS_S", 0.3)


@pytest.fixture
def run(engine_script, assert_no_survivors, tmp_path):
    """Supervise a script to its end and check that nothing of it is left."""

    def run_script(
        body, limits=PATIENT, stop_at_events=(), checkpoint=False, stop_with=(), **options
    ):
        stop, events, stopped_at = StopRequest(), [], []

        def on_event(event):
            events.append(event)
            if len(events) in stop_at_events:
                stopped_at.append(time.monotonic())
                stop(*stop_with)

        started = time.monotonic()
        ending = supervise(
            engine_script(body),
            parse_or_none,
            tmp_path / "log.txt",
            on_event,
            limits,
            stop,
            has_checkpoint=lambda: checkpoint,
            **options,
        )
        ended = time.monotonic()
        assert_no_survivors()
        return SimpleNamespace(
            ending=ending,
            events=events,
            duration_s=ended - started,
            stopping_s=ended - stopped_at[0] if stopped_at else None,
            stop=stop,
        )

    return run_script


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def parse_or_none(line):
    try:
        return parse_event(line)
    except ValueError:
        return None


def test_a_run_that_says_done_and_exits_with_zero_is_done(run):
    result = run("""
emit("phase", phase="starting")
emit("step", step=1, total_steps=1, loss=0.5, learning_rate=0.1)
emit("done", step=1, path="a.safetensors", sha256="ab")
""")
    assert result.ending == Done(step=1, path="a.safetensors", sha256="ab")
    assert [type(event) for event in result.events] == [PhaseChanged, StepDone]


def test_lines_that_are_no_events_are_left_out(run):
    result = run("""
os.write(FD, b"not an event\\n\\xff\\xfe\\n\\n{}\\n")
emit("phase", phase="starting")
emit("done")
""")
    assert isinstance(result.ending, Done)
    assert len(result.events) == 1


def test_a_last_event_without_a_line_end_counts(run):
    assert isinstance(run('os.write(FD, b\'{"type": "done"}\')').ending, Done)


def test_many_and_long_events_all_arrive_in_order(run):
    result = run("""
for n in range(2000):
    emit("step", step=n, total_steps=2000, loss=0, learning_rate=0)
emit("warning", code="long", message="x" * 300_000)
emit("done")
""")
    assert isinstance(result.ending, Done)
    assert [event.step for event in result.events[:-1]] == list(range(2000))
    assert len(result.events[-1].message) == 300_000


@pytest.mark.parametrize("exit_code", [0, 1])
def test_a_failure_is_told_in_the_engines_own_words(run, exit_code):
    result = run(f"""
emit("failed", code="out_of_memory", message="full", remedy="smaller", resumable=True)
sys.exit({exit_code})
""")
    assert result.ending == Failed(
        code="out_of_memory", message="full", remedy="smaller", resumable=True
    )


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_crash_is_told_with_its_signal_and_the_end_of_the_log(run, checkpoint):
    result = run(
        """
emit("phase", phase="training")
print("first line"); print("Segmentation something", file=sys.stderr, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""",
        checkpoint=checkpoint,
    )
    assert isinstance(result.ending, Failed)
    assert result.ending.code == "engine_crashed"
    assert "SIGKILL" in result.ending.message
    assert "Segmentation something" in result.ending.remedy
    assert result.ending.resumable is checkpoint
    assert result.ending.time_s > 0


def test_an_exit_with_zero_and_no_word_is_a_crash(run):
    ending = run('emit("phase", phase="training")').ending
    assert (ending.type, ending.code) == ("failed", "engine_crashed")
    assert "exit code 0" in ending.message


def test_an_engine_that_says_nothing_at_all_has_crashed(run):
    ending = run("sys.exit(3)").ending
    assert (ending.type, ending.code) == ("failed", "engine_crashed")
    assert "exit code 3" in ending.message


def test_done_with_a_bad_exit_code_is_a_crash(run):
    ending = run('emit("done", path="a"); sys.exit(1)').ending
    assert (ending.type, ending.code) == ("failed", "engine_crashed")
    assert "exit code 1" in ending.message


def test_an_engine_that_closes_its_pipe_and_lives_on_is_ended(run):
    result = run('emit("done"); os.close(FD); time.sleep(60)')
    assert result.ending.type == "failed"
    assert "still running" in result.ending.message
    assert result.duration_s < 5


def test_done_is_not_lost_when_the_event_reader_is_late(run, monkeypatch):
    """On a busy machine the process may be gone before its last lines were read."""
    read = Child._pump

    def read_late(child, pipe):
        time.sleep(0.4)
        read(child, pipe)

    monkeypatch.setattr(Child, "_pump", read_late)
    result = run('emit("phase", phase="starting"); emit("done")')
    assert isinstance(result.ending, Done)
    assert len(result.events) == 1


def test_an_engine_that_stops_on_request_says_where(run):
    result = run(
        """
def stop(*_):
    emit("stopped", step=7, checkpoint="checkpoints/step-7")
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
emit("phase", phase="training")
time.sleep(60)
""",
        stop_at_events=(1,),
    )
    assert result.ending == Stopped(step=7, checkpoint="checkpoints/step-7")
    assert result.duration_s < 5


def test_an_engine_that_dies_of_the_stop_signal_is_stopped(run):
    result = run(
        """
signal.signal(signal.SIGINT, signal.SIG_DFL)
emit("phase", phase="training"); time.sleep(60)
""",
        stop_at_events=(1,),
    )
    assert result.ending == Stopped()


def test_an_engine_that_is_done_while_it_is_asked_to_stop_is_done(run):
    result = run(
        """
def finish(*_):
    emit("done", step=9)
    sys.exit(0)
signal.signal(signal.SIGINT, finish)
emit("phase", phase="saving")
time.sleep(60)
""",
        stop_at_events=(1,),
    )
    assert result.ending == Done(step=9)


def test_an_engine_that_ignores_all_signals_is_killed_after_the_grace(run):
    result = run(
        IGNORES_SIGNALS, Limits(timeout_s=60, stall_s=60, grace_s=0.3), stop_at_events=(1,)
    )
    assert result.ending == Stopped()
    assert 0.5 < result.duration_s < 5


IGNORES_SIGINT = IGNORES_SIGNALS.replace("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n", "")


def test_a_cancelled_engine_that_ignores_sigint_is_gone_within_the_grace_and_a_second(
    run, monkeypatch
):
    monkeypatch.setattr(supervisor, "_STEP_BETWEEN_SIGNALS_S", 5.0)  # as it really is
    result = run(IGNORES_SIGINT, stop_at_events=(1,), stop_with=("cancel", 1.0))
    assert result.ending == Stopped()
    assert 1.0 < result.stopping_s < 2.0


def test_a_cancelled_engine_that_ignores_all_signals_is_killed_a_second_after_its_grace(
    run, monkeypatch
):
    monkeypatch.setattr(supervisor, "_STEP_BETWEEN_SIGNALS_S", 5.0)
    result = run(IGNORES_SIGNALS, stop_at_events=(1,), stop_with=("cancel", 0.5))
    assert result.ending == Stopped()
    assert 1.5 < result.stopping_s < 2.5


def test_a_cancelled_engine_that_writes_its_checkpoint_within_the_grace_is_not_disturbed(run):
    result = run(
        """
def stop(*_):
    time.sleep(1)
    emit("stopped", step=7, checkpoint="checkpoints/step-7")
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
emit("phase", phase="training")
time.sleep(60)
""",
        Limits(timeout_s=60, stall_s=60, grace_s=0.1),
        stop_at_events=(1,),
        stop_with=("cancel", 20.0),
    )
    assert result.ending == Stopped(step=7, checkpoint="checkpoints/step-7")
    assert 1 < result.duration_s < 6


def test_a_request_to_stop_keeps_the_first_ones_wish_and_grace():
    stop = StopRequest()
    assert (stop.count, stop.reason, stop.grace_s) == (0, "", None)
    stop("cancel", 3.0)
    stop("shutdown")
    stop("lease_lost", 1.0)
    assert (stop.count, stop.reason, stop.grace_s) == (3, "cancel", 3.0)


def test_a_grace_of_its_own_is_used_though_it_is_zero(run):
    result = run(IGNORES_SIGINT, stop_at_events=(1,), stop_with=("cancel", 0.0))
    assert result.ending == Stopped()
    assert result.stopping_s < 1.5


def test_an_engine_is_remembered_while_it_runs_in_case_we_die(run, tmp_path):
    records = ChildRecords(tmp_path / "run")
    body = """
folder = os.path.join(os.getcwd(), "run")
while not os.path.exists(f"{folder}/{os.getpid()}.json"):
    time.sleep(0.01)
emit("warning", code="x", message=open(f"{folder}/{os.getpid()}.json").read())
emit("done")
"""
    result = run(body, records=records, what="train_01k9x3q4zt8m2v7c0hde")
    seen = json.loads(result.events[0].message)
    assert seen["what"] == "train_01k9x3q4zt8m2v7c0hde"
    assert list((tmp_path / "run").iterdir()) == []


def test_a_second_request_to_stop_kills_at_once(run):
    result = run(IGNORES_SIGNALS, stop_at_events=(1, 2))
    assert result.ending == Stopped()
    assert result.duration_s < 5


def test_a_grandchild_that_holds_the_pipe_delays_nothing_and_does_not_survive(run):
    result = run(GRANDCHILD + 'emit("done", step=3)')
    assert result.ending == Done(step=3)
    assert result.duration_s < 5


def test_a_grandchild_does_not_survive_a_crash(run):
    result = run(GRANDCHILD + "os.kill(os.getpid(), signal.SIGKILL)")
    assert result.ending.code == "engine_crashed"
    assert result.duration_s < 5


def test_a_grandchild_does_not_survive_a_stop(run):
    result = run(
        "signal.signal(signal.SIGINT, signal.SIG_DFL)"
        + GRANDCHILD
        + 'emit("phase", phase="training"); time.sleep(60)',
        stop_at_events=(1,),
    )
    assert result.ending == Stopped()


def test_an_engine_without_a_sign_of_life_is_ended_as_stalled(run):
    result = run(
        'emit("phase", phase="loading"); time.sleep(60)',
        Limits(timeout_s=60, stall_s=0.4, grace_s=60),
        checkpoint=True,
    )
    assert (result.ending.type, result.ending.code) == ("failed", "engine_stalled")
    assert "0.4 s" in result.ending.message
    assert result.ending.resumable
    assert result.duration_s < 5


def test_a_stalled_engine_that_ignores_signals_is_killed(run):
    quiet = IGNORES_SIGNALS.replace("time.sleep(0.05)", "time.sleep(60)")
    result = run(quiet, Limits(timeout_s=60, stall_s=0.3, grace_s=60))
    assert result.ending.code == "engine_stalled"
    assert result.duration_s < 5


def test_events_are_signs_of_life(run):
    result = run(
        """
for _ in range(45):
    emit("phase", phase="training"); time.sleep(0.1)
emit("done")
""",
        Limits(timeout_s=60, stall_s=4, grace_s=60),
    )
    assert isinstance(result.ending, Done)
    assert result.duration_s > 4


@pytest.mark.parametrize("checkpoint", [True, False])
def test_an_engine_past_its_time_limit_is_ended_as_timed_out(run, checkpoint):
    result = run(
        IGNORES_SIGNALS, Limits(timeout_s=0.6, stall_s=60, grace_s=0.1), checkpoint=checkpoint
    )
    assert (result.ending.type, result.ending.code) == ("failed", "timed_out")
    assert "0.6 s" in result.ending.message
    assert result.ending.resumable is checkpoint
    assert result.duration_s < 5


def test_a_checkpoint_at_the_time_limit_is_still_a_time_out(run):
    result = run(
        """
def stop(*_):
    emit("checkpoint", step=7, path="checkpoints/step-7", size_bytes=1)
    emit("stopped", step=7)
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
time.sleep(60)
""",
        Limits(timeout_s=4, stall_s=60, grace_s=60),
        checkpoint=True,
    )
    assert result.ending.code == "timed_out"
    assert result.ending.resumable
    assert result.events[-1].type == "checkpoint"


@pytest.mark.parametrize("argv", [("/does/not/exist",), ("/",)])
def test_an_engine_that_can_not_be_started_is_unavailable(tmp_path, argv):
    open_before = open_files()
    ending = supervise(
        Command(argv=argv, working_directory=tmp_path),
        parse_or_none,
        tmp_path / "log.txt",
        lambda event: None,
        PATIENT,
        StopRequest(),
        has_checkpoint=lambda: False,
    )
    assert (ending.type, ending.code) == ("failed", "engine_unavailable")
    assert open_files() == open_before


def test_an_error_in_the_listener_ends_the_engine(
    run, assert_no_survivors, engine_script, tmp_path
):
    def on_event(event):
        raise BrokenPipeError("the terminal is gone")

    with pytest.raises(BrokenPipeError, match="terminal"):
        supervise(
            engine_script(IGNORES_SIGNALS),
            parse_or_none,
            tmp_path / "log.txt",
            on_event,
            PATIENT,
            StopRequest(),
            has_checkpoint=lambda: False,
        )
    assert_no_survivors()


def test_no_file_descriptors_are_left_open(run):
    run('emit("done")')
    before = open_files()
    for _ in range(3):
        run('emit("done")')
    deadline = time.monotonic() + 2  # the event reader closes its end in a thread of its own
    while open_files() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert open_files() <= before
