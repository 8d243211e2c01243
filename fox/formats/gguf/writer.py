"""Write a GGUF file. The gguf library writes its header; the tensors' data follows a few rows at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fox.artifacts import disk_failures
from fox.formats.gguf.block_types import BlockType
from fox.formats.gguf.reader import DEFAULT_ALIGNMENT

if TYPE_CHECKING:
    from torch import Tensor

Value = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]
"""What metadata may be. Whole numbers alone become uint32, in a list int32; other numbers float32."""


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor's name, shape (torch's, slowest axis first), kind and data: its rows in order, as bytes (rows, row_bytes)."""

    name: str
    shape: tuple[int, ...]
    kind: BlockType
    rows: Iterable[Tensor]

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape[:-1], dtype=np.int64)) * self.kind.row_bytes(self.shape[-1])


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Sequence[TensorToWrite]) -> None:
    """Write a file of GGUF version 3 at `path`, which the caller makes whole. Raises Failure where the disk is full.

    `metadata` must name general.architecture. Reads each tensor's rows once, in the order given.
    """
    with disk_failures(path):
        _write_header(path, metadata, tensors)
        with path.open("ab") as file:
            file.write(_padding(file.tell()))
            for tensor in tensors:
                written = 0
                for rows in tensor.rows:
                    written += file.write(rows.contiguous().numpy().data)
                assert written == tensor.num_bytes, f"{tensor.name}: {written} of {tensor.num_bytes} bytes"
                file.write(_padding(written))
            file.flush()
            os.fsync(file.fileno())


def _write_header(path: Path, metadata: Mapping[str, Value], tensors: Sequence[TensorToWrite]) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    values = dict(metadata)
    writer = GGUFWriter(path, str(values.pop("general.architecture")))
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value:  # the library refuses an empty list, which says no more than its absence
            writer.add_array(key, list(value))
    for tensor in tensors:
        number = GGMLQuantizationType(tensor.kind.number)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.num_bytes, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _padding(at: int) -> bytes:
    """What brings a file from `at` bytes to the next place where a tensor may begin."""
    return bytes(-at % DEFAULT_ALIGNMENT)
