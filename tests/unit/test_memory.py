"""How much memory is free where a container, a Slurm job or a service may take up to a limit: in made folders of /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from fox.memory import free_memory_bytes, machine_bytes

FREE = 4_000_000 * 1024  # of the machine


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A machine with free memory, and no control groups."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable: 4000000 kB\n")
    return tmp_path


def free(system: Path) -> int | None:
    return free_memory_bytes(system / "proc", system / "sys")


def in_group(system: Path, *lines: str) -> None:
    (system / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))


def group_v2(system: Path, path: str, limit: str, taken: int, stat: str = "anon 100\n") -> None:
    folder = system / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{taken}\n")
    (folder / "memory.stat").write_text(stat)


def group_v1(system: Path, path: str, limit: int, taken: int, stat: str = "total_cache 100\n") -> None:
    folder = system / "sys/fs/cgroup/memory" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{taken}\n")
    (folder / "memory.stat").write_text(stat)


def test_without_groups_it_is_what_the_machine_has(system: Path) -> None:
    assert free(system) == FREE
    assert machine_bytes(system / "proc", system / "sys") > 0


def test_a_system_that_does_not_tell_is_not_guessed_at(tmp_path: Path) -> None:
    assert free(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemFree: 1 kB\n")
    assert free(tmp_path) is None


@pytest.mark.parametrize(
    ("limit", "left"), [("1000", 1000 - 900 + 300 + 400 + 50), ("max", FREE), ("800", 800 - 900 + 750), ("100", 0)]
)
def test_what_is_kept_of_files_is_free_in_a_container(system: Path, limit: str, left: int) -> None:
    """The kernel gives it up before it refuses anything; a corpus that was just hashed is all there is of it."""
    in_group(system, "0::/")
    group_v2(system, ".", limit, 900, "anon 100\ninactive_file 300\nactive_file 400\nslab_reclaimable 50\n")
    assert free(system) == left


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"slurm": "max", "slurm/job_7": "5000", "slurm/job_7/step_0": "max"}, 4000),
        ({"slurm": "max", "slurm/job_7": "5000", "slurm/job_7/step_0": "3000"}, 2000),
        ({"slurm": "2500", "slurm/job_7": "5000", "slurm/job_7/step_0": "3000"}, 1500),
        ({"slurm": "max", "slurm/job_7": "max", "slurm/job_7/step_0": "max"}, FREE),
    ],
)
def test_the_tightest_of_nested_groups_counts(system: Path, limits: dict[str, str], left: int) -> None:
    in_group(system, "0::/slurm/job_7/step_0/task_0")
    for path, limit in limits.items():
        group_v2(system, path, limit, 1000)
    group_v2(system, "slurm/job_8", "10", 10)  # another's
    assert free(system) == left


def test_limits_of_the_first_version_count(system: Path) -> None:
    in_group(system, "5:cpu,cpuacct:/job", "4:memory:/slurm/uid_0/job_7", "1:name=systemd:/", "0::/")
    group_v1(system, "", 9223372036854771712, 70_000)
    group_v1(system, "slurm/uid_0", 9223372036854771712, 60_000)
    assert free(system) == FREE
    group_v1(
        system, "slurm/uid_0/job_7", 8000, 5000, "inactive_file 1\ntotal_inactive_file 500\ntotal_active_file 200\n"
    )
    assert free(system) == 8000 - 5000 + 700
    group_v1(system, "slurm", 6000, 5900)
    assert free(system) == 100
    assert machine_bytes(system / "proc", system / "sys") == 6000


@pytest.mark.parametrize("path", ["/docker/0123/init", "/../../kubepods/pod7"])
def test_a_path_that_a_container_does_not_see_is_its_root(system: Path, path: str) -> None:
    in_group(system, f"0::{path}", f"4:memory:{path}")
    group_v2(system, ".", "7000", 1000)
    assert free(system) == 6000
    group_v1(system, "", 5000, 1000)
    assert free(system) == 4000
    (system / "sys/fs/kubepods/pod7").mkdir(parents=True)
    (system / "sys/fs/kubepods/pod7/memory.max").write_text("1\n")
    assert machine_bytes(system / "proc", system / "sys") == 5000, "nothing outside of /sys/fs/cgroup"


@pytest.mark.parametrize("line", ["", "garbage", "0:", "::", "0::"])
def test_a_line_that_is_none_is_no_group(system: Path, line: str) -> None:
    in_group(system, line)
    assert free(system) == FREE
