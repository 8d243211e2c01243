"""From documents to token shards: each once, each on one side of the held-out split, each with its beginning and end marked.

Both decisions depend on a document's content alone, so they do not change when files are renamed, moved or added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fox.data.decontaminate import Hits, Questions
from fox.data.personal import mask_personal
from fox.data.quarantine import Tally
from fox.data.sources import Document, read_source
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


def training_texts(recipe: Recipe, questions: Questions | None, meter: Meter) -> Iterator[str]:
    """Training text for the tokenizer, each document once and none with one of the `questions`: all of it, or `tokenizer.sample_bytes` of it.

    The sample is of the documents with the lowest hashes, so it is spread evenly over all sources, and the same whatever
    their order. All sources are read before this returns. Never more than twice its size is held, and what was taken is let go.
    """
    most = recipe.tokenizer.sample_bytes
    texts: dict[bytes, bytes] = {}  # UTF-8: as text, one emoji would have four bytes taken for each letter beside it
    size = 0
    for name, source in recipe.source.items():
        for document in _documents(recipe, name, Tally(name, source)):
            meter.advance(document.num_bytes, note=name)
            if document.digest in texts or is_heldout(document, recipe.data.heldout_fraction):
                continue
            if questions and questions.file_with(text_of(document)):
                continue
            texts[document.digest] = text_of(document).encode()
            size += len(texts[document.digest])
            if size > 2 * most:
                texts, size = _lowest(texts, most)
    return _taken(_lowest(texts, most)[0])


def _taken(texts: dict[bytes, bytes]) -> Iterator[str]:
    while texts:
        yield texts.pop(next(iter(texts))).decode()


def _documents(recipe: Recipe, name: str, tally: Tally) -> Iterator[Document]:
    """A source's documents, with the personal data masked that the recipe names."""
    kinds = recipe.data.mask_personal
    for document in read_source(name, recipe.source[name], tally):
        yield _masked(document, kinds, tally) if kinds else document


def _masked(document: Document, kinds: Sequence[str], tally: Tally) -> Document:
    if document.text is not None:
        text, found = mask_personal(document.text, kinds)
        tally.masked.update(found)
        return replace(document, text=text) if found else document
    messages = []
    for message in document.messages or ():
        content, found = mask_personal(message["content"], kinds)
        tally.masked.update(found)
        messages.append({**message, "content": content})
    return replace(document, messages=tuple(messages))


def text_of(document: Document) -> str:
    """A document as plain text: of a conversation, what was said."""
    return document.text if document.text is not None else "\n".join(m["content"] for m in document.messages or ())


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
class _Count:
    documents: int = 0
    tokens: int = 0
    bytes: int = 0


@dataclass
class SourceFacts:
    """What became of one source."""

    reading: dict[str, Any] = field(default_factory=dict)
    duplicates: int = 0
    contaminated: Hits = field(default_factory=Hits)
    train: _Count = field(default_factory=_Count)
    heldout: _Count = field(default_factory=_Count)

    def as_dict(self) -> dict[str, Any]:
        tokens, size = self.train.tokens + self.heldout.tokens, self.train.bytes + self.heldout.bytes
        return {
            "documents": self.train.documents + self.heldout.documents,
            "duplicates": self.duplicates,
            "contaminated": self.contaminated.as_dict(),
            "bad": sum(self.reading["bad"].values()),
            "train": vars(self.train),
            "heldout": vars(self.heldout),
            "bytes_per_token": round(size / max(1, tokens), 4),
            "reading": self.reading,
        }


def write_shards(
    recipe: Recipe, tokenizer: Tokenizer, questions: Questions | None, folder: Path, meter: Meter
) -> dict[str, SourceFacts]:
    """Write `NAME.train.ds` and `NAME.heldout.ds` for each source into `folder`, and tell what went into them: no document with one of the `questions`.

    Raises UserError where a source has nothing to train on, or where all of them together hold nothing out.
    """
    facts: dict[str, SourceFacts] = {}
    seen: set[bytes] = set()
    for name, source in recipe.source.items():
        tally, of_source = Tally(name, source), SourceFacts()
        is_chat = source.kind == "chat"
        writers = {s: ShardWriter(shard_path(folder, name, s), tokenizer.vocab_size, is_chat) for s in SPLITS}
        for batch in _batches(_documents(recipe, name, tally)):
            new = []
            for document in batch:
                if document.digest in seen:
                    of_source.duplicates += 1
                    continue
                seen.add(document.digest)
                if questions and (file := questions.file_with(text_of(document))):
                    of_source.contaminated.add(file, document.place)
                else:
                    new.append(document)
            for document, (ids, is_learnt) in zip(new, _encode(tokenizer, new, is_chat), strict=True):
                split = "heldout" if is_heldout(document, recipe.data.heldout_fraction) else "train"
                writers[split].write(ids, is_learnt)
                count = of_source.heldout if split == "heldout" else of_source.train
                count.documents += 1
                count.tokens += len(ids)
                count.bytes += document.num_bytes
            meter.advance(sum(document.num_bytes for document in batch), note=name)
        for writer in writers.values():
            writer.close()
        of_source.reading = tally.as_dict()
        if not of_source.train.documents:
            raise UserError(
                f"source.{name}.path",
                source.path,
                problem="holds no document to train on",
                mend="Add documents, or leave the source out.",
            )
        facts[name] = of_source
    if not any(of_source.heldout.documents for of_source in facts.values()):
        raise UserError(
            "data.heldout_fraction",
            recipe.data.heldout_fraction,
            problem="holds out no document at all, so nothing could be measured",
            mend="Raise it, or add documents (a long file can be cut into several).",
        )
    return facts


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


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
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
