"""Weights in safetensors files: one, or several with an index, read and written a few rows at a time.

The safetensors library checks what it opens (lengths, overlaps, types) and runs nothing that is in a file. But it reads for torch
by mapping a whole file as memory that may be written to, which fails for one larger than the machine's, and it writes only what
is all in memory. So tensors are read and written here: eight bytes of length, a JSON header, then the data.

R rows, C columns
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fox.artifacts import disk_failures, write_json
from fox.errors import Failure, UserError, shorten
from fox.formats.gguf.block_types import BlockType
from fox.formats.untrusted import open_untrusted, read_untrusted_json

if TYPE_CHECKING:
    from torch import Tensor

SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# More than any model of a supported kind has (Llama 3.1 405B: 1,138 tensors in 191 files, whose headers and index are 0.1 MB
# each), and little enough to be read within a second. The library itself takes a header of 100 MB, and over a GB for it.
_LARGEST_INDEX = 4 << 20
_LARGEST_HEADERS = 4 << 20
_MOST_FILES = 1024
_MOST_TENSORS = 1 << 14


class SafetensorsFiles:
    """The weights of a model directory. Raises UserError where they are missing, damaged, or no floating-point numbers.

    The index may name files of this folder alone. They may be links that lead elsewhere, as in the Hugging Face hub's cache:
    whoever can put a link there could put the file there, and nothing but weights is ever read from one.
    """

    def __init__(self, folder: Path) -> None:
        self._file_of: dict[str, Path] = {}
        self._start_of: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.stored_types: dict[str, str] = {}
        header_bytes = 0
        for path, names in _files(folder).items():
            own_header_bytes = _header_bytes(path)
            header_bytes += own_header_bytes
            if header_bytes > _LARGEST_HEADERS:
                raise _damaged(path, f"the headers up to it are {header_bytes:,} bytes, more than those of any model")
            with _opened(path, "np") as file:
                if len(self.shapes) + len(file.keys()) > _MOST_TENSORS:
                    raise _damaged(path, f"it would be more than {_MOST_TENSORS:,} tensors with those in it")
                header = _header(path, own_header_bytes)
                for name in file.keys():  # noqa: SIM118 (no dict)
                    self._add(path, name, file.get_slice(name))
                    self._start_of[name] = 8 + own_header_bytes + header[name]["data_offsets"][0]
                lost = sorted((names or set()) - set(file.keys()))
                if lost:
                    raise UserError(
                        "model", str(path), problem=f"lacks {shown(lost[0])}, which {_INDEX} says it holds",
                        mend="Copy or make it again.",
                    )  # fmt: skip

    def read_rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` of a tensor as it is stored (R, C). A vector is one row."""
        import torch

        shape = self.shapes[name]
        num_rows, *row_shape = shape if len(shape) > 1 else (1, *shape)
        start, stop, _ = slice(start, stop).indices(num_rows)
        dtype: torch.dtype = getattr(torch, _FLOATS[self.stored_types[name]])
        row_bytes = math.prod(row_shape) * dtype.itemsize
        raw = _mapped(self._file_of[name], self._start_of[name] + start * row_bytes, (stop - start) * row_bytes)
        if (
            raw.storage_offset() % dtype.itemsize
        ):  # a header may be of any length, and then no number lies at a multiple of its own
            raw = raw.clone()
        return raw.view(dtype).view(stop - start, *row_shape)

    def _add(self, path: Path, name: str, tensor: Any) -> None:
        if name in self.shapes:
            raise UserError(
                "model", str(path), problem=f"holds {shown(name)}, and so does {self._file_of[name].name}",
                mend="Remove the file that is not this model's.",
            )  # fmt: skip
        dtype = tensor.get_dtype()
        if dtype not in _FLOATS:
            raise UserError(
                "model", str(path), problem=f"holds {shown(name)} as {dtype}, which is not supported",
                mend=f"{', '.join(_FLOATS)} are.",
            )  # fmt: skip
        self._file_of[name] = path
        self.shapes[name] = tuple(tensor.get_shape())
        self.stored_types[name] = dtype


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor's name, shape and data: its rows in order, as bytes (rows, bytes of a row)."""

    name: str
    shape: tuple[int, ...]
    rows: Iterable[Tensor]


def stream_safetensors(folder: Path, tensors: Sequence[TensorToWrite], kind: BlockType, shard_bytes: int) -> list[Path]:
    """Write model.safetensors into `folder`, or several files of at most `shard_bytes` (or one tensor) and their index.

    All are of one type without blocks, F32, F16 or BF16, which has the same name and bytes here as in GGUF.

    Raises Failure where the disk is full. The caller makes the folder whole.
    """
    shards = _cut(tensors, kind.block_bytes, shard_bytes)
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _stream(folder / name, shard, kind)
    if len(shards) > 1:
        total = sum(math.prod(tensor.shape) for tensor in tensors) * kind.block_bytes
        placed = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
    return [folder / name for name in names]


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file of what is in memory. Raises Failure where the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with disk_failures(path):
        try:
            save_file(
                {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
                path,
                metadata={"format": "pt"},
            )
            path.chmod(path.parent.stat().st_mode & 0o666)  # the library lets its owner alone read it
        except SafetensorError as error:  # the library wraps the disk's errors in its own
            path.unlink(missing_ok=True)
            raise Failure(
                f"{path}: could not be written: {error}. Free some space and run the same command again, without --redo."
            ) from error


def read_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which must be exactly those named in `shapes`, of those shapes."""
    with _opened(path, "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)
        check_shapes(path, found, shapes, "what is to be read")
        return {name: file.get_tensor(name) for name in shapes}


def check_shapes(
    path: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], by: str
) -> None:
    """Raise UserError where a file does not hold exactly the tensors that are wanted; `by` says what wants them."""
    wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if wrong:
        name = wrong[0]
        raise UserError(
            "model",
            str(path),
            problem=f"{shown(name)} is {_shape(found.get(name), 'missing')} and should be {_shape(wanted.get(name), 'absent')} "
            f"({len(wrong)} tensors do not fit {by})",
        )


def shown(name: str) -> str:
    """A tensor's name for a message: as it is, or escaped and cut where a hostile file chose one to confuse a terminal."""
    return name if name.isprintable() and len(name) <= 100 else shorten(name)


def _shape(shape: tuple[int, ...] | None, without: str) -> str:
    return without if shape is None else shorten(shape)


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """The weight files of a folder, with the names that its index says are in each (None where there is no index)."""
    index = folder / _INDEX
    if (folder / SINGLE).exists() or not index.exists():
        return {folder / SINGLE: None}
    try:
        placed = read_untrusted_json(index, _LARGEST_INDEX)["weight_map"]
        names_in: dict[str, set[str]] = {}
        for name, file in placed.items():
            names_in.setdefault(file, set()).add(name)
        if not 1 <= len(names_in) <= _MOST_FILES:
            raise ValueError(f"it names {len(names_in):,} files (1 to {_MOST_FILES:,} are read)")
        for file in names_in:
            if file != Path(file).name or not file.endswith(".safetensors"):
                raise ValueError(f"{shorten(file)} is no safetensors file in the same folder")
        return {folder / file: names for file, names in names_in.items()}
    except KeyError:
        raise _unusable(index, "it has no weight_map") from None
    except (TypeError, AttributeError):
        raise _unusable(index, "it has no weight_map of tensors' names to files' names") from None
    except (OSError, ValueError) as error:
        raise _unusable(index, error) from None


def _unusable(index: Path, reason: object) -> UserError:
    return UserError("model", str(index), problem=f"can't be read: {reason}", mend="Copy or make it again.")


def _damaged(path: Path, reason: object) -> UserError:
    return UserError("model", str(path), problem=f"is damaged: {reason}", mend="Copy or make it again.")


def _header_bytes(path: Path) -> int:
    """How long a file says that its header is. Raises UserError where it can't be opened."""
    try:
        with open_untrusted(path) as file:
            return int.from_bytes(file.read(8), "little")
    except FileNotFoundError:
        raise UserError("model", str(path), problem="there is no such file", mend=_instead(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _damaged(path, error) from None


def _header(path: Path, num_bytes: int) -> dict[str, Any]:
    """What a file that the library has checked says of its tensors: the library doesn't tell where they are."""
    try:
        with open_untrusted(path) as file:
            file.seek(8)
            header: dict[str, Any] = json.loads(file.read(num_bytes))
            return header
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _mapped(path: Path, start: int, num_bytes: int) -> Tensor:
    """Some bytes of a file (uint8), which are read once they are used. Nothing that is done to them reaches the file."""
    import torch

    if not num_bytes:  # which mmap takes for all
        return torch.empty(0, dtype=torch.uint8)
    before = start % mmap.ALLOCATIONGRANULARITY
    try:
        with open_untrusted(path) as file:
            pages = mmap.mmap(file.fileno(), before + num_bytes, access=mmap.ACCESS_COPY, offset=start - before)
    except (OSError, ValueError) as error:  # ValueError: it has become shorter
        raise UserError("model", str(path), problem=f"can't be read: {error}") from None
    return torch.frombuffer(pages, dtype=torch.uint8)[before:]


@contextlib.contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if _header_bytes(path) > _LARGEST_HEADERS:
        raise _damaged(path, "its header is longer than that of any model")
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None


def _instead(path: Path) -> str:
    """What to do where a model directory has no safetensors file."""
    pickles = sorted([*path.parent.glob("*.bin"), *path.parent.glob("*.pt"), *path.parent.glob("*.pth")])
    if not pickles:
        return ""
    return (
        f"{pickles[0].name} is a pickle, which can run anything its maker wanted, so it is never opened: "
        "ask its maker for safetensors, or convert it where you trust it."
    )


def _cut(tensors: Sequence[TensorToWrite], item_bytes: int, shard_bytes: int) -> list[list[TensorToWrite]]:
    shards: list[list[TensorToWrite]] = [[]]
    filled = 0
    for tensor in tensors:
        size = math.prod(tensor.shape) * item_bytes
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    return shards


def _stream(path: Path, tensors: Sequence[TensorToWrite], kind: BlockType) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        size = math.prod(tensor.shape) * kind.block_bytes
        header[tensor.name] = {"dtype": kind.name, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with disk_failures(path), path.open("xb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            for rows in tensor.rows:
                file.write(rows.contiguous().numpy().data)
        assert file.tell() == 8 + len(encoded) + at
