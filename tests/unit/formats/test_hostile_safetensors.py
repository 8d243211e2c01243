"""Hostile and damaged safetensors files and indexes are refused by name, within a second and in little memory.

Damage that tests/unit/model/test_directory.py has already (cut files, lying shapes) is not repeated here.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fox.errors import UserError
from fox.formats.safetensors import SafetensorsFiles

Refused = Callable[[str], contextlib.AbstractContextManager[None]]

pytestmark = pytest.mark.timeout(60)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def told(start: int, end: int, dtype: str = "F32", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


WHOLE = {"a": told(0, 16, shape=[2, 2]), "b": told(16, 24)}
DATA = struct.pack("<6f", *range(6))


def test_the_undamaged_file_works(tmp_path: Path) -> None:
    """Without this, all others could pass because nothing can be opened."""
    (tmp_path / SINGLE).write_bytes(safetensors(WHOLE, DATA))
    files = SafetensorsFiles(tmp_path)
    assert files.shapes == {"a": (2, 2), "b": (2,)}
    assert files.read_rows("a", 1, 2).tolist() == [[2.0, 3.0]]
    assert files.read_rows("b").tolist() == [[4.0, 5.0]]


TYPES = ["F64", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64"]
HOSTILE: dict[str, tuple[bytes, str]] = {
    "a header of 2^64 - 1 bytes": (safetensors(WHOLE, DATA, 2**64 - 1), "is damaged: .*18,446,744,073,709,551,615 bytes"),
    "a header of 2^63 bytes": (safetensors(WHOLE, DATA, 1 << 63), "is damaged"),
    "a header past the end": (safetensors(WHOLE, DATA, 1 << 20), "is damaged"),
    "no header": (safetensors(b""), "is damaged"),
    "lists in lists": (safetensors(b"[" * 1_000_000), "is damaged"),
    "objects in objects": (safetensors(b'{"a":' * 500_000), "is damaged"),
    "objects in a tensor": (safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":' + b"[" * 200_000), "is damaged"),
    "a number of 100,000 digits": (safetensors(b'{"a":{"dtype":"F32","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,4]}}', bytes(4)), "is damaged"),
    "a length below zero": (safetensors({"a": told(0, 4, shape=[-1])}, bytes(4)), "is damaged"),
    "half a length": (safetensors({"a": told(0, 4, shape=[1.5])}, bytes(4)), "is damaged"),  # type: ignore[list-item]
    "a product that wraps round": (safetensors({"a": told(0, 0, shape=[2**32, 2**32])}), "is damaged"),
    "offsets that overlap": (safetensors({"a": told(0, 8), "b": told(4, 12)}, bytes(12)), "is damaged"),
    "the same offsets twice": (safetensors({"a": told(0, 8), "b": told(0, 8)}, bytes(8)), "is damaged"),
    "a hole": (safetensors({"a": told(0, 8), "b": told(12, 20)}, bytes(20)), "is damaged"),
    "more data than tensors": (safetensors({"a": told(0, 8)}, bytes(12)), "is damaged"),
    "offsets the wrong way round": (safetensors({"a": {**told(0, 8), "data_offsets": [8, 0]}}, bytes(8)), "is damaged"),
    "offsets of 2^63": (safetensors({"a": {**told(0, 8), "data_offsets": [2**63, 2**63 + 8]}}, bytes(8)), "is damaged"),
    "a name twice": (safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)), "is damaged"),
    "no UTF-8": (safetensors(b'{"\xff":{}}'), "is damaged"),
    "a list": (safetensors([]), "is damaged"),
    "20,000 tensors": (safetensors({f"t{n}": told(0, 0) for n in range(20_000)}), "more than 16,384 tensors"),
    "a header of 6 MB": (safetensors({f"t{n}": told(0, 0) for n in range(100_000)}), "is damaged: .* bytes"),
    **{f"of type {name}": (safetensors({"a": told(0, 16, name, [16 * 8 // bits])}, bytes(16)), f"holds a as {name}, which is not supported")
       for name, bits in zip(TYPES, [64, 64, 32, 8, 8, 8, 8, 8, 4, 64], strict=True)},
    "control characters": (safetensors({"\x1b]0;x\x07": told(0, 4, "I32")}, bytes(4)), r"holds '\\x1b\]0;x\\x07' as I32"),
    "a gzip": (b"\x1f\x8b" + bytes(100), "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_lies(content: bytes, message: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    with refused(message):
        SafetensorsFiles(tmp_path)


@settings(max_examples=200)
@given(
    at=st.integers(0, len(safetensors(WHOLE, DATA)) - 1), bit=st.integers(0, 7), length=st.none() | st.integers(0, 200)
)
def test_a_bit_flipped(at: int, bit: int, length: int | None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The file is refused, or what it then says of itself can be read."""
    folder = tmp_path_factory.getbasetemp() / "flipped"
    folder.mkdir(exist_ok=True)
    raw = bytearray(safetensors(WHOLE, DATA))
    raw[at] ^= 1 << bit
    (folder / SINGLE).write_bytes(raw[:length])
    with contextlib.suppress(UserError):
        files = SafetensorsFiles(folder)
        for name, shape in files.shapes.items():
            assert files.read_rows(name).numel() == torch.Size(shape).numel()


def sharded(folder: Path, weight_map: Any, shards: dict[str, bytes] | None = None) -> Path:
    for name, content in (shards or {}).items():
        (folder / name).write_bytes(content)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


A = safetensors({"a": told(0, 4)}, bytes(4))
B = safetensors({"b": told(0, 4)}, bytes(4))
BOTH = {"1.safetensors": A, "2.safetensors": B}


def test_several_files_work(tmp_path: Path) -> None:
    files = SafetensorsFiles(sharded(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"}, BOTH))
    assert files.shapes == {"a": (1,), "b": (1,)}


INDEXES: dict[str, tuple[Any, str]] = {
    "the folder above": ({"a": "../1.safetensors"}, r"'../1\.safetensors' is no safetensors file in the same folder"),
    "a folder within": ({"a": "x/1.safetensors"}, "is no safetensors file in the same folder"),
    "the same folder": ({"a": "./1.safetensors"}, "is no safetensors file in the same folder"),
    "an absolute path": ({"a": "/etc/1.safetensors"}, "is no safetensors file in the same folder"),
    "another kind of file": ({"a": "pytorch_model.bin"}, "is no safetensors file in the same folder"),
    "no name": ({"a": ""}, "is no safetensors file in the same folder"),
    "dots": ({"a": ".."}, "is no safetensors file in the same folder"),
    "a NUL": ({"a": "x\0.safetensors"}, r"is damaged: embedded null byte"),
    "a long name": ({"a": "x" * 300 + ".safetensors"}, "is damaged: .*too long"),
    "control characters": ({"a": "\x1b[2J"}, r"'\\x1b\[2J' is no safetensors file"),
    "a number": ({"a": 1}, "weight_map of tensors' names to files' names"),
    "a list": (["1.safetensors"], "weight_map of tensors' names to files' names"),
    "null": (None, "weight_map of tensors' names to files' names"),
    "nothing": ({}, "it names 0 files"),
    "a shard that is not there": ({"a": "1.safetensors", "b": "3.safetensors"}, r"3\.safetensors'?: there is no such file"),
    "a tensor that is elsewhere": ({"a": "2.safetensors", "b": "1.safetensors"}, "lacks a, which"),
    "100,000 files": ({f"t{n}": f"{n}.safetensors" for n in range(100_000)}, "it names 100,000 files|is larger than"),
    "2,000 files": ({f"t{n}": f"{n}.safetensors" for n in range(2000)}, "it names 2,000 files"),
}  # fmt: skip


@pytest.mark.parametrize(("weight_map", "message"), INDEXES.values(), ids=INDEXES)
def test_an_index_that_lies(weight_map: Any, message: str, tmp_path: Path, refused: Refused) -> None:
    sharded(tmp_path, weight_map, BOTH)
    with refused(message):
        SafetensorsFiles(tmp_path)


def test_a_tensor_in_two_files(tmp_path: Path, refused: Refused) -> None:
    sharded(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"}, {"1.safetensors": A, "2.safetensors": A})
    with refused("holds a, and so does 1.safetensors"):
        SafetensorsFiles(tmp_path)


def test_headers_that_are_small_each_and_large_together(tmp_path: Path, refused: Refused) -> None:
    blank = safetensors(b'{"__metadata__":{"x":"' + b"x" * 100_000 + b'"}}')
    sharded(tmp_path, {f"t{n}": f"{n}.safetensors" for n in range(60)}, {f"{n}.safetensors": blank for n in range(60)})
    with refused("the headers up to it are|lacks t0"):
        SafetensorsFiles(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"\xff", b"[" * 1_000_000, b'{"weight_map":' * 100_000, b'{"weight_map":' + b"9" * 5000],
)
def test_an_index_that_is_none(content: bytes, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / INDEX).write_bytes(content)
    with refused(r"index\.json'?: can't be read"):
        SafetensorsFiles(tmp_path)


PLACES: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a loop": lambda path: path.symlink_to(path),
    "zeros without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "an empty file": lambda path: path.touch(),
}


@pytest.mark.parametrize("make", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("name", [SINGLE, INDEX, "1.safetensors"])
def test_what_is_no_file(make: Callable[[Path], object], name: str, tmp_path: Path, refused: Refused) -> None:
    if name == "1.safetensors":
        sharded(tmp_path, {"a": name})
    make(tmp_path / name)
    with refused("model"):
        SafetensorsFiles(tmp_path)


def test_links_are_followed_and_nothing_else_leads_out(tmp_path: Path) -> None:
    """The Hugging Face hub's cache is made of links into a folder of blobs."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    folder.mkdir()
    (blobs / "0a1b").write_bytes(A)
    sharded(folder, {"a": "1.safetensors"})
    (folder / "1.safetensors").symlink_to("../blobs/0a1b")
    assert SafetensorsFiles(folder).shapes == {"a": (1,)}


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", [SINGLE, INDEX, "1.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("form", ["pickle", "torch.save", "zip"])
def test_a_pickle_is_never_opened(name: str, form: str, tmp_path: Path, refused: Refused) -> None:
    folder, marker = tmp_path / "model", tmp_path / "somebody was here"
    folder.mkdir()
    if name == "1.safetensors":
        sharded(folder, {"a": name})
    path = folder / name
    if form == "pickle":
        path.write_bytes(pickle.dumps(Trap(marker)))
    elif form == "torch.save":
        torch.save(Trap(marker), path)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Trap(marker)))
    with refused("pytorch_model.bin is a pickle" if name == "pytorch_model.bin" else "is damaged|can't be read"):
        SafetensorsFiles(folder)
    assert not marker.exists()
    if form == "torch.save":
        torch.load(path.rename(tmp_path / "trap.pt"), weights_only=False)  # by another name: torch goes by it
        assert marker.exists()  # so the trap works


HOLLOW = {
    "nothing": (SINGLE, b""),
    "a header of 99 MB": (SINGLE, struct.pack("<Q", 99_000_000) + b'{"a":[' + b"[],"),
    "a header of a terabyte": (SINGLE, struct.pack("<Q", 1 << 39)),
    "an index": (INDEX, b"{"),
    "a shape": (SINGLE, safetensors(b'{"a":{"dtype":"F32","shape":[' + b"1," * 1_900_000 + b'1],"data_offsets":[0,4]}}', bytes(4))),
}  # fmt: skip


@pytest.mark.parametrize(("name", "start"), HOLLOW.values(), ids=HOLLOW)
def test_files_with_holes(name: str, start: bytes, tmp_path: Path, refused: Refused) -> None:
    """A file's size bounds nothing: a terabyte of zeros takes no room on the disk."""
    (tmp_path / name).write_bytes(start)
    os.truncate(tmp_path / name, 1 << 40)
    with refused("model"):
        SafetensorsFiles(tmp_path)


def test_a_file_larger_than_memory_is_read(tmp_path: Path) -> None:
    """Only what is asked for takes memory: whoever has the disk for a model can convert it."""
    rows, columns = 1 << 27, 1 << 10  # half a terabyte
    end = 4 * rows * columns
    start = safetensors({"a": told(0, end, shape=[rows, columns]), "b": told(end, end + 8)})
    path = tmp_path / SINGLE
    path.write_bytes(start)
    os.truncate(path, len(start) + end + 8)
    with path.open("r+b") as file:
        file.seek(len(start) + 4 * columns * (rows - 1))
        file.write(struct.pack("<f", 5.0))
        file.seek(len(start) + end)
        file.write(struct.pack("<2f", 6.0, 7.0))
    files = SafetensorsFiles(tmp_path)
    assert files.shapes == {"a": (rows, columns), "b": (2,)}
    assert files.read_rows("a", rows - 2).tolist() == [[0.0] * columns, [5.0] + [0.0] * (columns - 1)]
    assert files.read_rows("b").tolist() == [[6.0, 7.0]]


@pytest.mark.parametrize("blanks", range(5))
@pytest.mark.parametrize(("dtype", "form"), [("F32", "f"), ("F16", "e")])
def test_numbers_at_any_place(dtype: str, form: str, blanks: int, tmp_path: Path) -> None:
    """The format does not ask for a header of a certain length; most writers make it a multiple of eight."""
    size = struct.calcsize(form)
    header = json.dumps({"a": told(0, 6 * size, dtype, [3, 2]), "b": told(6 * size, 6 * size, dtype, [0, 2])}).encode()
    (tmp_path / SINGLE).write_bytes(safetensors(header + b" " * blanks, struct.pack(f"<6{form}", *range(6))))
    files = SafetensorsFiles(tmp_path)
    assert files.read_rows("a").tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert files.read_rows("a", 1, 3).tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert files.read_rows("a", 2, 9).tolist() == [[4.0, 5.0]]
    assert files.read_rows("a", 3).shape == (0, 2) == files.read_rows("b").shape


def test_what_is_done_to_weights_does_not_reach_their_file(tmp_path: Path) -> None:
    content = safetensors(WHOLE, DATA)
    (tmp_path / SINGLE).write_bytes(content)
    SafetensorsFiles(tmp_path).read_rows("a").fill_(9.0)
    assert (tmp_path / SINGLE).read_bytes() == content


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_bytes(safetensors(WHOLE, DATA))
    files = SafetensorsFiles(tmp_path)
    os.truncate(tmp_path / SINGLE, 20)
    with pytest.raises(UserError, match=r"model\.safetensors'?: can't be read"):
        files.read_rows("a")
