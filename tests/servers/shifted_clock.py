"""Run loradash as on a machine whose clock is set wrong.

``python shifted_clock.py SECONDS ARGUMENT...``: its wall clock is so many seconds ahead of this
machine's; the monotonic one goes as always. Engines are programs of their own, with the true clock.
"""

import contextlib
import datetime
import importlib
import pkgutil
import sys
import time
from typing import Any

_CHILD = "loradash.engines.diffusers.child"


def main() -> None:
    ahead = datetime.timedelta(seconds=float(sys.argv.pop(1)))
    true_datetime, true_time = datetime.datetime, time

    class Instances(type):
        def __instancecheck__(cls, thing: object) -> bool:
            return isinstance(thing, true_datetime)

    class Datetime(true_datetime, metaclass=Instances):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return true_datetime.now(tz) + ahead

    class Time:
        def __getattr__(self, name: str) -> Any:
            return getattr(true_time, name)

        def time(self) -> float:
            return true_time.time() + ahead.total_seconds()

    import loradash

    for found in pkgutil.walk_packages(loradash.__path__, "loradash."):
        if not found.name.startswith(_CHILD) and not found.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(found.name)
    for name, module in list(sys.modules.items()):
        if name.startswith("loradash"):
            for attribute, (true, shifted) in {
                "datetime": (true_datetime, Datetime), "time": (true_time, Time()),
            }.items():  # fmt: skip
                if vars(module).get(attribute) is true:
                    setattr(module, attribute, shifted)
    from loradash.cli import main as command_line

    command_line()


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules have names of others
    main()
