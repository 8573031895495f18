import pytest

from loradash.cgroups import MemoryLimit, memory_limit

MB = 2**20


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cgroup"


@pytest.fixture
def limit(tmp_path, root):
    """Read the limit for a process with these lines in /proc/self/cgroup."""

    def read(*lines):
        path = tmp_path / "membership"
        path.write_text("".join(f"{line}\n" for line in lines))
        return memory_limit(root, path)

    return read


def group_v2(folder, limit, usage, cache=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 1\nfile {cache + 5}\ninactive_file {cache}\n")


def group_v1(folder, limit, usage, cache=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"inactive_file 0\ntotal_inactive_file {cache}\n")


def test_what_is_left_is_the_limit_without_what_is_used(root, limit):
    group_v2(root, 100 * MB, 30 * MB)
    assert limit("0::/") == MemoryLimit(100 * MB, 70 * MB)


def test_file_cache_that_gives_way_does_not_count_as_used(root, limit):
    group_v2(root, 100 * MB, 90 * MB, cache=50 * MB)
    assert limit("0::/") == MemoryLimit(100 * MB, 60 * MB)


def test_a_group_without_a_limit_has_none(root, limit):
    group_v2(root, "max", 30 * MB)
    assert limit("0::/") is None


def test_the_tightest_of_the_groups_above_counts(root, limit):
    group_v2(root / "a/b", "max", 10 * MB)
    group_v2(root / "a", 50 * MB, 30 * MB)
    group_v2(root, 1000 * MB, 500 * MB)
    group_v2(root / "other", 1 * MB, 1 * MB)
    assert limit("0::/a/b") == MemoryLimit(50 * MB, 20 * MB)


def test_a_path_of_the_host_that_the_container_does_not_see_means_its_root(root, limit):
    group_v2(root, 100 * MB, 30 * MB)
    assert limit("0::/docker/1234") == MemoryLimit(100 * MB, 70 * MB)


def test_version_1_is_read_too(root, limit):
    group_v1(root / "memory/jobs/7", 100 * MB, 80 * MB, cache=20 * MB)
    group_v1(root / "memory", 2**63 - 4096, 80 * MB)
    lines = ("5:cpu,cpuacct:/x", "4:memory:/jobs/7", "1:name=systemd:/", "0::/")
    assert limit(*lines) == MemoryLimit(100 * MB, 40 * MB)


def test_more_used_than_allowed_leaves_nothing(root, limit):
    group_v2(root, 100 * MB, 130 * MB)
    assert limit("0::/") == MemoryLimit(100 * MB, 0)


def test_a_path_does_not_lead_out_of_the_mount(root, limit, tmp_path):
    group_v2(tmp_path, 1 * MB, 0)
    root.mkdir()
    assert limit("0::/a/b") is None


@pytest.mark.parametrize("text", ["", "nonsense"])
def test_files_that_say_nothing_mean_no_limit(root, limit, text):
    group_v2(root, text, 30 * MB)
    assert limit("0::/") is None


def test_a_system_without_control_groups_has_no_limit(tmp_path):
    assert memory_limit(tmp_path / "none", tmp_path / "no_file") is None


def test_this_machine_can_be_asked():
    limit = memory_limit()
    assert limit is None or 0 <= limit.left_bytes <= limit.limit_bytes
