"""What this machine offers to a process: GPUs, memory, disk. In facts, and without torch.

torch would take seconds to import and hundreds of megabytes of each GPU to ask. NVML, the driver's
own library, sees every GPU and what all programs use of it. It may be absent, fail, or hang with a
broken driver; a fact that can't be had is None, and `Machine.reason` says why.
"""

import queue
import re
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil

from loradash.cgroups import memory_limit
from loradash.errors import EngineUnavailable

_T = TypeVar("_T")
_MB = 2**20
_GB = 2**30
_NVML_TIMEOUT_S = 10.0  # waking eight GPUs without the persistence daemon takes seconds


@dataclass(frozen=True)
class Gpu:
    """A GPU, or an instance of one that is split (MIG), that CUDA programs here may use.

    ``index`` counts the usable ones, as the N in ``cuda:N`` does. None means unknown.
    """

    index: int
    name: str
    uuid: str
    total_mb: int | None
    free_mb: int | None
    used_mb: int | None
    utilization_percent: int | None


class Memory(NamedTuple):
    """The machine's memory, or the container's if that has a limit."""

    total_mb: int
    available_mb: int
    used_percent: float


class Disk(NamedTuple):
    """The disk below a path."""

    total_gb: float
    free_gb: float


@dataclass(frozen=True)
class Slot:
    """A place where one process can run at a time: ``cuda:0``, ``cpu`` or ``mps``.

    ``environment`` lets the child see its own GPU only. Inside it that GPU is the first one
    whatever the slot's name, so its device is just ``cuda``.
    """

    name: str
    gpu_index: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)


class Machine:
    """The machine that we run on. Thread-safe; no method fails or blocks on a broken driver.

    ``visible_devices`` is the environment's CUDA_VISIBLE_DEVICES, None if it isn't set. ``nvml``
    stands in for the module ``pynvml``.
    """

    def __init__(
        self,
        visible_devices: str | None,
        *,
        nvml: Any = None,
        nvml_timeout_s: float = _NVML_TIMEOUT_S,
    ) -> None:
        self._visible_devices = visible_devices
        self._nvml = nvml
        self._nvml_timeout_s = nvml_timeout_s
        self._started = False
        self._asking: threading.Thread | None = None
        self._lock = threading.Lock()
        self.reason = ""
        """Why GPUs, or facts about them, were missing when they were last asked for; or ''."""

    def gpus(self) -> tuple[Gpu, ...]:
        """Return the GPUs that may be used; none if there are none or they can't be asked."""
        with self._lock:
            return self._ask(self._read_gpus) or ()

    def slots(self, device: str) -> tuple[Slot, ...]:
        """Return where processes can run with the setting ``auto``, ``cpu``, ``cuda[:N]``, ``mps``.

        Raises `EngineUnavailable` if the GPU that the setting names isn't there.
        """
        if device in ("cpu", "mps"):
            return (Slot(device),)
        slots = tuple(
            Slot(f"cuda:{gpu.index}", gpu.index, {"CUDA_VISIBLE_DEVICES": gpu.uuid})
            for gpu in self.gpus()
        )
        if device == "auto":
            return slots or (Slot("cpu"),)
        chosen = slots if device == "cuda" else tuple(s for s in slots if s.name == device)
        if not chosen:
            there = ", ".join(slot.name for slot in slots) or self.reason or "there is no GPU"
            raise EngineUnavailable(
                f"device {device} isn't there ({there})",
                remedy="Set LORADASH_DEVICE to a device of this machine, auto or cpu, or repair "
                "the NVIDIA driver (does nvidia-smi work?).",
            )
        return chosen

    def free_mb(self, slot: Slot) -> int | None:
        """Return the memory that is free for a process there, in MiB; None if it is unknown."""
        if slot.gpu_index is None:
            memory = self.memory()
            return memory.available_mb if memory else None
        gpu = self._gpu_of(slot)
        return gpu.free_mb if gpu else None

    def total_mb(self, slot: Slot) -> int | None:
        """Return the memory that there is at all, in MiB; None if it is unknown."""
        if slot.gpu_index is None:
            memory = self.memory()
            return memory.total_mb if memory else None
        gpu = self._gpu_of(slot)
        return gpu.total_mb if gpu else None

    def memory(self) -> Memory | None:
        """Return how much memory there is and how much of it is free."""
        try:
            system = psutil.virtual_memory()
        except (OSError, RuntimeError, ValueError):  # what psutil raises where /proc is odd
            return None
        total, available = int(system.total), int(system.available)
        if limit := memory_limit():
            total = min(total, limit.limit_bytes)
            available = min(available, limit.left_bytes)
        used_percent = round(100 * (1 - available / total), 1) if total else 0.0
        return Memory(total // _MB, available // _MB, used_percent)

    def disk(self, path: Path) -> Disk | None:
        """Return the size of the disk that holds ``path``, or would hold it."""
        path = path.absolute()
        try:
            existing = next(folder for folder in (path, *path.parents) if folder.exists())
            usage = shutil.disk_usage(existing)
        except OSError:
            return None
        return Disk(round(usage.total / _GB, 1), round(usage.free / _GB, 1))

    def _gpu_of(self, slot: Slot) -> Gpu | None:
        uuid = slot.environment["CUDA_VISIBLE_DEVICES"]
        return next((gpu for gpu in self.gpus() if gpu.uuid == uuid), None)

    def _ask(self, question: Callable[[], _T]) -> _T | None:
        """Answer in a thread of its own; give up on it after a while. The lock is held.

        A thread that hangs in the driver can't be ended. It is left alone, and no other is started
        as long as it is there.
        """
        if self._asking and self._asking.is_alive():
            return None
        self.reason = ""
        answers: queue.Queue[_T | Exception] = queue.Queue()

        def answer() -> None:
            try:
                answers.put(question())
            except Exception as error:  # noqa: BLE001 - no failure of a driver may stop the server
                answers.put(error)

        self._asking = threading.Thread(target=answer, name="nvml", daemon=True)
        self._asking.start()
        try:
            found = answers.get(timeout=self._nvml_timeout_s)
        except queue.Empty:
            self.reason = f"NVML hasn't answered for {self._nvml_timeout_s:g} s"
            return None
        self._asking = None
        if isinstance(found, Exception):
            self._started = False  # a driver that was replaced wants a new start
            self.reason = f"NVML: {type(found).__name__}: {found}"
            return None
        return found

    def _read_gpus(self) -> tuple[Gpu, ...]:
        if self._nvml is None:
            import pynvml

            self._nvml = pynvml
        if not self._started:
            self._nvml.nvmlInit()
            self._started = True
        cards = [self._card(number) for number in range(self._nvml.nvmlDeviceGetCount())]
        visible = _visible(cards, self._visible_devices)
        if cards and not visible and not self.reason:
            self.reason = f"CUDA_VISIBLE_DEVICES={self._visible_devices} shows no GPU"
        return tuple(self._gpu(index, unit) for index, unit in enumerate(visible))

    def _card(self, number: int) -> "_Card":
        """What CUDA can use of one card. One that doesn't answer leaves the others usable."""
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            uuid = str(nvml.nvmlDeviceGetUUID(handle))
            instances = self._instances(handle)
            if instances is None:
                return _Card(uuid, (_Unit(uuid, str(nvml.nvmlDeviceGetName(handle)), handle),))
            return _Card(uuid, instances)
        except nvml.NVMLError as error:
            self.reason = f"GPU {number}: {error}"
            return _Card("", ())

    def _instances(self, card: Any) -> "tuple[_Unit, ...] | None":
        """The instances of a card that is split; None if it isn't."""
        nvml = self._nvml
        try:
            is_split = nvml.nvmlDeviceGetMigMode(card)[0] == nvml.NVML_DEVICE_MIG_ENABLE
        except nvml.NVMLError:  # most cards can't be
            return None
        if not is_split:
            return None
        units = []
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
            try:
                handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number)
            except nvml.NVMLError_NotFound:  # fewer than could be
                continue
            uuid = str(nvml.nvmlDeviceGetUUID(handle))
            units.append(_Unit(uuid, str(nvml.nvmlDeviceGetName(handle)), handle))
        return tuple(units)

    def _gpu(self, index: int, unit: "_Unit") -> Gpu:
        memory = self._fact(unit, self._nvml.nvmlDeviceGetMemoryInfo)
        busy = None  # instances of a card don't tell
        if not unit.uuid.startswith("MIG-"):
            busy = self._fact(unit, self._nvml.nvmlDeviceGetUtilizationRates)
        return Gpu(
            index=index,
            name=unit.name,
            uuid=unit.uuid,
            total_mb=int(memory.total) // _MB if memory else None,
            free_mb=int(memory.free) // _MB if memory else None,
            used_mb=int(memory.used) // _MB if memory else None,
            utilization_percent=int(busy.gpu) if busy else None,
        )

    def _fact(self, unit: "_Unit", read: Callable[[Any], Any]) -> Any:
        try:
            return read(unit.handle)
        except self._nvml.NVMLError as error:
            self.reason = f"{unit.name} {unit.uuid}: {error}"
            return None


class _Unit(NamedTuple):
    """What a CUDA program can be pointed at: a whole card, or an instance of a split one."""

    uuid: str
    name: str
    handle: Any


class _Card(NamedTuple):
    uuid: str
    units: tuple[_Unit, ...]


def _visible(cards: Sequence[_Card], setting: str | None) -> list[_Unit]:
    """Apply CUDA_VISIBLE_DEVICES as CUDA does (CUDA C++ programming guide, environment variables).

    An entry that names nothing hides all that follow it, and a repeated one hides everything.
    Numbers count in NVML's order, which is CUDA's with CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    if setting is None:
        return [unit for card in cards for unit in card.units]
    chosen: list[_Unit] = []
    for entry in setting.split(","):
        units = _named(cards, entry.strip())
        if not units:
            break
        if any(unit in chosen for unit in units):
            return []
        chosen += units
    return chosen


def _named(cards: Sequence[_Card], entry: str) -> tuple[_Unit, ...]:
    """The units of a card's number, or of a UUID or the unambiguous beginning of one."""
    if re.fullmatch("[0-9]{1,4}", entry):
        number = int(entry)
        return cards[number].units if number < len(cards) else ()
    found: list[tuple[_Unit, ...]] = []
    if entry.startswith("GPU-"):
        found = [card.units for card in cards if card.uuid.startswith(entry)]
    elif entry.startswith("MIG-"):
        found = [(u,) for card in cards for u in card.units if u.uuid.startswith(entry)]
    return found[0] if len(found) == 1 else ()
