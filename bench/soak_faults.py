"""The faults of the soak: each one injected into a run, and seen to have hit."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fox.artifacts import PARTIAL, REPLACED

if TYPE_CHECKING:
    from soak_runs import Trainee

WITHIN_S = 180
GRACE_S = 30
STEPS_BETWEEN = 60
"""A fault comes at most so many steps after the run has gone on."""


class Missed(Exception):  # noqa: N818 (it is nobody's error)
    """The fault came too late, and is injected anew."""


class Lost(Exception):  # noqa: N818 (it is what the soak looks for)
    """The run did not take the fault as it should have."""


@dataclass(frozen=True)
class Fault:
    """One that has hit."""

    kind: str
    told: str
    in_save: bool = False


def kill(trainee: Trainee, draw: random.Random) -> Fault:
    """SIGKILL at any moment: mostly while it trains, now and then while it starts."""
    process = trainee.start()
    starts = draw.random() < 0.2
    if starts:
        time.sleep(draw.uniform(0.2, 5))
    else:
        _until_rows(trainee, process, draw)
        time.sleep(draw.uniform(0, 0.1))
    saving = _end(trainee, process, signal.SIGKILL) and not starts  # what is half-made may be the last fault's still
    return Fault("SIGKILL", f"at row {trainee.num_rows()}{', in a save' if saving else ''}", saving)


def kill_in_save(trainee: Trainee, draw: random.Random) -> Fault:
    """SIGKILL once a checkpoint has begun and `latest` does not name it yet."""
    process = trainee.start()
    _until_rows(trainee, process, draw)
    while not _is_saving(trainee):
        if process.poll() is not None:
            raise Missed("the run ended first")
        time.sleep(0.0005)
    time.sleep(draw.uniform(0, 0.02))
    if not _end(trainee, process, signal.SIGKILL):
        trainee.keep_rows()
        raise Missed("the save was over")
    return Fault("SIGKILL in a save", f"at row {trainee.num_rows()}, left {_half_made(trainee)}", True)


def ask_to_end(trainee: Trainee, draw: random.Random) -> Fault:
    """SIGTERM: it must save and exit with 75, in time."""
    process = trainee.start()
    _until_rows(trainee, process, draw)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    try:
        _, errors = process.communicate(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise Lost(f"had not ended {GRACE_S} s after SIGTERM") from None
    took = time.monotonic() - began
    if process.returncode == 0:
        raise Missed("the run ended first")
    if process.returncode != 75 or "Traceback" in errors:
        raise Lost(f"exit code {process.returncode} after SIGTERM: {errors[-400:]}")
    if trainee.latest() != f"step-{trainee.num_rows():08d}":
        raise Lost(f"{trainee.num_rows()} rows, and the checkpoint that was saved for SIGTERM is {trainee.latest()}")
    return Fault("SIGTERM", f"at row {trainee.num_rows()}, saved and ended with 75 within {took:.2f} s")


def truncate_checkpoint(trainee: Trainee, draw: random.Random) -> Fault:
    """The newest checkpoint loses the end of a file; that is told, and the way back that is told with it works."""
    checkpoints = trainee.newest_checkpoints()
    if len(checkpoints) < 2:
        _train_a_while(trainee, draw)
        checkpoints = trainee.newest_checkpoints()
    newest = trainee.checkpoints / trainee.latest()
    victim = draw.choice(sorted(path for path in newest.iterdir() if path.is_file()))
    size = draw.randrange(victim.stat().st_size)
    os.truncate(victim, size)
    errors = _refused(trainee, "a truncated checkpoint")
    if newest.name not in errors or "Remove that folder" not in errors:
        raise Lost(f"a truncated checkpoint was told as: {errors[-400:]}")
    shutil.rmtree(newest)
    return Fault("truncated checkpoint", f"{newest.name}/{victim.name} cut to {size} bytes, refused, removed")


def damage_shard(trainee: Trainee, draw: random.Random) -> Fault:
    """A bit of a token turns over, and the file's time stays; the checksum tells, and the run goes on when it has been put back."""
    shard = draw.choice(sorted(trainee.folder.glob("data/**/*.ds")))
    place = draw.randrange(shard.stat().st_size)
    _turn_bit(shard, place)
    errors = _refused(trainee, "a damaged shard")
    if shard.name not in errors or "has changed since" not in errors:
        raise Lost(f"a damaged shard was told as: {errors[-400:]}")
    _turn_bit(shard, place)
    return Fault("damaged shard", f"byte {place} of {shard.name}, refused, put back")


def fill_disk(trainee: Trainee, draw: random.Random) -> Fault:
    """The disk is full within the next saves; it says so, leaves nothing half-made, and goes on when there is room."""
    newest = trainee.newest_checkpoints()
    save_bytes = sum(path.stat().st_size for path in newest[0].iterdir()) if newest else 400_000
    room = draw.randrange(8192, save_bytes)
    with _small_disk(trainee) as disk:
        if disk is None:
            return _limit_files(trainee, room)
        run = shutil.copytree(trainee.folder, disk / "run")
        free = os.statvfs(disk)
        with (disk / "filler").open("wb") as filler:
            filler.write(bytes(max(0, free.f_bavail * free.f_bsize - room)))
        process = trainee.start(run)
        _, errors = process.communicate(timeout=WITHIN_S)
        (disk / "filler").unlink()
        shutil.rmtree(trainee.folder)
        shutil.copytree(run, trainee.folder)
    _check_full(trainee, process.returncode, errors, "disk is full")
    return Fault("full disk", f"{room} bytes of room, ended at row {trainee.num_rows()}")


def kill_rank(trainee: Trainee, draw: random.Random) -> Fault:
    """SIGKILL of one rank of two; torchrun starts both again, and the run comes to its end by itself."""
    process = trainee.start()
    _until_rows(trainee, process, draw)
    ranks = _ranks_of(process.pid)
    if len(ranks) != 2:
        process.communicate(timeout=WITHIN_S)
        raise Missed("the run ended first")
    victim = draw.choice(sorted(ranks))
    os.kill(ranks[victim], signal.SIGKILL)
    saving = _is_saving(trainee)
    trainee.keep_rows()
    row = trainee.num_rows()
    _, errors = process.communicate(timeout=WITHIN_S)
    if process.returncode:
        raise Lost(f"torchrun ended with {process.returncode} after rank {victim} was killed: {errors[-600:]}")
    if "traceback : Signal 9" not in errors and "exitcode: -9" not in errors and "Signal 9 (SIGKILL)" not in errors:
        raise Missed("torchrun did not see it")
    return Fault("a rank of two killed", f"rank {victim} at row {row}, restarted, done", saving)


KINDS: dict[str, Callable[[Trainee, random.Random], Fault]] = {
    "SIGKILL in a save": kill_in_save,
    "SIGKILL": kill,
    "SIGTERM": ask_to_end,
    "truncated checkpoint": truncate_checkpoint,
    "damaged shard": damage_shard,
    "full disk": fill_disk,
    "a rank of two killed": kill_rank,
}


def _until_rows(trainee: Trainee, process: subprocess.Popen[str], draw: random.Random) -> None:
    """Wait until it trains and has come some steps further than it was."""
    before, wanted = trainee.num_rows(), draw.randint(1, STEPS_BETWEEN)
    moved = False
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        rows = trainee.num_rows()
        # Rows after the checkpoint go as the run goes on: from then on it trains.
        before, moved = (min(before, rows), moved or rows != before)
        if moved and rows >= before + wanted:
            return
        if process.poll() is not None:
            _, errors = process.communicate()
            if process.returncode:
                raise Lost(f"could not go on (exit code {process.returncode}): {errors[-600:]}")
            raise Missed("the run ended first")
        time.sleep(0.002)
    process.kill()
    raise Lost(f"came no {wanted} steps further within {WITHIN_S} s")


def _end(trainee: Trainee, process: subprocess.Popen[str], number: int) -> bool:
    """Send the signal; whether it hit inside of a save."""
    process.send_signal(number)
    process.communicate(timeout=WITHIN_S)
    if process.returncode != -number:
        raise Missed("the run ended first")
    return _is_saving(trainee)


def _is_saving(trainee: Trainee) -> bool:
    """Whether a checkpoint is half-made, or whole and not yet the latest."""
    newest = trainee.newest_checkpoints()
    return bool(_half_made(trainee)) or bool(newest and newest[0].name > trainee.latest())


def _half_made(trainee: Trainee) -> str:
    try:
        names = [entry.name for entry in os.scandir(trainee.checkpoints)]
    except FileNotFoundError:
        return ""
    return ", ".join(name for name in names if name.startswith((PARTIAL, REPLACED)))


def _train_a_while(trainee: Trainee, draw: random.Random) -> None:
    """On to the second checkpoint and some steps, and ended by SIGTERM."""
    process = trainee.start()
    while len(trainee.newest_checkpoints()) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=GRACE_S)
    if process.returncode != 75:
        raise Missed("the run ended first" if process.returncode == 0 else f"exit code {process.returncode}")
    trainee.keep_rows()


def _refused(trainee: Trainee, what: str) -> str:
    process = trainee.start()
    _, errors = process.communicate(timeout=WITHIN_S)
    if process.returncode != 1 or "Traceback" in errors:
        raise Lost(f"{what}: exit code {process.returncode}, not 1: {errors[-600:]}")
    return " ".join(errors.split())


def _turn_bit(path: Path, place: int) -> None:
    """As a disk does that loses it: the file's time stays."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@contextmanager
def _small_disk(trainee: Trainee) -> Iterator[Path | None]:
    """A disk of 24 MB in memory, or None where none may be mounted."""
    disk = trainee.world / "disk"
    disk.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True)
    try:
        yield None if mounted.returncode else disk
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", disk], check=True)


def _limit_files(trainee: Trainee, room: int) -> Fault:
    """Where no disk may be mounted: no file may be larger than `room`, and each save has one that is."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    process = trainee.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard)))
    _, errors = process.communicate(timeout=WITHIN_S)
    _check_full(trainee, process.returncode, errors, "larger than a file may be")
    return Fault("full disk", f"files of at most {room} bytes, ended at row {trainee.num_rows()}")


def _check_full(trainee: Trainee, code: int, errors: str, told: str) -> None:
    if code == 0:
        raise Missed("there was room enough")
    if code != 1 or told not in " ".join(errors.split()):
        raise Lost(f"a full disk: exit code {code}: {errors[-600:]}")
    if _half_made(trainee):
        raise Lost(f"a full disk left {_half_made(trainee)}")


def _ranks_of(torchrun: int) -> dict[str, int]:
    """The processes that torchrun has started, by rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == torchrun:
                variables = dict(
                    pair.partition("=")[::2] for pair in (folder / "environ").read_text().split("\0") if "=" in pair
                )
                if "LOCAL_RANK" in variables:
                    found[variables["LOCAL_RANK"]] = int(folder.name)
        except (OSError, ValueError):  # it has ended since
            continue
    return found
