import fcntl
import json
import os
import signal
import time

import psutil
import pytest

from loradash.domain.events import EVENTS_FD_VARIABLE
from loradash.runtime.child import Child, tail
from loradash.runtime.orphans import ChildRecords


@pytest.fixture
def start(engine_script, tmp_path):
    """Start a script as a child; ends whatever is left of it."""
    children = []

    def start_script(body, environment=None, **options):
        command = engine_script(body)
        child = Child(
            command.argv,
            environment or {},
            command.working_directory,
            tmp_path / "log.txt",
            **options,
        )
        children.append(child)
        return child

    yield start_script
    for child in children:
        child.kill()


def lines_of(child):
    lines = []
    while not child.ended:
        if (line := child.next_line(0.05)) is not None:
            lines.append(line)
    return lines


def test_events_come_line_by_line_and_then_the_end(start):
    child = start("os.write(FD, 'one\\ntwo ä\\n'.encode()); os.write(FD, b'\\xff\\n')")
    assert lines_of(child) == ["one", "two ä", "\ufffd"]
    assert child.next_line(0) is None
    assert child.wait(5) == 0


SECRETS = [
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "S3_BUCKET",
    "S3_ENDPOINT_URL", "RUNPOD_API_KEY", "RUNPOD_AI_API_KEY", "RUNPOD_WEBHOOK_GET_JOB",
    "DATABASE_URL", "LORADASH_RUNPOD_WEBHOOK", "PGPASSWORD", "GITHUB_TOKEN", "WANDB_API_KEY",
    "OPENAI_API_KEY", "MY_SECRET", "GOOGLE_APPLICATION_CREDENTIALS", "SENTRY_DSN", "runpod_api_key",
]  # fmt: skip
NEEDED = [
    "PATH", "HOME", "LANG", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HOME", "HF_ENDPOINT",
    "HTTPS_PROXY", "SSL_CERT_FILE", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH",
    "PYTORCH_CUDA_ALLOC_CONF", "TMPDIR", "XDG_CACHE_HOME", "TOKENIZERS_PARALLELISM",
    "OMP_NUM_THREADS", "NVIDIA_VISIBLE_DEVICES",
]  # fmt: skip


def test_an_engine_inherits_what_it_needs_and_no_secret_but_the_hubs_token(start, monkeypatch):
    for name in (*SECRETS, *NEEDED):
        if name != "PATH":
            monkeypatch.setenv(name, "/tmp")
    child = start(
        "os.write(FD, (json.dumps(dict(os.environ)) + '\\n').encode())", {"GIVEN_KEY": "x"}
    )
    there = json.loads(lines_of(child)[0])
    assert {name for name in SECRETS if name in there} == set()
    assert {name for name in NEEDED if name not in there} == set()
    assert there["GIVEN_KEY"] == "x"


def test_waiting_for_a_line_ends_with_its_time(start):
    child = start("time.sleep(60)")
    started = time.monotonic()
    assert child.next_line(0.1) is None
    assert time.monotonic() - started < 2
    assert not child.ended
    assert child.wait(0) is None


def test_prints_go_to_the_log_and_not_among_the_events(start, tmp_path):
    child = start("print('out'); print('err', file=sys.stderr); os.write(FD, b'event\\n')")
    assert lines_of(child) == ["event"]
    assert child.wait(5) == 0
    assert sorted((tmp_path / "log.txt").read_text().split()) == ["err", "out"]


def test_the_log_of_an_earlier_attempt_is_kept(start, tmp_path):
    (tmp_path / "log.txt").write_text("first attempt\n")
    start("print('second')").wait(5)
    assert (tmp_path / "log.txt").read_text() == "first attempt\nsecond\n"


def test_the_environment_is_added_to_our_own(start, monkeypatch):
    monkeypatch.setenv("OURS", "1")
    child = start(
        "os.write(FD, f\"{os.environ['OURS']}{os.environ['THEIRS']}\".encode())", {"THEIRS": "2"}
    )
    assert lines_of(child) == ["12"]
    assert EVENTS_FD_VARIABLE not in os.environ


def test_the_child_leads_a_group_of_its_own(start):
    child = start("os.write(FD, f'{os.getpgid(0)} {os.getsid(0)}\\n'.encode()); time.sleep(60)")
    assert child.next_line(5) == f"{child.pid} {child.pid}"
    child.signal(signal.SIGTERM)
    assert child.wait(5) == -signal.SIGTERM


def test_lines_reach_the_childs_stdin(start):
    child = start("for line in sys.stdin: os.write(FD, line.upper().encode())")
    assert child.send("hello ä")
    assert child.next_line(5) == "HELLO Ä"


def test_sending_to_a_dead_child_is_told(start):
    child = start("")
    child.wait(5)
    assert not child.send("hello")


def test_leaving_the_block_ends_the_group(start, assert_no_survivors):
    with start(
        "subprocess.Popen(['sleep', '60']); os.write(FD, b'up\\n'); time.sleep(60)"
    ) as child:
        assert child.next_line(5) == "up"
    assert child.wait(0) == -signal.SIGKILL
    assert_no_survivors()


def test_what_is_kept_open_is_held_by_the_whole_group_until_it_has_ended(
    start, assert_no_survivors, tmp_path
):
    """So a folder that is locked for an engine stays locked though its parent has died."""
    with (tmp_path / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        child = start(
            "subprocess.Popen(['sleep', '60'], close_fds=False)\n"
            "os.write(FD, b'up\\n'); time.sleep(60)",
            keep_open=(held.fileno(),),
        )
        assert child.next_line(5) == "up"
    with (tmp_path / "lock").open("a") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(child.pid, signal.SIGKILL)  # the grandchild holds it too
        child.wait(5)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.kill()
        assert_no_survivors()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_other_open_files_are_not_handed_to_the_child(start, tmp_path):
    with (tmp_path / "secret").open("a") as ours:
        os.set_inheritable(ours.fileno(), True)
        child = start(
            "names = [os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')\n"
            "         if os.path.exists(f'/proc/self/fd/{n}')]\n"
            "os.write(FD, (' '.join(names) + '\\n').encode())"
        )
        assert "secret" not in child.next_line(5)


def test_a_child_is_remembered_until_its_group_has_ended(start, tmp_path):
    records = ChildRecords(tmp_path / "run")
    with start("time.sleep(60)", records=records, what="train_x") as child:
        record = json.loads((tmp_path / "run" / f"{child.pid}.json").read_text())
        assert (record["pid"], record["what"]) == (child.pid, "train_x")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_child_that_can_not_be_remembered_does_not_live_on(start, tmp_path):
    """Nobody would find it if we died; and nobody would end it now."""
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="run"):
        start(
            "os.write(FD, b'up'); time.sleep(60)",
            records=ChildRecords(tmp_path / "run"),
            what="train_x",
        )
    script = str(tmp_path / "engine_script.py")
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if script in child.cmdline()]


def test_signals_to_a_group_that_is_gone_do_nothing(start):
    child = start("")
    child.wait(5)
    child.signal(signal.SIGTERM)
    child.kill()
    assert child.group_is_gone()


def test_the_tail_of_a_log_is_its_last_lines_that_say_something(tmp_path):
    log = tmp_path / "log.txt"
    log.write_bytes(b"one\n\ntwo\n  \n10%\r50%\r100%\n\xff bad byte\n")
    assert tail(log, 3) == ["50%", "100%", "\ufffd bad byte"]


def test_the_tail_of_a_huge_log_is_read_from_its_end(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("x" * 2_000_000 + "\nlast\n")
    assert tail(log, 1) == ["last"]
    assert sum(map(len, tail(log))) <= 64_000


def test_the_tail_of_a_missing_log_is_empty(tmp_path):
    assert tail(tmp_path / "none") == []
