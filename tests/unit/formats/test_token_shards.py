"""Token shards come back as written, other tools read them, and damaged ones are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fox.errors import Failure
from fox.formats.token_shards import Shard, ShardWriter, token_type

DOCUMENTS = [[1, 2, 3], [4], [5, 6]]


def write(path: Path, vocab_size: int = 400, documents: list[list[int]] = DOCUMENTS, marked: bool = True) -> Path:
    writer = ShardWriter(path, vocab_size, with_loss_mask=marked)
    for document in documents:
        writer.write(np.array(document), np.array(document) % 2 == 0)
    writer.close()
    return path


@pytest.mark.parametrize(("vocab_size", "size"), [(400, 2), (65_535, 2), (65_536, 4), (256_000, 4)])
def test_as_written(vocab_size: int, size: int, tmp_path: Path) -> None:
    documents = [[0, vocab_size - 1], [7], [vocab_size - 2, 3, 1]]
    shard = Shard(write(tmp_path / "a.ds", vocab_size, documents), vocab_size)
    assert token_type(vocab_size).itemsize == size
    assert (tmp_path / "a.ds").stat().st_size == 6 * size
    assert [tokens.tolist() for tokens, _ in shard.documents()] == documents
    assert [learnt.tolist() for _, learnt in shard.documents()] == [[t % 2 == 0 for t in d] for d in documents]
    assert [shard.span(number) for number in range(len(shard))] == [(0, 2), (2, 3), (3, 6)]


def test_without_a_loss_mask_and_without_anything(tmp_path: Path) -> None:
    assert Shard(write(tmp_path / "a.ds", marked=False), 400).is_learnt is None
    empty = Shard(write(tmp_path / "b.ds", documents=[]), 400)
    assert len(empty) == 0
    assert list(empty.documents()) == []


@pytest.mark.parametrize("vocab_size", [400, 256_000])
def test_datatrove_reads_it(vocab_size: int, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datatrove.utils.dataset")
    documents = [[number, vocab_size - 1 - number, 9, number % 7] for number in range(20)]
    write(tmp_path / "a.ds", vocab_size, documents)
    size = token_type(vocab_size).itemsize
    windows = datasets.DatatroveFileDataset(str(tmp_path / "a.ds"), seq_len=7, token_size=size, return_positions=True)
    flat = [token for document in documents for token in document]
    read = [windows[number] for number in range(len(windows))]
    assert [window["input_ids"].tolist() for window in read] == [flat[n : n + 8] for n in range(0, 80, 8)]
    assert read[0]["positions"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3], "it finds where documents end in our index"


def index(*ends: int) -> bytes:
    return np.array(ends, dtype="<u8").tobytes()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.ds", bytes(11), "no whole number of 2-byte"),
        ("a.ds", bytes(10), "ends at token 6, the shard has 5"),
        ("a.ds", b"", "ends at token 6, the shard has 0"),
        ("a.ds.index", index(3, 4, 6)[:-1], "no whole number of 8-byte"),
        ("a.ds.index", b"", "ends at token 0, the shard has 6"),
        ("a.ds.index", index(3, 4, 7), "ends at token 7"),
        ("a.ds.index", index(4, 3, 6), "does not rise"),
        ("a.ds.index", index(3, 3, 6), "does not rise"),
        ("a.ds.index", index(0, 6), "does not rise"),
        ("a.ds.index", index(2**64 - 1, 6), "does not rise"),
        ("a.ds.index", index(2**63, 6), "does not rise"),
        ("a.ds.index", index(3, 2**64 - 1), "ends at token -1"),
        ("a.ds.loss", bytes(5), "5 marks for 6 tokens"),
        ("a.ds.loss", b"", "0 marks for 6 tokens"),
        ("a.ds", None, "missing"),
        ("a.ds.index", None, "missing"),
    ],
)
def test_damaged_shards_are_told(name: str, content: bytes | None, told: str, tmp_path: Path) -> None:
    write(tmp_path / "a.ds")
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Failure, match=told) as failure:
        Shard(tmp_path / "a.ds", 400)
    assert str(tmp_path / "a.ds") in str(failure.value)


def test_a_shard_of_the_other_width_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.ds", vocab_size=256_000)
    with pytest.raises(Failure, match="ends at token 6, the shard has 12"):
        Shard(tmp_path / "a.ds", 400)
