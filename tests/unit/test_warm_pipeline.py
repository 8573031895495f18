import json
import signal
import threading
import time

import pytest

from loradash.domain.events import Done, ImageWritten, Stopped, parse_event
from loradash.domain.generation import GenerationRequest
from loradash.runtime import warm_pipeline
from loradash.runtime.orphans import ChildRecords
from loradash.runtime.supervisor import StopRequest
from loradash.runtime.warm_pipeline import WarmPipeline

GENERATOR = """
emit("phase", phase="starting")
for line in sys.stdin:
    job = json.loads(line)
    if job["type"] == "cancel":
        continue
    id, word = job["request_id"], job["prompt"].split()[0]
    if word == "crash":
        print("out of luck", flush=True)
        os._exit(3)
    if word == "orphan":
        subprocess.Popen(["sleep", "60"], close_fds=False)
        os._exit(3)
    if word == "hang":
        time.sleep(60)
    if word == "endless":
        while True:
            emit("phase", request_id=id, phase="generating")
            time.sleep(0.05)
    if word == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        emit("phase", request_id=id, phase="generating")
        time.sleep(60)
    if word == "cancelled":
        emit("phase", request_id=id, phase="generating")
        cancel = json.loads(sys.stdin.readline())
        assert cancel == {"type": "cancel", "request_id": id}, cancel
        emit("stopped", request_id=id)
    elif word == "failing":
        emit("failed", request_id=id, code="out_of_memory", message="full")
    else:
        emit("done", request_id="gen_of_somebody_else")
        for n in range(2):
            if n in job["done"]:
                continue
            emit("image", request_id=id, index=n, path=f"{n}.png", prompt=job["prompt"], seed=n,
                 duration_s=0.1)
        emit("done", request_id=id)
    emit("ready")
"""


class ScriptedGenerator:
    """A generator that does what the first word of its prompt says."""

    def __init__(self, command):
        self.command = command

    def serve_command(self, working_directory):
        return self.command

    def generation_line(self, request_id, request, adapters, folder, done=()):
        return json.dumps(
            {
                "type": "generate",
                "request_id": request_id,
                "prompt": request.prompts[0],
                "done": done,
            }
        )

    def parse(self, line):
        return parse_event(line)


@pytest.fixture
def pipeline(engine_script, tmp_path):
    pipeline = WarmPipeline(
        ScriptedGenerator(engine_script(GENERATOR)), tmp_path / "logs" / "log.txt", idle_unload_s=60
    )
    yield pipeline
    pipeline.close()


def generate(
    pipeline,
    prompt,
    *,
    id_="gen_1",
    on_event=lambda event: None,
    stop=None,
    timeout_s=20,
    stall_s=20,
    done=(),
):
    return pipeline.generate(
        id_,
        GenerationRequest(base_model="emoji-base", prompts=(prompt,)),
        (),
        pipeline._log_path.parent,
        on_event,
        stop or StopRequest(),
        timeout_s,
        stall_s,
        done,
    )


def wait_until(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_images_are_handed_on_and_the_end_is_returned(pipeline):
    events = []
    ending = generate(pipeline, "draw a cat", on_event=events.append)
    assert isinstance(ending, Done)
    assert ending.request_id == "gen_1"
    assert [event.path for event in events if isinstance(event, ImageWritten)] == ["0.png", "1.png"]
    assert {event.request_id for event in events} == {"gen_1"}


def test_the_generator_stays_warm_between_requests(pipeline):
    assert pipeline.pid is None
    generate(pipeline, "draw")
    pid = pipeline.pid
    for n in range(3):
        assert generate(pipeline, "draw", id_=f"gen_{n}").type == "done"
    assert pipeline.pid == pid
    assert pipeline.starts == 1


def test_a_failed_generation_keeps_the_generator_warm(pipeline):
    assert generate(pipeline, "failing").code == "out_of_memory"
    assert generate(pipeline, "draw").type == "done"
    assert pipeline.starts == 1


def test_unloading_ends_the_process_and_the_next_request_starts_a_new_one(
    pipeline, assert_no_survivors
):
    generate(pipeline, "draw")
    pipeline.unload()
    assert pipeline.pid is None
    assert_no_survivors()
    assert generate(pipeline, "draw").type == "done"
    assert pipeline.starts == 2


def test_unloading_what_never_ran_does_nothing(pipeline):
    pipeline.unload()
    pipeline.close()
    assert pipeline.starts == 0


def test_an_idle_generator_is_ended(engine_script, tmp_path, assert_no_survivors):
    pipeline = WarmPipeline(
        ScriptedGenerator(engine_script(GENERATOR)), tmp_path / "log.txt", idle_unload_s=0.2
    )
    generate(pipeline, "draw")
    wait_until(lambda: pipeline.pid is None)
    assert_no_survivors()
    assert generate(pipeline, "draw").type == "done"
    assert pipeline.starts == 2
    pipeline.close()


def test_a_generation_longer_than_the_idle_time_is_not_ended(engine_script, tmp_path):
    pipeline = WarmPipeline(
        ScriptedGenerator(engine_script(GENERATOR)), tmp_path / "log.txt", idle_unload_s=2
    )
    generate(pipeline, "draw")
    stop = StopRequest()
    timer = threading.Timer(3, stop)
    timer.start()
    assert generate(pipeline, "cancelled", stop=stop).type == "stopped"
    assert pipeline.starts == 1
    pipeline.close()


def test_a_cancelled_generation_is_stopped_and_the_generator_stays_warm(pipeline):
    stop = StopRequest()
    ending = generate(pipeline, "cancelled", stop=stop, on_event=lambda _: stop())
    assert ending == Stopped(request_id="gen_1")
    assert generate(pipeline, "draw").type == "done"
    assert pipeline.starts == 1


def test_a_second_request_to_stop_ends_the_generator(pipeline, assert_no_survivors):
    stop = StopRequest()
    ending = generate(pipeline, "endless", stop=stop, on_event=lambda _: stop())
    assert isinstance(ending, Stopped)
    assert pipeline.pid is None
    assert_no_survivors()
    assert generate(pipeline, "draw").type == "done"


@pytest.mark.parametrize("word", ["endless", "deaf"])
def test_a_generator_that_ignores_the_cancel_line_is_ended_after_the_grace(
    pipeline, assert_no_survivors, word
):
    stop, asked = StopRequest(), []

    def cancel_once(_event):
        if not asked:
            asked.append(time.monotonic())
            stop("cancel", 0.5)

    ending = generate(pipeline, word, stop=stop, on_event=cancel_once)
    took_s = time.monotonic() - asked[0]
    assert ending.type == "stopped"
    assert ending.request_id == "gen_1"
    # The grace, what SIGTERM gets, and some time for a busy machine.
    assert 0.5 < took_s < 0.5 + warm_pipeline._END_GRACE_S + 1
    assert pipeline.pid is None
    assert_no_survivors()
    assert generate(pipeline, "draw").type == "done"


def test_without_a_grace_a_generator_may_take_its_time_to_stop(pipeline):
    stop = StopRequest()
    timer = threading.Timer(0.5, stop)
    timer.start()
    ending = generate(pipeline, "endless", stop=stop, timeout_s=3)
    assert ending.code == "timed_out"


def test_a_cancel_that_is_heard_within_the_grace_keeps_the_generator_warm(pipeline):
    stop = StopRequest()
    ending = generate(pipeline, "cancelled", stop=stop, on_event=lambda _: stop("cancel", 5))
    assert ending == Stopped(request_id="gen_1")
    assert generate(pipeline, "draw").type == "done"
    assert pipeline.starts == 1


def test_images_that_are_there_already_are_not_drawn(pipeline):
    events = []
    generate(pipeline, "draw", on_event=events.append, done=(0,))
    assert [event.index for event in events] == [1]


def test_the_generator_gets_the_environment_of_its_slot(engine_script, tmp_path):
    command = engine_script('emit("warning", code="x", message=os.environ["SLOT"])\n' + GENERATOR)
    command = command.model_copy(update={"environment": {"SLOT": "any"}})
    seen = []
    generator = ScriptedGenerator(command)
    generator.parse = lambda line: seen.append(line) or parse_event(line)
    pipeline = WarmPipeline(
        generator, tmp_path / "log.txt", idle_unload_s=60, environment={"SLOT": "the second GPU"}
    )
    assert generate(pipeline, "draw").type == "done"
    assert json.loads(seen[0])["message"] == "the second GPU"
    pipeline.close()


def test_a_generator_is_remembered_while_it_runs_in_case_we_die(engine_script, tmp_path):
    pipeline = WarmPipeline(
        ScriptedGenerator(engine_script(GENERATOR)),
        tmp_path / "log.txt",
        idle_unload_s=60,
        records=ChildRecords(tmp_path / "run"),
    )
    generate(pipeline, "draw")
    (path,) = (tmp_path / "run").glob("*.json")
    assert json.loads(path.read_text())["what"] == "generator"
    assert path.stem == str(pipeline.pid)
    pipeline.close()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_crash_fails_the_request_and_the_next_one_starts_a_new_generator(
    pipeline, assert_no_survivors
):
    ending = generate(pipeline, "crash")
    assert (ending.type, ending.code, ending.request_id) == ("failed", "engine_crashed", "gen_1")
    assert "out of luck" in ending.remedy
    assert_no_survivors()
    assert generate(pipeline, "draw").type == "done"
    assert pipeline.starts == 2


def test_a_crash_is_noticed_although_a_grandchild_holds_the_pipe(pipeline, assert_no_survivors):
    started = time.monotonic()
    ending = generate(pipeline, "orphan", timeout_s=3, stall_s=3)
    assert (ending.type, ending.code) == ("failed", "engine_crashed")
    assert time.monotonic() - started < 2.5
    assert_no_survivors()


def test_a_generator_that_died_while_idle_is_replaced_unnoticed(pipeline):
    generate(pipeline, "draw")
    pipeline._child.signal(signal.SIGKILL)
    pipeline._child.wait(5)
    assert generate(pipeline, "draw").type == "done"
    assert pipeline.starts == 2


def test_a_generation_past_its_time_limit_is_timed_out(pipeline, assert_no_survivors):
    ending = generate(pipeline, "endless", timeout_s=0.5)
    assert (ending.type, ending.code, ending.request_id) == ("failed", "timed_out", "gen_1")
    assert "0.5 s" in ending.message
    assert_no_survivors()
    assert generate(pipeline, "draw").type == "done"


def test_a_generation_without_a_sign_of_life_is_stalled(pipeline, assert_no_survivors):
    ending = generate(pipeline, "hang", stall_s=0.5)
    assert (ending.type, ending.code) == ("failed", "engine_stalled")
    assert pipeline.pid is None
    assert_no_survivors()


def test_the_time_limit_holds_for_a_generator_that_does_not_read_its_request(pipeline, monkeypatch):
    """A request may be larger than the 64 KiB that a pipe takes without a reader."""
    monkeypatch.setattr(warm_pipeline, "_END_GRACE_S", 0.2)
    assert generate(pipeline, "draw").type == "done"
    child, endings = pipeline._child, []
    child.signal(signal.SIGSTOP)
    request = GenerationRequest(base_model="emoji-base", prompts=("draw",))
    pipeline._engine.generation_line = lambda *_: json.dumps(
        {"type": "generate", "request_id": "gen_2", "prompt": "draw " + "x" * 1_000_000}
    )
    thread = threading.Thread(
        target=lambda: endings.append(
            pipeline.generate(
                "gen_2", request, (), child, lambda event: None, StopRequest(), 0.5, 20
            )
        ),
        daemon=True,
    )
    thread.start()
    thread.join(3)
    waits = thread.is_alive()
    if waits:  # let the thread go
        child.signal(signal.SIGKILL)
        thread.join(10)
    assert not waits
    assert endings[0].code == "timed_out"


def test_requests_from_many_threads_run_one_after_another(pipeline):
    seen, endings = [], {}

    def one(n):
        endings[n] = generate(
            pipeline, "draw", id_=f"gen_{n}", on_event=lambda event: seen.append(event.request_id)
        )

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert {n: ending.request_id for n, ending in endings.items()} == {
        n: f"gen_{n}" for n in range(4)
    }
    assert seen == [seen[n // 2 * 2] for n in range(8)]
    assert pipeline.starts == 1


def test_an_error_in_the_listener_leaves_a_pipeline_that_works(pipeline):
    def fail(event):
        raise BrokenPipeError("the terminal is gone")

    with pytest.raises(BrokenPipeError):
        generate(pipeline, "draw", on_event=fail)
    assert generate(pipeline, "draw", id_="gen_2").request_id == "gen_2"
