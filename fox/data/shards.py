"""From documents to token shards: each once, each on one side of the held-out split, each with its beginning and end marked.

Both decisions depend on a document's content alone, so they do not change when files are renamed, moved or added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fox.data.document import Document
from fox.data.readers import Reader
from fox.errors import UserError
from fox.formats.token_shards import ShardWriter
from fox.progress import Meter
from fox.recipe import Recipe
from fox.tokenizer import Tokenizer
from fox.tokenizer.chat import encode_chats

_BATCH_BYTES = 4_000_000
"""Text that is tokenized at once: enough for all cores, little enough for any memory."""

SPLITS = ("train", "heldout")


def is_heldout(document: Document, heldout_fraction: float) -> bool:
    """Whether no model may be trained on this document: decided by the hash of its content, never by its place."""
    return int.from_bytes(document.digest[:8], "big") < heldout_fraction * 2**64


def training_texts(recipe: Recipe, reader: Reader, meter: Meter) -> Iterator[str]:
    """Training text for the tokenizer, each document once: all of it, or `tokenizer.sample_bytes` of it.

    The sample is of the documents with the lowest hashes, so it is spread evenly over all sources, and the same whatever
    their order. All sources are read before this returns. Never more than twice its size is held, and what was taken is let go.
    """
    most = recipe.tokenizer.sample_bytes
    texts: dict[bytes, bytes] = {}  # UTF-8: as text, one emoji would have four bytes taken for each letter beside it
    size = 0
    for name in recipe.source:
        for document in reader.read(name):
            meter.advance(document.num_bytes, note=name)
            if document.digest in texts or is_heldout(document, recipe.data.heldout_fraction):
                continue
            texts[document.digest] = document.content.encode()
            size += len(texts[document.digest])
            if size > 2 * most:
                texts, size = _lowest(texts, most)
    return _taken(_lowest(texts, most)[0])


def _taken(texts: dict[bytes, bytes]) -> Iterator[str]:
    while texts:
        yield texts.pop(next(iter(texts))).decode()


def _lowest(texts: dict[bytes, bytes], most: int) -> tuple[dict[bytes, bytes], int]:
    """The texts with the lowest hashes that have about `most` bytes together, and how many they have."""
    kept: dict[bytes, bytes] = {}
    size = 0
    for digest in sorted(texts, key=lambda digest: digest[8:]):  # the first 8 bytes decide what is held out
        if size >= most:
            break
        kept[digest] = texts[digest]
        size += len(texts[digest])
    return kept, size


@dataclass
class Count:
    documents: int = 0
    tokens: int = 0
    bytes: int = 0

    def add(self, documents: int, tokens: int, size: int) -> None:
        self.documents += documents
        self.tokens += tokens
        self.bytes += size


@dataclass
class SourceFacts:
    """What became of one source."""

    reading: dict[str, Any] = field(default_factory=dict)
    contaminated: dict[str, Any] = field(default_factory=dict)
    duplicates: int = 0
    train: Count = field(default_factory=Count)
    heldout: Count = field(default_factory=Count)

    def as_dict(self) -> dict[str, Any]:
        tokens, size = self.train.tokens + self.heldout.tokens, self.train.bytes + self.heldout.bytes
        return {
            "documents": self.train.documents + self.heldout.documents,
            "duplicates": self.duplicates,
            "contaminated": self.contaminated,
            "bad": sum(self.reading["bad"].values()),
            "train": vars(self.train),
            "heldout": vars(self.heldout),
            "bytes_per_token": round(size / max(1, tokens), 4),
            "reading": self.reading,
        }


class SourceWriter:
    """Writes a source's documents, or some of them, into `NAME.train.ds` and `NAME.heldout.ds`, and counts them in `facts`."""

    def __init__(self, folder: Path, name: str, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self.facts = SourceFacts()
        self._tokenizer, self._heldout_fraction = tokenizer, recipe.data.heldout_fraction
        self._is_chat = recipe.source[name].kind == "chat"
        self._writers = {
            split: ShardWriter(shard_path(folder, name, split), tokenizer.vocab_size, self._is_chat, with_digests=True)
            for split in SPLITS
        }

    def write(self, documents: list[Document]) -> None:
        for document, (ids, is_learnt) in zip(
            documents, _encode(self._tokenizer, documents, self._is_chat), strict=True
        ):
            split = "heldout" if is_heldout(document, self._heldout_fraction) else "train"
            self._writers[split].write(ids, is_learnt, document.digest)
            count = self.facts.heldout if split == "heldout" else self.facts.train
            count.add(1, len(ids), document.num_bytes)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def write_shards(
    recipe: Recipe, tokenizer: Tokenizer, reader: Reader, folder: Path, meter: Meter
) -> dict[str, SourceFacts]:
    """Write `NAME.train.ds` and `NAME.heldout.ds` for each source into `folder`, and tell what went into them.

    Raises UserError where a source has nothing to train on, or where all of them together hold nothing out.
    """
    facts: dict[str, SourceFacts] = {}
    seen: set[bytes] = set()
    for name in recipe.source:
        writer = SourceWriter(folder, name, recipe, tokenizer)
        for batch in batches(reader.read(name)):
            new = []
            for document in batch:
                if document.digest in seen:
                    writer.facts.duplicates += 1
                    continue
                seen.add(document.digest)
                new.append(document)
            writer.write(new)
            meter.advance(sum(document.num_bytes for document in batch), note=name)
        writer.close()
        facts[name] = with_reading(writer.facts, reader.facts(name))
        check_trainable(recipe, name, facts[name])
    check_heldout(recipe, facts.values())
    return facts


def with_reading(facts: SourceFacts, read: dict[str, Any]) -> SourceFacts:
    """With what was found when its documents were read."""
    return replace(facts, reading=read["reading"], contaminated=read["contaminated"])


def check_trainable(recipe: Recipe, name: str, facts: SourceFacts) -> None:
    """Raise UserError where a source has nothing to train on."""
    if not facts.train.documents:
        raise UserError(
            f"source.{name}.path",
            recipe.source[name].path,
            problem="holds no document to train on",
            mend="Add documents, or leave the source out.",
        )


def check_heldout(recipe: Recipe, facts: Iterable[SourceFacts]) -> None:
    """Raise UserError where all sources together hold nothing out."""
    if not any(of_source.heldout.documents for of_source in facts):
        raise UserError(
            "data.heldout_fraction",
            recipe.data.heldout_fraction,
            problem="holds out no document at all, so nothing could be measured",
            mend="Raise it, or add documents (a long file can be cut into several).",
        )


def shard_path(folder: Path, source: str, split: str) -> Path:
    """Where a source's shard of a split lies in the folder of shards."""
    return folder / f"{source}.{split}.ds"


def _encode(
    tokenizer: Tokenizer, documents: list[Document], is_chat: bool
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    if is_chat:
        for chat in encode_chats(tokenizer, [document.messages or () for document in documents]):
            yield chat.ids, chat.is_learnt
    else:
        begin = [tokenizer.bos_id] if tokenizer.adds_bos else []
        for ids in tokenizer.encode_arrays([document.text or "" for document in documents]):
            yield (
                np.concatenate([np.array(begin, dtype=np.uint32), ids, np.array([tokenizer.eos_id], dtype=np.uint32)]),
                None,
            )


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in groups of some megabytes."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document.num_bytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
