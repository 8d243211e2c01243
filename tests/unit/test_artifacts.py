"""What is written is whole or not there: real processes are killed, real disks are full, real locks are held."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fox.artifacts import (
    PARTIAL,
    REPLACED,
    disk_failures,
    folder_made_whole,
    locked,
    sha256_of,
    sha256_of_json,
    sweep_partials,
    write_atomically,
    write_json,
)
from fox.errors import Failure

HERE = Path(__file__).parents[2]


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process of its own that runs `code`."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=HERE, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def said(process: subprocess.Popen[str]) -> str:
    """All that a process printed, once it ended well."""
    out, wrong = process.communicate(timeout=30)
    assert process.returncode == 0, wrong
    return out.strip()


def killed_while_writing(code: str, folder: Path, times: int) -> Iterator[None]:
    """Start `code`, kill it a little later each time, and let the caller look at what is left."""
    for number in range(times):
        process = python(code, folder)
        with process:
            assert process.stdout and process.stdout.readline() == "writing\n"
            time.sleep(number * 0.0023 % 0.03)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        yield


WRITE_FILES = """
import sys
from pathlib import Path
from fox.artifacts import write_atomically
write_atomically(Path(sys.argv[1]) / "file", "0" * 3_000_000)
print("writing", flush=True)
while True:
    for digit in "0123456789":
        write_atomically(Path(sys.argv[1]) / "file", digit * 3_000_000)
"""

MAKE_FOLDERS = """
import sys
from pathlib import Path
from fox.artifacts import folder_made_whole
def make(digit):
    with folder_made_whole(Path(sys.argv[1]) / "made") as folder:
        for number in range(4):
            (folder / str(number)).mkdir()
            (folder / str(number) / "file").write_text(digit * 10_000)
make("0")
print("writing", flush=True)
while True:
    for digit in "0123456789":
        make(digit)
"""


def test_a_file_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    left = 0
    for _ in killed_while_writing(WRITE_FILES, tmp_path, times=10):
        content = (tmp_path / "file").read_text()
        assert len(content) == 3_000_000 and len(set(content)) == 1
        left += len(list(tmp_path.glob(f"{PARTIAL}*")))
        with locked(tmp_path):
            assert {path.name for path in tmp_path.iterdir()} == {"file", "lock"}
    assert left, "no kill came in mid-write, so nothing was shown"


def test_a_folder_is_whole_whenever_its_maker_is_killed(tmp_path: Path) -> None:
    left = 0
    for _ in killed_while_writing(MAKE_FOLDERS, tmp_path, times=12):
        left += len(list(tmp_path.glob(f"{PARTIAL}*")))
        with locked(tmp_path):
            assert {path.name for path in tmp_path.iterdir()} == {"made", "lock"}
        contents = [file.read_text() for file in sorted((tmp_path / "made").rglob("file"))]
        assert len(contents) == 4 and len(set(contents)) == 1 and len(contents[0]) == 10_000
    assert left, "no kill came in mid-write, so nothing was shown"


def test_a_folder_is_put_back_when_its_maker_is_killed_between_the_two_renames(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from fox.artifacts import folder_made_whole
def kill(event, arguments):
    if event == "os.rename" and ".partial-" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
with folder_made_whole(Path(sys.argv[1]) / "made") as folder:
    (folder / "file").write_text("new")
"""
    (tmp_path / "made").mkdir()
    (tmp_path / "made/file").write_text("old")
    for again in ("by the sweep", "by the next call", "by the next call that fails"):
        with python(code, tmp_path) as process:
            process.wait(30)
        assert process.returncode == -signal.SIGKILL
        assert {path.name for path in tmp_path.iterdir()} == {f"{PARTIAL}made", f"{REPLACED}made"}
        if again == "by the sweep":
            sweep_partials(tmp_path)
        elif again == "by the next call":
            with folder_made_whole(tmp_path / "made") as folder:
                assert (tmp_path / "made/file").read_text() == "old"
                (folder / "file").write_text("old")
        else:
            with pytest.raises(ValueError, match="stop"), folder_made_whole(tmp_path / "made"):
                raise ValueError("stop")
        assert (tmp_path / "made/file").read_text() == "old"
        assert {path.name for path in tmp_path.iterdir()} == {"made"}


def test_a_block_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    with folder_made_whole(tmp_path / "made") as folder:
        (folder / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), folder_made_whole(tmp_path / "made") as folder:
        (folder / "file").write_text("new")
        raise KeyboardInterrupt
    assert (tmp_path / "made/file").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"made"}


def test_a_rename_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made/file").write_text("old")
    with pytest.raises(FileNotFoundError), folder_made_whole(tmp_path / "made") as folder:
        shutil.rmtree(folder)
    assert (tmp_path / "made/file").read_text() == "old"


def test_a_folder_that_is_called_old_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    (tmp_path / f"{PARTIAL}old-run").mkdir()  # a half-made folder "old-run", not the old one of a folder "run"
    sweep_partials(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_replaced_and_what_it_leads_to_is_kept(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("kept")
    (tmp_path / "made").symlink_to("kept")
    (tmp_path / "text").symlink_to("kept/file")
    (tmp_path / f"{PARTIAL}text").symlink_to("kept/file")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("made", "dangling"):
        with folder_made_whole(tmp_path / name) as folder:
            (folder / "file").write_text("new")
        assert (tmp_path / name / "file").read_text() == "new"
    write_atomically(tmp_path / "text", "new")
    assert (tmp_path / "text").read_text() == "new"
    assert (tmp_path / "kept/file").read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "made", "text", "dangling"}


def test_the_sweep_leaves_what_is_outside(tmp_path: Path) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    (outside / f"{PARTIAL}theirs").mkdir(parents=True)
    (outside / f"{PARTIAL}theirs/file").write_text("theirs")
    (outside / f"{REPLACED}theirs").mkdir()
    run.mkdir()
    (run / "link").symlink_to(outside)
    (run / f"{PARTIAL}link").symlink_to(outside)
    (run / f"{REPLACED}link").symlink_to(outside)
    (run / f"{PARTIAL}made").mkdir()
    (run / f"{PARTIAL}made/link").symlink_to(outside)
    for name in ("", ".", ".."):
        (run / f"{REPLACED}{name}").mkdir()
    sweep_partials(run)
    assert {path.name for path in run.iterdir()} == {"link"}
    assert {path.name for path in outside.iterdir()} == {f"{PARTIAL}theirs", f"{REPLACED}theirs"}
    assert (outside / f"{PARTIAL}theirs/file").read_text() == "theirs"


def test_a_tree_too_deep_for_its_path_does_not_stop_the_sweep(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from fox.artifacts import locked
for start in ("deep", ".partial-deep"):
    os.chdir(sys.argv[1])
    for name in [start] + ["d" * 8] * 600:
        os.mkdir(name)
        os.chdir(name)
os.chdir("/")
(Path(sys.argv[1]) / ".partial-z").mkdir()
with locked(Path(sys.argv[1])):
    print(sorted(path.name for path in Path(sys.argv[1]).iterdir()))
"""
    try:
        swept = said(python(f"import sys; sys.path.insert(0, {str(HERE)!r})\n{code}", tmp_path))
        assert "'.partial-z'" not in swept
        assert "'deep', 'lock'" in swept
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path)], check=True)


HOLD = """
import os, sys
from pathlib import Path
from fox.artifacts import locked
with locked(Path(sys.argv[1])):
    print(os.getpid(), flush=True)
    sys.stdin.read() if len(sys.argv) > 2 else __import__("time").sleep(60)
"""


def test_what_is_removed_loses_its_name_whole_even_where_it_can_not_be_emptied() -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path: nobody else may enter that
        code = """
import os, sys
from pathlib import Path
from fox.artifacts import remove_at_once
from fox.errors import Failure
if os.geteuid() == 0:
    os.setuid(65534)  # root may remove everything
one, two = Path(sys.argv[1], "one"), Path(sys.argv[1], "two")
(one / "inner").mkdir(parents=True)
(one / "inner/file").touch()
(one / "inner").chmod(0o555)
two.touch()
try:
    remove_at_once([one, two, Path(sys.argv[1], "nothing")])
except Failure as error:
    print(error)
(Path(sys.argv[1]) / ".partial-one/inner").chmod(0o755)
"""
        Path(name).chmod(0o777)
        told = said(python(code, name))
        assert f"{name}/{PARTIAL}one: can't be removed (Permission denied). Remove it yourself" in told
        assert {path.name for path in Path(name).iterdir()} == {f"{PARTIAL}one", f"{PARTIAL}two"}
        sweep_partials(Path(name))
        assert list(Path(name).iterdir()) == []


def test_nobody_takes_up_what_was_half_removed_by_a_killed_process(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from fox.artifacts import remove_at_once
sys.addaudithook(lambda event, _: event == "shutil.rmtree" and os.kill(os.getpid(), signal.SIGKILL))
remove_at_once([Path(sys.argv[1]) / "one", Path(sys.argv[1]) / "two"])
"""
    for name in ("one", "two"):
        (tmp_path / name / "inner").mkdir(parents=True)
    with python(code, tmp_path) as process:
        process.wait(30)
    assert process.returncode == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == {f"{PARTIAL}one", f"{PARTIAL}two"}
    with locked(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {"lock"}


def test_a_second_process_is_told_who_holds_the_run_and_gets_it_when_that_one_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with python(HOLD, run) as holder:
        assert holder.stdout and holder.stdout.readline() == f"{holder.pid}\n"
        (run / f"{PARTIAL}theirs").write_text("in the making")
        with pytest.raises(Failure) as told, locked(run):
            raise AssertionError("the lock was given twice")
        assert f"(process {holder.pid})" in str(told.value)
        assert "--out" in str(told.value)
        assert (run / f"{PARTIAL}theirs").exists(), "only the holder may sweep"
        holder.kill()
    with locked(run):
        assert (run / "lock").read_text() == str(os.getpid())
        assert not (run / f"{PARTIAL}theirs").exists()


def test_a_lock_ends_with_its_block(tmp_path: Path) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match="stop"), locked(tmp_path):
            raise ValueError("stop")


def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_is_kept(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "lock").symlink_to("theirs")
    with pytest.raises(Failure), locked(tmp_path):
        raise AssertionError("the link was followed")
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_a_file_that_may_not_be_so_large_is_a_failure_and_leaves_nothing(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from fox.artifacts import folder_made_whole, write_atomically
from fox.errors import Failure
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_atomically(Path(sys.argv[1]) / "file", b"x" * 200_000)
except Failure as error:
    print(error.exit_code, error)
try:
    with folder_made_whole(Path(sys.argv[1]) / "made") as folder:
        (folder / "file").write_bytes(b"x" * 200_000)
except Failure as error:
    print(error.exit_code, error)
"""
    (tmp_path / "file").write_text("old")
    file, made = said(python(code, tmp_path)).splitlines()
    assert file.startswith(
        f"1 {tmp_path}/file: is larger than a file may be here (File too large). Nothing half-written"
    )
    assert made.startswith(f"1 {tmp_path}/made: is larger")
    assert (tmp_path / "file").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_a_failure_and_leaves_nothing(small_disk: Path) -> None:
    write_atomically(small_disk / "file", "old")
    with pytest.raises(Failure, match=r"the disk is full.*without --redo") as told:
        write_atomically(small_disk / "file", "x" * 500_000)
    assert told.value.exit_code == 1
    with pytest.raises(Failure, match="made: the disk is full"), folder_made_whole(small_disk / "made") as folder:
        for number in range(10):
            (folder / str(number)).write_text("x" * 50_000)
    assert (small_disk / "file").read_text() == "old"
    assert {path.name for path in small_disk.iterdir()} == {"file"}
    write_atomically(small_disk / "file", "x" * 200_000)


def test_a_lock_on_a_full_disk_is_a_failure(small_disk: Path) -> None:
    with (small_disk / "all").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(Failure, match="the disk is full"), locked(small_disk):
        raise AssertionError("its holder is nowhere written")


def test_a_folder_without_permission_is_a_failure() -> None:
    code = """
import os, sys
from pathlib import Path
from fox.artifacts import folder_made_whole, locked, write_atomically
from fox.errors import Failure
if os.geteuid() == 0:
    os.setuid(65534)  # root may write everywhere; nobody may not
place = Path(sys.argv[1])
def told(work):
    try:
        work()
    except Failure as error:
        print(error.exit_code, error)
def lock():
    with locked(place / "run"): pass
def make():
    with folder_made_whole(place / "made"): pass
def read():
    with folder_made_whole(Path(sys.argv[2]) / "made"): (place / "secret").read_text()
told(lambda: write_atomically(place / "file", "x"))
told(lock)
told(make)
told(read)
"""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as free:
        folder = Path(name)
        (folder / "secret").touch(0o000)
        folder.chmod(0o555)
        Path(free).chmod(0o777)
        *ours, theirs = said(python(code, folder, free)).splitlines()
        assert ours == [
            f"1 {folder}/{at}: can't be written (Permission denied). Name another folder with --out."
            for at in ("file", "run", "made")
        ]
        assert theirs == f"1 {folder}/secret: can't be used (Permission denied)."
        assert [path.name for path in folder.iterdir()] == ["secret"]
        assert list(Path(free).iterdir()) == []
        folder.chmod(0o755)


def test_a_file_where_a_folder_should_be_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("theirs")
    for path in (tmp_path / "file/inner", tmp_path / "file/inner/deeper"):
        with pytest.raises(Failure, match=r"can't be written .*Name another folder with --out"):
            write_atomically(path, "ours")
        with pytest.raises(Failure, match="can't be written"), folder_made_whole(path):
            pass
        with pytest.raises(Failure, match="can't be written"), locked(path):
            pass
    with pytest.raises(Failure, match="File name too long"):
        write_atomically(tmp_path / ("x" * 250), "ours")
    assert (tmp_path / "file").read_text() == "theirs"


def test_what_is_no_error_of_the_disk_passes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_failures(tmp_path):
        (tmp_path / "nothing").read_text()
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "file", "\udcff")
    assert list(tmp_path.iterdir()) == []


def test_json_is_written_for_people_and_hashed_in_one_spelling(tmp_path: Path) -> None:
    write_json(tmp_path / "new/file.json", {"b": "ä", "a": [1]})
    assert (tmp_path / "new/file.json").read_text(encoding="utf-8") == '{\n  "b": "ä",\n  "a": [\n    1\n  ]\n}\n'
    assert json.loads((tmp_path / "new/file.json").read_bytes()) == {"a": [1], "b": "ä"}
    assert sha256_of_json({"b": "ä", "a": [1]}) == sha256_of_json({"a": [1], "b": "ä"})
    assert sha256_of_json({"a": 1}) != sha256_of_json({"a": 1.0}) != sha256_of_json({"a": "1"})


def test_the_hash_of_a_file_is_what_sha256sum_says(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", os.urandom(1_000_000))
    out = subprocess.run(["sha256sum", tmp_path / "file"], capture_output=True, text=True, check=True).stdout
    assert sha256_of(tmp_path / "file") == out.split()[0]
    parts: list[int] = []
    assert sha256_of(tmp_path / "file", parts.append) == out.split()[0]
    assert sum(parts) == 1_000_000 and len(parts) > 1


def test_a_folder_that_is_let_go_by_an_error_has_nothing_half_made_in_it(tmp_path: Path) -> None:
    def begin() -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / ".partial-data").mkdir()
        (tmp_path / ".partial-data" / "own.train.ds").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        begin()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "lock"]
