"""Read a GGUF file: its metadata, and its tensors a few rows at a time.

The gguf library parses such a file too, but trusts the counts and offsets in it (some 43 bytes keep it busy for ever), so every
count is held against the file's size here before anything is made of it.
Layout: ggml's docs/gguf.md, versions 2 and 3, little-endian.

R rows, C columns
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fox.errors import UserError, shorten
from fox.formats.gguf.block_types import UNSUPPORTED, BlockType, type_of_number
from fox.formats.untrusted import open_untrusted

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32

# More than any model has (the largest vocabulary and its merges: 0.7 million texts, in a header of 20 MB), and little enough to
# be read within a second. The file's size alone bounds nothing: one with a hole in it may say that it has a terabyte.
_LARGEST_HEADER = 64 << 20
_MOST_ENTRIES = 1 << 16
_MOST_TENSORS = 1 << 14
_MOST_STRINGS = 1 << 20
_LONGEST_KEY = (1 << 16) - 1  # as ggml has it
_LONGEST_NAME = 256
_MOST_DIMENSIONS = 4

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the file. `shape` is torch's, slowest axis first."""

    kind: BlockType
    shape: tuple[int, ...]
    start: int
    num_bytes: int

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1])


class GgufFile:
    """A GGUF file, checked. Raises UserError where it is none, is damaged, or holds a kind of tensor that Fox can't read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_untrusted(path) as file:
                size = os.fstat(file.fileno()).st_size
                if file.read(4) != MAGIC:
                    raise UserError("model", str(path), problem="is no GGUF file (it does not begin with GGUF)")
                with mmap.mmap(file.fileno(), min(size, _LARGEST_HEADER), access=mmap.ACCESS_READ) as content:
                    header = _Header(content, size, str(path))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise UserError("model", str(path), problem=f"can't be read: {error}") from None
        self.metadata = Metadata(header.metadata, str(path))
        self.tensors = header.tensors

    def read_rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` of a tensor as float32 (R, C). A vector is one row."""
        import torch

        from fox.formats.gguf.dequantize import dequantize

        tensor = self.tensors[name]
        stop = tensor.num_rows if stop is None else stop
        row_bytes = tensor.kind.row_bytes(tensor.shape[-1])
        raw = bytearray((stop - start) * row_bytes)
        with self.path.open("rb", buffering=0) as file:
            file.seek(tensor.start + start * row_bytes)
            filled, view = 0, memoryview(raw)
            while filled < len(raw):
                count = file.readinto(view[filled:])
                if not count:
                    raise UserError("model", str(self.path), problem=f"has become shorter while {name} was read")
                filled += count
        return dequantize(torch.frombuffer(raw, dtype=torch.uint8).view(stop - start, row_bytes), tensor.kind)


class Metadata:
    """What a GGUF file says of itself, each value of the kind that is asked for. Raises UserError for any other."""

    def __init__(self, values: dict[str, Any], place: str) -> None:
        self._values, self.place = values, place

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def text(self, key: str, default: str | None = None) -> str:
        return self._get(key, default, str, "a text")

    def whole(self, key: str, default: int | None = None) -> int:
        return self._get(key, default, int, "a whole number")

    def number(self, key: str, default: float | None = None) -> float:
        return float(self._get(key, default, (int, float), "a number"))

    def yes_or_no(self, key: str, default: bool | None = None) -> bool:
        return self._get(key, default, bool, "true or false")

    def scalar(self, key: str) -> Any:
        """A value that is no list, whatever its kind."""
        return self._get(key, None, (str, int, float, bool), "a single value")

    def texts(self, key: str, default: Sequence[str] | None = None) -> list[str]:
        """An array of texts."""
        value = self._get(key, default, list, "a list of texts")
        return list(value)

    def numbers(self, key: str, default: Sequence[float] | None = None) -> np.ndarray:
        """An array of numbers."""
        value = self._get(key, None if default is None else np.array(default), np.ndarray, "a list of numbers")
        return value

    def _get(self, key: str, default: Any, kind: Any, what: str) -> Any:
        value = self._values.get(key, default)
        if value is None:
            raise UserError(key, place=self.place, problem="is missing")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind in (int, (int, float))):
            told = value if isinstance(value, str | int | float) else "a list"
            raise UserError(key, told, place=self.place, problem=f"is not {what}")
        return value


class _Header:
    """All that comes before the tensors' data, read once from front to back."""

    def __init__(self, content: mmap.mmap, size: int, place: str) -> None:
        self._content, self._end, self._size, self._place = content, len(content), size, place
        self._at = len(MAGIC)
        self._strings = 0
        (version,) = self._unpack("<I")
        if version not in (2, 3):
            big_endian = version in (2 << 24, 3 << 24)
            raise self._wrong(
                "is big-endian, which is not supported"
                if big_endian
                else f"is of GGUF version {version}; 2 and 3 are read"
            )
        num_tensors, num_entries = self._unpack("<QQ")
        self._check_count(num_tensors, _MOST_TENSORS, "tensors", least_bytes=32)
        self._check_count(num_entries, _MOST_ENTRIES, "entries", least_bytes=13)
        self.metadata = self._entries(num_entries)
        self.tensors = self._tensors(num_tensors)

    def _entries(self, count: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for _ in range(count):
            key = self._string(_LONGEST_KEY)
            if key in entries:
                raise self._wrong(f"has {shorten(key)} twice")
            (kind,) = self._unpack("<I")
            entries[key] = self._value(kind, key)
        return entries

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _BOOL:
            return self._unpack("<B") != (0,)
        if kind == _ARRAY:
            return self._array(key)
        return self._numbers(kind, 1, key)[0].item()

    def _array(self, key: str) -> Any:
        (kind,) = self._unpack("<I")
        (count,) = self._unpack("<Q")
        if kind == _STRING:
            self._strings += count
            if self._strings > _MOST_STRINGS:
                raise self._wrong(f"says that {shorten(key)} has {count:,} texts, more than any vocabulary")
            return [self._string() for _ in range(count)]
        return self._numbers(_NUMBERS_OF_BOOL if kind == _BOOL else kind, count, key)

    def _numbers(self, kind: int, count: int, key: str) -> np.ndarray:
        if kind not in _NUMBERS:
            raise self._wrong(f"has a value of unknown type {kind} for {shorten(key)}")
        dtype = np.dtype(_NUMBERS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize), dtype=dtype)

    def _tensors(self, count: int) -> dict[str, StoredTensor]:
        found: dict[str, tuple[BlockType, tuple[int, ...], int]] = {}
        for _ in range(count):
            name = self._string(_LONGEST_NAME)
            if name in found:
                raise self._wrong(f"has the tensor {name!r} twice")
            (num_dimensions,) = self._unpack("<I")
            if not 1 <= num_dimensions <= _MOST_DIMENSIONS:
                raise self._wrong(f"says that the tensor {name!r} has {num_dimensions} dimensions")
            shape = self._unpack(f"<{num_dimensions}Q")[::-1]
            number, offset = self._unpack("<IQ")
            found[name] = (self._kind(number, name), shape, offset)
        alignment = self._alignment()
        data_start = -(-self._at // alignment) * alignment
        tensors = {
            name: self._placed(name, kind, shape, data_start, offset, alignment)
            for name, (kind, shape, offset) in found.items()
        }
        in_order = sorted(tensors.items(), key=lambda item: item[1].start)
        for (name, tensor), (other, after) in pairwise(in_order):
            if tensor.start + tensor.num_bytes > after.start:
                raise self._wrong(f"has the tensors {name!r} and {other!r} in the same place")
        return tensors

    def _kind(self, number: int, name: str) -> BlockType:
        kind = type_of_number(number)
        if kind is None:
            known = UNSUPPORTED.get(number, f"of type {number}")
            raise UserError(
                "model",
                self._place,
                problem=f"holds {name!r} as {known}, which is not supported",
                mend="F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K and IQ4_NL are.",
            )
        return kind

    def _alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 16 or alignment % 8:
            raise self._wrong("has a general.alignment that is no multiple of 8 up to 65,536")
        return alignment

    def _placed(
        self, name: str, kind: BlockType, shape: tuple[int, ...], data_start: int, offset: int, alignment: int
    ) -> StoredTensor:
        if 0 in shape or shape[-1] % kind.block_weights:
            raise self._wrong(f"says that {name!r} is {shape}, which {kind.name} can't be")
        num_bytes = math.prod(shape[:-1]) * kind.row_bytes(shape[-1])
        if offset % alignment or data_start + offset + num_bytes > self._size:
            raise self._wrong(
                f"is cut short or damaged: {name!r} should end at byte {data_start + offset + num_bytes:,}, "
                f"and the file has {self._size:,}"
            )
        return StoredTensor(kind, shape, data_start + offset, num_bytes)

    def _string(self, longest: int | None = None) -> str:
        (length,) = self._unpack("<Q")
        if longest is not None and length > longest:
            raise self._wrong(f"has a name of {length:,} bytes")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self._wrong(f"has a text that is no UTF-8 before byte {self._at:,}") from None

    def _unpack(self, form: str) -> tuple[Any, ...]:
        end = self._at + struct.calcsize(form)
        if end > self._end:
            raise self._wrong(f"is cut short or damaged: its header goes on after {self._end:,} bytes")
        values = struct.unpack_from(form, self._content, self._at)
        self._at = end
        return values

    def _take(self, length: int) -> bytes:
        end = self._at + length
        if end > self._end:
            raise self._wrong(f"is cut short or damaged: something in its header is {length:,} bytes long")
        taken = self._content[self._at : end]
        self._at = end
        return taken

    def _check_count(self, count: int, most: int, what: str, least_bytes: int) -> None:
        if count > min(most, self._end // least_bytes):
            raise self._wrong(f"says that it has {count:,} {what}")

    def _wrong(self, problem: str) -> UserError:
        return UserError("model", self._place, problem=problem, mend="Download or make it again.")


_NUMBERS_OF_BOOL = 0  # a bool is kept in a byte
