"""How Fox writes what must not be lost: whole or not at all, with a hash, and by one process at a time.

Every file appears under its name only once it is complete and on the disk (write beside, fsync, rename, fsync the
folder). What a killed process leaves behind has `PARTIAL` or `REPLACED` in its name, and the next holder of the lock
sweeps it away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from fox.errors import Failure

PARTIAL = ".partial-"  # not whole yet
REPLACED = ".replaced-"  # whole, and about to be replaced
WORK = ".work"
"""A folder within what a step makes: what it needs until its manifest is written, and what lets it go on where it was stopped."""

_READ_BYTES = 1 << 18  # that are read and hashed at a time
_LOOKS, _LOOK_S = (
    10,
    0.03,
)  # `fox runs` holds a run's lock for less than a millisecond, where its process is not stopped there


def write_atomically(path: Path, content: str | bytes) -> None:
    """Put `content` at `path`, whole or not at all. Raises Failure where the disk is full or can't be written."""
    with written_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which is at `path` only when the block ends well. Raises Failure where the disk is full or can't be written."""
    partial = path.with_name(f"{PARTIAL}{path.name}")
    with disk_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _remove(partial)  # a link, too: we never write through one
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _fsync(path.parent)


@contextlib.contextmanager
def put_back_on(error: type[Exception], path: Path) -> Iterator[None]:
    """Where the block raises such an error, the file at `path` is as it was before; one that was not there stays."""
    before = path.read_bytes() if path.is_file() else None
    try:
        yield
    except error:
        if before is not None:
            write_atomically(path, before)
        raise


def write_json(path: Path, content: Any) -> None:
    """Put `content` at `path` as JSON that people can read, whole or not at all."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def folder_made_whole(path: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `path` (and of all that was there) only when the block ends well.

    Killed between its two renames, it leaves nothing at `path` and the old folder beside it: the next call for `path`,
    or `sweep_partials`, puts that back first.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")
    replaced = path.with_name(f"{REPLACED}{path.name}")
    with disk_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _put_back(replaced)
        _remove(partial)
        try:
            partial.mkdir()  # within, since SIGTERM may come right behind it
            yield partial
            for folder, _, names in os.walk(partial):
                for name in names:
                    if (Path(folder) / name).is_file():
                        _fsync(Path(folder) / name)
                _fsync(Path(folder))
            if os.path.lexists(path):
                path.rename(replaced)
            partial.rename(path)
        except BaseException:
            _put_back(replaced)
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _fsync(path.parent)
        with contextlib.suppress(OSError):  # the new one is in its place, and the next call tries again
            _remove(replaced)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Be the only process that writes `path`, a file or folder. Raises Failure where another process is at it."""
    lock = path.with_name(f"{PARTIAL}{path.name}.lock")
    busy = Failure(f"{path}: another process is writing it. Wait for it, or name another.")
    with contextlib.ExitStack() as held:
        with disk_failures(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError as error:  # below /proc, say, where nobody makes files
                raise Failure(f"{path}: can't be made ({error.strerror}). Name another with --out.") from None
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
            # Who held it may have removed it since we opened it: ours would then be a lock that nobody else can see.
            if not os.fstat(descriptor).st_nlink:
                raise busy
        held.callback(lock.unlink, missing_ok=True)
        yield


@contextlib.contextmanager
def file_made_whole(path: Path) -> Iterator[Path]:
    """A new file to write, which takes its name only when the block ends well. The block may open it by its name as it likes.

    Raises Failure where another process is writing the same file.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")
    with alone(path), disk_failures(path):
        _remove(partial)
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            try:
                yield partial
                os.fsync(descriptor)
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        finally:
            os.close(descriptor)
        _fsync(path.parent)


def sweep_partials(folder: Path) -> None:
    """Undo what killed processes left half-done below `folder`, as far as it can be. Only for the holder of its lock.

    Links are never followed, so nothing outside of `folder` is touched.
    """
    folders = [folder]
    while folders:
        found: list[Path] = []
        with contextlib.suppress(OSError):
            found = list(folders.pop().iterdir())
        for path in found:
            with contextlib.suppress(OSError):
                if path.name.startswith(REPLACED):
                    _put_back(path)
                elif path.name.startswith(PARTIAL):
                    _remove(path)
                elif path.is_dir() and not path.is_symlink():
                    folders.append(path)


def remove_at_once(paths: Iterable[Path]) -> None:
    """Be rid of files and folders. All are gone from their names before the first is emptied, so nobody takes up half of one.

    Raises Failure where one can't be removed; what has lost its name is swept away by the next holder of the lock.
    """
    aside = []
    for path in paths:
        partial = path.with_name(f"{PARTIAL}{path.name}")
        with _failures_to_remove(path):
            _remove(partial)
            if os.path.lexists(path):
                path.rename(partial)
                _fsync(path.parent)
                aside.append(partial)
    for partial in aside:
        with _failures_to_remove(partial):
            _remove(partial)


@contextlib.contextmanager
def _failures_to_remove(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Failure(f"{path}: can't be removed ({error.strerror}). Remove it yourself, then run it again.") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the lock ends with its life. Raises Failure where another process holds it."""
    with contextlib.ExitStack() as held:
        with disk_failures(folder):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except FileNotFoundError as error:  # below /proc, say, where nobody makes folders
                raise Failure(f"{folder}: can't be made ({error.strerror}). Name another folder with --out.") from None
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            held.callback(os.close, lock)
            try:
                _take(lock)
            except BlockingIOError:
                holder = os.read(lock, 100).decode(errors="replace").strip() or "unknown"
                raise Failure(
                    f"{folder}: another fox process (process {holder}) is working in this run. "
                    "Wait for it, stop it, or name another folder with --out."
                ) from None
            os.truncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())
            sweep_partials(folder)
        try:
            yield
        except BaseException:
            sweep_partials(folder)  # a signal may come where no block yet knows of what was just begun
            raise


def _take(lock: int) -> None:
    """Take a lock at once, or as soon as those who only look whether it is held have let go. Raises BlockingIOError where it is."""
    for _ in range(_LOOKS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(_LOOK_S)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def disk_failures(path: Path) -> Iterator[None]:
    """Turn the disk's own errors into a Failure that says what to do; all else passes."""
    try:
        yield
    except OSError as error:
        told = _told(path, error)
        if told is None:
            raise
        raise Failure(told) from error


def stamp_of(path: Path) -> dict[str, int]:
    """A file's size and time. While both are as they were, its content counts as unchanged, and is not hashed again."""
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def sha256_of(path: Path, on_read: Callable[[int], None] = lambda size: None) -> str:
    """The SHA-256 of a file, in hexadecimal. `on_read` is told of each part how many bytes it has, for files that take minutes."""
    digest, part = hashlib.sha256(), memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(part):
            digest.update(part[:size])
            on_read(size)
    return digest.hexdigest()


def sha256_of_json(content: Any) -> str:
    """The SHA-256 of a JSON value in its one canonical spelling."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _told(path: Path, error: OSError) -> str | None:
    """What to tell of an error of the disk, met while writing `path`; nothing where it is none."""
    where = path
    if isinstance(error.filename, str):
        met, ours = Path(error.filename).absolute(), path.absolute()
        if not met.is_relative_to(ours.parent) and not ours.is_relative_to(met):
            where = met  # something else was read or written on the way, and the reader should know what
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return (
                f"{where}: the disk is full ({error.strerror}). Nothing half-written was kept: "
                "free some space and run the same command again, without --redo: it goes on from the last checkpoint."
            )
        case errno.EFBIG:
            return (
                f"{where}: is larger than a file may be here ({error.strerror}). Nothing half-written was kept: "
                "raise the limit (`ulimit -f unlimited`), or name a folder on another disk with --out."
            )
        case errno.EACCES | errno.EROFS | errno.EPERM if where != path:
            return f"{where}: can't be used ({error.strerror})."
        case errno.EACCES | errno.EROFS | errno.EPERM | errno.ENOTDIR | errno.EEXIST | errno.ELOOP | errno.ENAMETOOLONG:
            return f"{where}: can't be written ({error.strerror}). Name another folder with --out."
        case errno.EIO:
            return f"{where}: the disk failed ({error.strerror}). Look after the disk, then run the same command again, without --redo."
        case errno.ENOLCK | errno.EOPNOTSUPP:
            return f"{where}: this disk has no locks ({error.strerror}). Name a folder on another one with --out."
    return None


def _put_back(replaced: Path) -> None:
    """Give a folder that was to be replaced its name again where nothing took it; or be rid of it."""
    name = replaced.name.removeprefix(REPLACED)
    whole = replaced.parent / name
    if name in ("", ".", "..") or os.path.lexists(whole):
        _remove(replaced)
    elif os.path.lexists(replaced):
        replaced.rename(whole)


def _remove(path: Path) -> None:
    """Be rid of a file, of a link (never of what it leads to), or of a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(RecursionError):  # hundreds of folders deep: nothing that Fox made
            shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
