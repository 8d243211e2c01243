"""Token shards, as datatrove writes them: `NAME.ds` holds the tokens, `NAME.ds.index` where each document ends.

Tokens are little-endian uint16, or uint32 where the vocabulary has more than 65,535 entries; ends are uint64, counted in
tokens from the start of the shard. `NAME.ds.loss`, where there is one, has a byte a token: 1 where it is learnt from.
`NAME.ds.documents`, where there is one, has the first 16 bytes of the SHA-256 of each document's content, in the order of the index.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fox.artifacts import written_atomically
from fox.errors import Failure

Tokens = npt.NDArray[np.integer]
Mask = npt.NDArray[np.bool_]


def token_type(vocab_size: int) -> np.dtype:
    """The smallest of the format's two types that holds every id."""
    return np.dtype("<u4") if vocab_size > 65_535 else np.dtype("<u2")


DIGEST_BYTES = 16
"""Of a document's hash: two of a thousand billion documents share so many once in 10^14 corpora."""


def digests_path(shard: Path) -> Path:
    """Where the hashes of a shard's documents are, if it has them."""
    return shard.with_name(f"{shard.name}.documents")


class ShardWriter:
    """Writes one shard, a document at a time. Use it inside a folder that is made whole at the end."""

    def __init__(self, path: Path, vocab_size: int, with_loss_mask: bool, with_digests: bool = False) -> None:
        self._tokens = path.open("wb")
        self._loss = path.with_name(f"{path.name}.loss").open("wb") if with_loss_mask else None
        self._digests = digests_path(path).open("wb") if with_digests else None
        self._path = path
        self._type = token_type(vocab_size)
        self._ends: list[int] = []
        self.num_tokens = 0

    def write(self, tokens: Tokens, is_learnt: Mask | None = None, digest: bytes = b"") -> None:
        """Append one document; `is_learnt` says of each token whether the loss counts it. `digest` is the SHA-256 of its content."""
        self._tokens.write(tokens.astype(self._type).tobytes())
        if self._loss is not None:
            assert is_learnt is not None and len(is_learnt) == len(tokens)
            self._loss.write(is_learnt.astype(np.uint8).tobytes())
        if self._digests is not None:
            assert len(digest) >= DIGEST_BYTES
            self._digests.write(digest[:DIGEST_BYTES])
        self.num_tokens += len(tokens)
        self._ends.append(self.num_tokens)

    def close(self) -> None:
        self._tokens.close()
        if self._digests is not None:
            self._digests.close()
        if self._loss is not None:
            self._loss.close()
        self._path.with_name(f"{self._path.name}.index").write_bytes(np.array(self._ends, dtype="<u8").tobytes())


def join_shards(parts: Sequence[Path], path: Path) -> None:
    """Put shards of the same kind together into one, whole or not at all. A part that is not there has no documents."""
    parts = [part for part in parts if part.exists()]
    for ending in ("", ".loss", ".documents"):
        if ending and not (parts and all(_beside(part, ending).exists() for part in parts)):
            continue
        with written_atomically(_beside(path, ending)) as whole:
            for part in parts:
                with _beside(part, ending).open("rb") as file:
                    shutil.copyfileobj(file, whole, 2**24)
    with written_atomically(_beside(path, ".index")) as whole:
        before = 0
        for part in parts:
            ends = np.fromfile(_beside(part, ".index"), dtype="<u8")
            whole.write((ends + np.uint64(before)).tobytes())
            before += int(ends[-1]) if ends.size else 0


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}{ending}")


class Shard:
    """A shard to read, memory-mapped. Raises Failure where the files do not fit each other."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.path = path
        self.tokens: Tokens = self._map(path, token_type(vocab_size))
        self.ends: npt.NDArray[np.int64] = self._map(path.with_name(f"{path.name}.index"), np.dtype("<u8")).astype(
            np.int64
        )
        loss = path.with_name(f"{path.name}.loss")
        self.is_learnt: Mask | None = self._map(loss, np.dtype("u1")).view(np.bool_) if loss.exists() else None
        last = int(self.ends[-1]) if len(self.ends) else 0
        if last != len(self.tokens) or np.any(np.diff(self.ends, prepend=0) <= 0):
            reason = f"the index ends at token {last}, the shard has {len(self.tokens)}"
            if last == len(self.tokens):
                reason = "the index does not rise"
            raise Failure(f"{path}: damaged: {reason}. Make it again.")
        if self.is_learnt is not None and len(self.is_learnt) != len(self.tokens):
            raise Failure(f"{loss}: damaged: {len(self.is_learnt)} marks for {len(self.tokens)} tokens. Make it again.")

    def __len__(self) -> int:
        """How many documents there are."""
        return len(self.ends)

    def span(self, document: int) -> tuple[int, int]:
        """First token of a document, and the one after its last."""
        return (int(self.ends[document - 1]) if document else 0), int(self.ends[document])

    def documents(self) -> Iterator[tuple[Tokens, Mask | None]]:
        """The tokens of each document, and which of them are learnt from."""
        for document in range(len(self)):
            start, end = self.span(document)
            yield self.tokens[start:end], None if self.is_learnt is None else self.is_learnt[start:end]

    @staticmethod
    def _map(path: Path, dtype: np.dtype) -> npt.NDArray[np.integer]:
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise Failure(f"{path}: missing. Run `fox data` again.") from None
        if size % dtype.itemsize:
            raise Failure(
                f"{path}: damaged: {size} bytes are no whole number of {dtype.itemsize}-byte entries. Make it again."
            )
        return np.memmap(path, dtype=dtype, mode="r") if size else np.empty(0, dtype=dtype)
