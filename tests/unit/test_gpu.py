"""The driver's library is replaced by an object with the same functions; see the NVML reference."""

import threading
import time
from types import SimpleNamespace

import pytest

from loradash.cgroups import MemoryLimit
from loradash.errors import EngineUnavailable
from loradash.runtime import gpu as gpu_module
from loradash.runtime.gpu import Gpu, Machine, Memory, Slot

MB, GB = 2**20, 2**30


class NVMLError(Exception):
    pass


class NVMLErrorNotFound(NVMLError):
    pass


class FakeNvml:
    """Cards are dicts; a value that is an exception is raised by the function that reads it."""

    NVMLError = NVMLError
    NVMLError_NotFound = NVMLErrorNotFound
    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, *cards):
        self.cards = list(cards)
        self.starts = 0
        self.failure = None
        self.wait = threading.Event()
        self.wait.set()

    def nvmlInit(self):  # noqa: N802
        self.wait.wait()
        self.starts += 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        self.wait.wait()
        if self.failure:
            raise self.failure
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, number):  # noqa: N802
        return got(self.cards[number], "handle", self.cards[number])

    def nvmlDeviceGetUUID(self, card):  # noqa: N802
        return got(card, "uuid")

    def nvmlDeviceGetName(self, card):  # noqa: N802
        return got(card, "name", "NVIDIA H200")

    def nvmlDeviceGetMemoryInfo(self, card):  # noqa: N802
        total, free = got(card, "memory", (100 * GB, 60 * GB))
        return SimpleNamespace(total=total, free=free, used=total - free)

    def nvmlDeviceGetUtilizationRates(self, card):  # noqa: N802
        return SimpleNamespace(gpu=got(card, "busy", 7), memory=1)

    def nvmlDeviceGetMigMode(self, card):  # noqa: N802
        if "instances" not in card:
            raise NVMLError("Not Supported")
        return [int(bool(card["instances"])), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, card):  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card, number):  # noqa: N802
        if number >= len(card["instances"]):
            raise NVMLErrorNotFound("Not Found")
        return card["instances"][number]


def got(card, what, default=None):
    value = card.get(what, default)
    if isinstance(value, Exception):
        raise value
    return value


def card(uuid, **changes):
    return {"uuid": f"GPU-{uuid}", **changes}


def machine(*cards, visible=None):
    return Machine(visible, nvml=FakeNvml(*cards))


def uuids(one):
    return [gpu.uuid for gpu in one.gpus()]


def test_all_facts_of_each_gpu_are_told():
    one = machine(card("a"), card("b", name="T4", memory=(16 * GB, 4 * GB), busy=99))
    assert one.gpus() == (
        Gpu(0, "NVIDIA H200", "GPU-a", 100 * 1024, 60 * 1024, 40 * 1024, 7),
        Gpu(1, "T4", "GPU-b", 16 * 1024, 4 * 1024, 12 * 1024, 99),
    )
    assert one.reason == ""


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-aa1", "GPU-aa2", "GPU-b"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", ["GPU-aa2"]),
        ("2,0", ["GPU-b", "GPU-aa1"]),
        ("2, 0", ["GPU-b", "GPU-aa1"]),
        ("0,9,1", ["GPU-aa1"]),
        ("0,-1,1", ["GPU-aa1"]),
        ("0,0", []),
        ("3", []),
        ("9" * 5_000, []),
        ("²", []),
        ("GPU-b", ["GPU-b"]),
        ("GPU-b,GPU-aa1", ["GPU-b", "GPU-aa1"]),
        ("GPU-aa2,GPU-x,GPU-b", ["GPU-aa2"]),
        ("GPU-aa", []),
    ],
)
def test_cuda_visible_devices_hides_and_orders_gpus(visible, expected):
    one = machine(card("aa1"), card("aa2"), card("b"), visible=visible)
    assert uuids(one) == expected
    assert [gpu.index for gpu in one.gpus()] == list(range(len(expected)))
    assert bool(one.reason) == (not expected)


def split():
    instances = [{"uuid": f"MIG-{n}", "name": "H200 MIG 1g.18gb"} for n in range(2)]
    return card("a", instances=instances)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["MIG-0", "MIG-1", "GPU-b"]),
        ("0", ["MIG-0", "MIG-1"]),
        ("MIG-1", ["MIG-1"]),
        ("MIG-1,1", ["MIG-1", "GPU-b"]),
        ("MIG-7", []),
        ("MIG-1,0", []),
    ],
)
def test_the_instances_of_a_split_gpu_stand_for_it(visible, expected):
    one = machine(split(), card("b", instances=[]), visible=visible)
    assert uuids(one) == expected
    for gpu in one.gpus():
        assert (gpu.utilization_percent is None) == gpu.uuid.startswith("MIG-")


def test_without_a_driver_there_is_no_gpu_and_a_reason(monkeypatch):
    one = Machine(None, nvml=FakeNvml())
    one._nvml.nvmlInit = lambda: (_ for _ in ()).throw(NVMLError("NVML Shared Library Not Found"))
    assert one.gpus() == ()
    assert "NVML Shared Library Not Found" in one.reason


def test_without_the_package_there_is_no_gpu_and_a_reason(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    one = Machine(None)
    assert one.gpus() == ()
    assert "pynvml" in one.reason


def test_the_real_library_can_be_asked():
    one = Machine(None)
    assert one.gpus() or one.reason
    for gpu in one.gpus():
        assert gpu.uuid.startswith(("GPU-", "MIG-"))


def test_what_a_gpu_does_not_tell_is_unknown():
    unknown = NVMLError("Not Supported")
    one = machine(card("a", memory=unknown, busy=unknown))
    assert one.gpus() == (Gpu(0, "NVIDIA H200", "GPU-a", None, None, None, None),)
    assert "Not Supported" in one.reason
    assert one.free_mb(one.slots("cuda")[0]) is None
    assert one.total_mb(one.slots("cuda")[0]) is None


def test_a_gpu_that_is_lost_leaves_the_others_usable():
    one = machine(card("a", handle=NVMLError("GPU is lost")), card("b"))
    assert uuids(one) == ["GPU-b"]
    assert one.reason == "GPU 0: GPU is lost"


@pytest.mark.parametrize("failure", [NVMLError("Unknown Error"), OSError("bad"), ValueError("odd")])
def test_a_failing_driver_never_raises_and_is_started_again_later(failure):
    one = machine(card("a"))
    (slot,) = one.slots("auto")
    one._nvml.failure = failure
    assert one.gpus() == ()
    assert one.free_mb(slot) is None
    assert str(failure) in one.reason
    one._nvml.failure = None
    assert uuids(one) == ["GPU-a"]
    assert one.reason == ""
    assert one._nvml.starts > 1


def test_a_driver_that_hangs_costs_its_timeout_once_and_comes_back():
    one = Machine(None, nvml=FakeNvml(card("a")), nvml_timeout_s=0.3)
    one._nvml.wait.clear()
    started = time.monotonic()
    assert one.gpus() == ()
    assert time.monotonic() - started >= 0.3
    threads = threading.active_count()
    started = time.monotonic()
    assert [one.gpus() for _ in range(20)] == [()] * 20
    assert time.monotonic() - started < 0.3
    assert threading.active_count() == threads
    assert one.reason == "NVML hasn't answered for 0.3 s"
    hanging = one._asking
    one._nvml.wait.set()
    hanging.join(5)
    assert uuids(one) == ["GPU-a"]
    assert one.reason == ""


def test_each_gpu_is_a_slot_whose_child_sees_only_it():
    one = machine(card("a"), card("b"), card("c"), visible="2,0")
    slots = (
        Slot("cuda:0", 0, {"CUDA_VISIBLE_DEVICES": "GPU-c"}),
        Slot("cuda:1", 1, {"CUDA_VISIBLE_DEVICES": "GPU-a"}),
    )
    assert one.slots("auto") == one.slots("cuda") == slots
    assert one.slots("cuda:1") == slots[1:]


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_setting_that_is_no_gpu_is_one_slot(device):
    assert machine(card("a")).slots(device) == (Slot(device, None, {}),)


def test_auto_without_a_gpu_is_the_cpu():
    assert machine().slots("auto") == (Slot("cpu", None, {}),)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1", "nonsense"])
def test_a_gpu_that_was_asked_for_and_is_not_there_is_told(device):
    with pytest.raises(EngineUnavailable, match=f"device {device} isn't there") as caught:
        machine().slots(device)
    assert "LORADASH_DEVICE" in caught.value.remedy


def test_the_error_names_the_gpus_that_are_there_or_why_none_is():
    with pytest.raises(EngineUnavailable, match=r"\(cuda:0\)"):
        machine(card("a")).slots("cuda:1")
    with pytest.raises(EngineUnavailable, match="CUDA_VISIBLE_DEVICES=-1"):
        machine(card("a"), visible="-1").slots("cuda")


def test_the_memory_of_a_slot_is_that_of_its_gpu():
    one = machine(card("a"), card("b", memory=(16 * GB, 4 * GB)))
    assert [one.free_mb(slot) for slot in one.slots("cuda")] == [60 * 1024, 4 * 1024]
    assert [one.total_mb(slot) for slot in one.slots("cuda")] == [100 * 1024, 16 * 1024]


def test_the_free_memory_of_a_gpu_that_has_vanished_is_unknown():
    one = machine(card("a"), card("b"))
    slots = one.slots("cuda")
    del one._nvml.cards[0]
    assert [one.free_mb(slot) for slot in slots] == [None, 60 * 1024]


@pytest.fixture
def system_memory(monkeypatch):
    def set_memory(total, available, limit=None):
        memory = SimpleNamespace(total=total, available=available)
        monkeypatch.setattr(gpu_module.psutil, "virtual_memory", lambda: memory)
        monkeypatch.setattr(gpu_module, "memory_limit", lambda: limit)

    return set_memory


def test_a_process_on_the_cpu_has_the_memory_of_the_machine(system_memory):
    system_memory(16 * GB, 4 * GB)
    one = machine()
    assert one.memory() == Memory(16 * 1024, 4 * 1024, 75.0)
    assert one.free_mb(Slot("cpu")) == one.free_mb(Slot("mps")) == 4 * 1024
    assert one.total_mb(Slot("cpu")) == 16 * 1024


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (MemoryLimit(8 * GB, 2 * GB), Memory(8 * 1024, 2 * 1024, 75.0)),
        (MemoryLimit(8 * GB, 6 * GB), Memory(8 * 1024, 4 * 1024, 50.0)),
        (MemoryLimit(2**63 - 4096, 2**62), Memory(16 * 1024, 4 * 1024, 75.0)),
    ],
)
def test_in_a_container_its_limit_counts(system_memory, limit, expected):
    system_memory(16 * GB, 4 * GB, limit)
    assert machine().memory() == expected
    assert machine().free_mb(Slot("cpu")) == expected.available_mb


def test_memory_that_can_not_be_read_is_unknown(monkeypatch):
    def fail():
        raise RuntimeError("no /proc")

    monkeypatch.setattr(gpu_module.psutil, "virtual_memory", fail)
    assert machine().memory() is None
    assert machine().free_mb(Slot("cpu")) is None


def test_the_disk_is_told_for_a_folder_that_will_be_made(tmp_path):
    disk = machine().disk(tmp_path / "not/yet")
    assert 0 < disk.free_gb <= disk.total_gb
    assert disk.total_gb == machine().disk(tmp_path).total_gb


def test_slots_can_be_keys():
    one = machine(card("a"), card("b"))
    assert len({*one.slots("cuda"), *one.slots("cuda")}) == 2
