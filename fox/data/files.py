"""Which files a source names: one, those of a folder or of a store elsewhere, or those that an installed package carries."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from glob import glob
from importlib import metadata
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fox.artifacts import sha256_of
from fox.data.quarantine import Tally, visible
from fox.data.remote import Remote, is_remote, listed
from fox.errors import UserError
from fox.recipe.schema import Source

PAGES = (".txt", ".md", ".html", ".htm")
ROWS = (".jsonl", ".json")
ARCHIVES = (".warc", ".wet")
COMPRESSED = (".gz", ".zst")
READABLE = (
    *(f"{suffix}{compression}" for suffix in (*PAGES, *ROWS, *ARCHIVES) for compression in ("", *COMPRESSED)),
    ".parquet",
)


class SourceFile(NamedTuple):
    """A file to read."""

    path: Path
    label: str
    """Its name below the source's path: the same on every machine, and fit to be shown."""
    suffix: str
    """One of READABLE."""
    remote: Remote | None = None
    """Where it is, if that is not on this machine: `path` is nothing then, until it was fetched."""

    def num_bytes(self) -> int:
        """Its size; 0 where that can't be told, as its reader will find, too."""
        if self.remote:
            return self.remote.num_bytes
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def as_json(self) -> dict[str, Any]:
        return {**self._asdict(), "path": str(self.path), "remote": self.remote and self.remote._asdict()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SourceFile:
        remote = values["remote"]
        return cls(**{**values, "path": Path(values["path"]), "remote": Remote(**remote) if remote else None})

    @property
    def format(self) -> str:
        """The suffix without that of a compression."""
        return self.suffix.removesuffix(".gz").removesuffix(".zst")


def files_of(name: str, source: Source, tally: Tally) -> list[SourceFile]:
    """A source's readable files, sorted by name; `tally` counts the others. Raises UserError where there is none."""
    named: Iterable[Named]
    if is_remote(source.path):
        named = ((found.label, found, "") for found in listed(name, source))
    else:
        named = _carried_by(name, source) if source.path.startswith("pip:") else _on_disk(name, source, tally)
    pattern = source.files.split("/")
    files, taken = [], Counter[str]()
    for label, path, root in sorted(named, key=itemgetter(0)):
        if not _matches(label.split("/"), pattern):
            continue
        shown = visible(label)
        taken[shown] += 1
        label = shown if taken[shown] == 1 else f"{shown} ({taken[shown]})"  # names that differ in what can't be shown
        suffix = suffix_of(shown)
        if any(part.startswith(".") for part in label.split("/")):
            tally.skip(label, "hidden")
        elif suffix not in READABLE:
            tally.skip(label, suffix or "no suffix")
        elif isinstance(path, Remote):
            files.append(SourceFile(Path(), label, suffix, path))
        elif not Path(os.path.realpath(path)).is_relative_to(root):
            tally.skip(label, "link out of the folder")
        elif os.path.lexists(path) and not path.is_file():
            tally.skip(label, "not a regular file")  # opening a pipe would wait for ever
        else:
            files.append(SourceFile(path, label, suffix))
    if not files:
        skipped = ", ".join(f"{count} x {reason}" for reason, count in tally.skipped.most_common(5))
        raise UserError(
            f"source.{name}.path",
            source.path,
            problem=f"has no file to read that matches files = {source.files!r}"
            + (f" (passed over: {skipped})" if skipped else ""),
            mend=f"Fox reads {', '.join((*PAGES, *ROWS, *ARCHIVES))} (also with {' or '.join(COMPRESSED)}) and .parquet. Name another path, or other files: -o source.{name}.files='**/*'",
        )
    return files


def files_named(key: str, patterns: Sequence[str], formats: Collection[str], mend: str) -> list[SourceFile]:
    """The files that a list of globs in a recipe names, each once. Raises UserError where one names none, or one that has none of the formats."""
    files: dict[str, SourceFile] = {}
    for pattern in patterns:
        try:
            found = sorted(glob(str(Path(pattern).expanduser()), recursive=True))  # noqa: PTH207  # Path.glob knows no absolute pattern
        except RuntimeError as error:  # ~ of an unknown user
            raise UserError(key, pattern, problem=f"can't be a path: {error}", mend=mend) from None
        if not found:
            raise UserError(key, pattern, problem="names no file", mend=mend)
        for name in found:
            path = Path(name)
            file = SourceFile(path, visible("/".join(path.parts[-2:])), suffix_of(path.name))
            if file.format not in formats or not path.is_file():
                problem = f"names {visible(name)}, which is no file of {', '.join(formats)}"
                raise UserError(key, pattern, problem=problem, mend=mend)
            files[name] = file
    return list(files.values())


def hashes_named(key: str, files: Sequence[SourceFile], mend: str) -> dict[str, str]:
    """The SHA-256 of each file, by its place in the list and its label. Raises UserError where one can't be read."""
    try:
        return {f"{number} {file.label}": sha256_of(file.path) for number, file in enumerate(files, 1)}
    except OSError as error:
        raise UserError(key, str(error.filename), problem=f"can't be read: {error.strerror}", mend=mend) from None


Named = tuple[str, Path | Remote, str]
"""Label, where it is, and the real path of the folder that it may not lead out of."""


def _on_disk(name: str, source: Source, tally: Tally) -> Iterator[Named]:
    path, is_folder = _existing(name, source)
    root = os.path.realpath(path if is_folder else path.resolve().parent)
    if not is_folder:
        yield path.name, path.resolve(), root
        return

    def refuse(error: OSError) -> None:
        if Path(error.filename) == path:
            raise _unreadable(name, source, error)
        tally.files += 1
        label = visible(Path(error.filename).relative_to(path).as_posix())
        tally.refuse(label, f"folder can't be listed ({error.strerror})", whole_file=True)

    for folder, subfolders, files in os.walk(path, onerror=refuse):
        below = PurePosixPath(Path(folder).relative_to(path).as_posix())
        for subfolder in list(subfolders):
            is_link = Path(folder, subfolder).is_symlink()
            if is_link or subfolder.startswith("."):
                subfolders.remove(subfolder)
                tally.skip(visible(str(below / subfolder)), "link to a folder" if is_link else "hidden")
        for file in files:
            yield str(below / file), Path(folder, file), root


def _existing(name: str, source: Source) -> tuple[Path, bool]:
    key, missing = f"source.{name}.path", "Name a file, a folder, or pip:NAME for an installed package."
    if not source.path.strip():
        raise UserError(key, source.path, problem="is empty", mend=missing)
    try:
        path = Path(source.path).expanduser()
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(key, source.path, problem="does not exist", mend=missing) from None
    except OSError as error:
        raise _unreadable(name, source, error) from None
    except (ValueError, RuntimeError) as error:  # a NUL in the name; ~ of an unknown user
        raise UserError(key, source.path, problem=f"can't be a path: {error}", mend=missing) from None
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise UserError(key, source.path, problem="is neither a file nor a folder", mend=missing)
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        raise _unreadable(name, source, PermissionError(13, "Permission denied"))
    return path, stat.S_ISDIR(mode)


def _unreadable(name: str, source: Source, error: OSError) -> UserError:
    return UserError(
        f"source.{name}.path",
        source.path,
        problem=f"can't be read: {error.strerror}",
        mend="Give yourself leave to read it (chmod u+r; for a folder, u+rx), or name another.",
    )


def _carried_by(name: str, source: Source) -> Iterator[Named]:
    """The files in a distribution's own list. The package is never imported: none of its code is run."""
    key, package = f"source.{name}.path", source.path.removeprefix("pip:")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", package):
        raise UserError(
            key,
            source.path,
            problem="names no package",
            mend=f"Write pip:NAME, and which files in source.{name}.files.",
        )
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise UserError(
            key, source.path, problem="is not installed for this Python", mend=f"pip install {package}"
        ) from None
    root = os.path.realpath(str(distribution.locate_file("")))
    for file in distribution.files or ():
        own = file.parts[0].endswith(
            (".dist-info", ".egg-info")
        )  # the installer's notes: not what the package is about
        if not own and ".." not in file.parts and not file.is_absolute():
            yield file.as_posix(), Path(str(distribution.locate_file(file))), root


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """As a shell's globstar has it: `**` is any number of folders, `*` stays within one."""
    if not pattern or not parts:
        return not parts and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def suffix_of(label: str) -> str:
    """What a file's name ends in, that of a compression included, in lower case."""
    suffixes = PurePosixPath(label.lower()).suffixes
    return "".join(suffixes[-2:] if suffixes and suffixes[-1] in COMPRESSED else suffixes[-1:])
