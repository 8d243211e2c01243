"""Hostile and damaged GGUF files are refused by name, within a second and in little memory; one flipped bit never crashes.

The files are taken apart by the gguf library and put together again here, byte by byte, so that each can lie about one thing.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fox.errors import UserError
from fox.export.gguf import export_gguf
from fox.formats.gguf.reader import GgufFile
from fox.model import ModelConfig, Transformer
from fox.model.directory import save_model
from fox.model.stored import open_model
from fox.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")

Refused = Callable[[str], contextlib.AbstractContextManager[None]]

pytestmark = pytest.mark.timeout(60)

A_SECOND = 2.0  # of the processor, and one more: machines are shared
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
NUMBERS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(kind: int, value: Any) -> bytes:
    """A value of metadata with its type in front, as it stands in a file."""
    return struct.pack("<I", kind) + (text(value) if kind == STRING else struct.pack(f"<{NUMBERS[kind]}", value))


def array(kind: int, values: bytes, count: int) -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, count) + values


@dataclass(frozen=True)
class Told:
    """What a file says of a tensor; `dimensions` are ggml's, fastest first."""

    name: bytes
    dimensions: tuple[int, ...]
    kind: int
    offset: int

    def encoded(self) -> bytes:
        sizes = struct.pack(f"<I{len(self.dimensions)}Q", len(self.dimensions), *self.dimensions)
        return text(self.name) + sizes + struct.pack("<IQ", self.kind, self.offset)


@dataclass(frozen=True)
class Parts:
    """A GGUF file taken apart."""

    entries: dict[str | bytes, bytes]
    tensors: list[Told]
    data: bytes
    version: int = 3
    num_entries: int | None = None
    num_tensors: int | None = None
    more_entries: list[tuple[str, bytes]] = field(default_factory=list)

    def header(self) -> bytes:
        entries = [*self.entries.items(), *self.more_entries]
        counts = (
            len(self.tensors) if self.num_tensors is None else self.num_tensors,
            len(entries) if self.num_entries is None else self.num_entries,
        )
        start = b"GGUF" + struct.pack("<IQQ", self.version, *counts)
        return (
            start + b"".join(text(key) + value for key, value in entries) + b"".join(t.encoded() for t in self.tensors)
        )

    def encoded(self) -> bytes:
        header = self.header()
        return header + bytes(-len(header) % 32) + self.data

    def saying(self, key: str | bytes, value: bytes | None) -> Parts:
        entries = {k: v for k, v in self.entries.items() if k != key}
        return replace(self, entries=entries if value is None else {**entries, key: value})

    def with_tensor(self, number: int, **changes: Any) -> Parts:
        return replace(self, tensors=[replace(t, **changes) if n == number else t for n, t in enumerate(self.tensors)])


@pytest.fixture(scope="module")
def parts(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """A model that works, taken apart."""
    folder = tmp_path_factory.mktemp("whole")
    config = ModelConfig(
        vocab_size=400, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, max_position_embeddings=64, rope_theta=1e4, rms_norm_eps=1e-5,
        initializer_range=0.02, tie_word_embeddings=True,
    )  # fmt: skip
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    save_model(folder / "model", model, tiny_tokenizer)
    path = folder / "model.gguf"
    export_gguf(open_model(folder / "model"), path, "f32", {"name": "tiny"}, lambda count: None)
    found = gguf.GGUFReader(path)
    entries = {
        key: b"".join(part.tobytes() for part in value.parts[2:])
        for key, value in found.fields.items()
        if not key.startswith("GGUF.")
    }
    start = found.data_offset
    tensors = [
        Told(t.name.encode(), tuple(map(int, t.shape)), int(t.tensor_type), int(t.data_offset) - start)
        for t in found.tensors
    ]
    raw = path.read_bytes()
    taken = Parts(entries, tensors, raw[start:])
    assert taken.encoded() == raw  # nothing was lost when it was taken apart
    return taken


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def written(folder: Path, content: bytes) -> Path:
    path = folder / "model.gguf"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


def test_the_undamaged_file_works(parts: Parts, folder: Path) -> None:
    """Without this, all others could pass because nothing can be opened."""
    stored = open_model(written(folder, parts.encoded()))
    logits = works(stored.load())
    assert torch.isfinite(logits).all()
    assert stored.tokenizer.decode(stored.tokenizer.encode("The fox")) == "The fox"


def works(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([[1, 2, 3]])))
    assert logits.shape == (1, 3, model.config.vocab_size)
    return logits


LLAMA = "llama."
KEYS: dict[str, tuple[str, bytes | None, str]] = {
    "no architecture": ("general.architecture", None, "general.architecture: is missing"),
    "an architecture that is a number": ("general.architecture", entry(U32, 7), "general.architecture = 7: is not a text"),
    "another architecture": ("general.architecture", entry(STRING, "mamba"), "general.architecture = 'mamba': is not supported"),
    "an architecture of control characters": ("general.architecture", entry(STRING, "\x1b[2J"), r"'\\x1b\[2J': is not supported"),
    "cut into several files": ("split.count", entry(U16, 3), "split.count = 3"),
    "no heads key": (LLAMA + "attention.head_count", None, "llama.attention.head_count: is missing"),
    "no heads": (LLAMA + "attention.head_count", entry(U32, 0), "llama.attention.head_count = 0"),
    "fewer than no heads": (LLAMA + "attention.head_count", entry(I32, -2), "llama.attention.head_count = -2"),
    "heads as a text": (LLAMA + "attention.head_count", entry(STRING, "2"), "head_count = '2': is not a whole number"),
    "heads as a bool": (LLAMA + "attention.head_count", entry(BOOL, 1), "head_count = true: is not a whole number"),
    "heads as a float": (LLAMA + "attention.head_count", entry(F32, 2.0), "head_count = 2.0: is not a whole number"),
    "heads for each layer": (LLAMA + "attention.head_count", array(U32, bytes(8), 2), "head_count = 'a list'"),
    "3 heads on 8 columns": (LLAMA + "attention.head_count", entry(U32, 3), "should be|no model can have"),
    "2^64 - 1 heads": (LLAMA + "attention.head_count", entry(U64, 2**64 - 1), "head_count = 18446744073709551615"),
    "2^28 heads": (LLAMA + "attention.head_count", entry(U32, 1 << 28), "no model can have"),
    "no kv heads": (LLAMA + "attention.head_count_kv", entry(U32, 0), "llama.attention.head_count_kv = 0"),
    "kv heads that do not divide": (LLAMA + "attention.head_count_kv", entry(U32, 3), "no model can have"),
    "odd heads": (LLAMA + "attention.key_length", entry(U32, 5), "is not the head size, 5|no model can have"),
    "other values": (LLAMA + "attention.value_length", entry(U32, 8), "attention.value_length: is not the head size"),
    "part of a head turns": (LLAMA + "rope.dimension_count", entry(U32, 2), "rope.dimension_count: is not the head size"),
    "no layers": (LLAMA + "block_count", entry(U32, 0), "llama.block_count = 0"),
    "65,536 layers": (LLAMA + "block_count", entry(U32, 65536), "num_hidden_layers = 65536"),
    "2^32 - 1 layers": (LLAMA + "block_count", entry(U32, 2**32 - 1), "llama.block_count = 4294967295"),
    "a layer more": (LLAMA + "block_count", entry(U32, 3), "missing and should be"),
    "a layer less": (LLAMA + "block_count", entry(U32, 1), "should be absent"),
    "a width of 2^63": (LLAMA + "embedding_length", entry(U64, 2**63), "llama.embedding_length = 9223372036854775808"),
    "another width": (LLAMA + "embedding_length", entry(U32, 16), r"is \(.*\) and should be"),
    "the largest width": (LLAMA + "embedding_length", entry(U32, 1 << 28), r"is \(.*\) and should be"),
    "an inner width of 0": (LLAMA + "feed_forward_length", entry(U32, 0), "llama.feed_forward_length = 0"),
    "a context of 0": (LLAMA + "context_length", entry(U32, 0), "llama.context_length = 0"),
    "no eps": (LLAMA + "attention.layer_norm_rms_epsilon", None, "layer_norm_rms_epsilon: is missing"),
    "eps not a number": (LLAMA + "attention.layer_norm_rms_epsilon", entry(F32, math.nan), "layer_norm_rms_epsilon = nan"),
    "eps of 0": (LLAMA + "attention.layer_norm_rms_epsilon", entry(F32, 0.0), "layer_norm_rms_epsilon = 0.0"),
    "eps that float32 has not": (LLAMA + "attention.layer_norm_rms_epsilon", entry(F64, 1e-50), "layer_norm_rms_epsilon = 1e-50"),
    "theta 0": (LLAMA + "rope.freq_base", entry(F32, 0.0), "llama.rope.freq_base = 0.0"),
    "theta infinite": (LLAMA + "rope.freq_base", entry(F32, math.inf), "llama.rope.freq_base = inf"),
    "theta negative": (LLAMA + "rope.freq_base", entry(F32, -1.0), "llama.rope.freq_base = -1.0"),
    "theta a text": (LLAMA + "rope.freq_base", entry(STRING, "1e4"), "rope.freq_base = '1e4': is not a number"),
    "scaling not a number": (LLAMA + "rope.scale_linear", entry(F32, math.nan), "llama.rope.scale_linear = nan"),
    "scaling of 0": (LLAMA + "rope.scale_linear", entry(F32, 0.0), "llama.rope.scale_linear = 0.0"),
    "scaling that Fox has not": (LLAMA + "rope.scaling.type", entry(STRING, "yarn"), "rope.scaling.type = 'yarn'"),
    "attention scaled, too": (LLAMA + "rope.scaling.attn_factor", entry(F32, 2.0), "rope.scaling.attn_factor = 2.0: is not supported"),
    "an option nobody knows": (LLAMA + "attention.new", entry(F32, 2.0), "llama.attention.new: is not supported"),
    "experts": (LLAMA + "expert_count", entry(U32, 8), "expert_count = 8: is not supported"),
    "experts in a list": (LLAMA + "expert_count", array(U32, bytes(4), 1), "expert_count = 'a list'"),
    **{
        f"alignment {value}": ("general.alignment", entry(U32, value), "general.alignment")
        for value in (0, 3, 4, 12, 1 << 17, 1 << 31)
    },
    "alignment a text": ("general.alignment", entry(STRING, "32"), "general.alignment"),
    "alignment true": ("general.alignment", entry(BOOL, 1), "general.alignment"),
    "an unknown type": ("x", struct.pack("<I", 99), "unknown type 99 for 'x'"),
    "a list in a list": ("x", array(ARRAY, array(U8, b"", 0)[4:], 1), "unknown type 9 for 'x'"),
    "2^60 texts": ("x", array(STRING, b"", 1 << 60), "1,152,921,504,606,846,976 texts"),
    "2^62 floats": ("x", array(F32, b"", 1 << 62), "18,446,744,073,709,551,616 bytes"),
    "2^64 - 1 bools": ("x", array(BOOL, b"", 2**64 - 1), "18,446,744,073,709,551,615 bytes"),
    "a text of 2^63 bytes": ("x", struct.pack("<IQ", STRING, 1 << 63), "9,223,372,036,854,775,808 bytes"),
    "a text that is no UTF-8": ("x", entry(STRING, b"\xff\xfe"), "no UTF-8"),
    "half a character": ("x", entry(STRING, b"\xed\xa0\x80"), "no UTF-8"),
    "a key that is no UTF-8": (b"\xff", entry(U8, 1), "no UTF-8"),
    "a key of 100,000 bytes": ("x" * 100_000, entry(U8, 1), "a name of 100,000 bytes"),
    "no tokenizer": ("tokenizer.ggml.model", None, "tokenizer.ggml.model: is missing"),
    "an unknown tokenizer": ("tokenizer.ggml.model", entry(STRING, "bert"), "tokenizer.ggml.model = 'bert'"),
    "no tokens": ("tokenizer.ggml.tokens", None, "tokenizer.ggml.tokens: is missing"),
    "tokens that are numbers": ("tokenizer.ggml.tokens", array(U32, bytes(16), 4), "tokenizer.ggml.tokens"),
    "an empty vocabulary": ("tokenizer.ggml.tokens", array(STRING, b"", 0), "tokenizer.ggml.tokens"),
    "an end past the vocabulary": ("tokenizer.ggml.eos_token_id", entry(U32, 2**32 - 1), "eos_token_id = 4294967295"),
    "no end": ("tokenizer.ggml.eos_token_id", None, "eos_token: is missing"),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value", "told"), KEYS.values(), ids=KEYS)
def test_metadata_that_lies(
    key: str | bytes, value: bytes | None, told: str, parts: Parts, folder: Path, refused: Refused
) -> None:
    path = written(folder, parts.saying(key, value).encoded())
    with refused(told):
        open_model(path)


TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "of type IQ2_XS": ({"kind": 17}, "as IQ2_XS, which is not supported"),
    "of type I32": ({"kind": 26}, "as I32, which is not supported"),
    "of an unknown type": ({"kind": 2**32 - 1}, "as of type 4294967295, which is not supported"),
    "no dimensions": ({"dimensions": ()}, "has 0 dimensions"),
    "a dimension of 0": ({"dimensions": (8, 0)}, "can't be"),
    "five dimensions": ({"dimensions": (1, 1, 1, 1, 1)}, "has 5 dimensions"),
    "2^32 dimensions": ({"dimensions": (2**63,) * 9}, "has 9 dimensions"),
    "2^63 weights": ({"dimensions": (2**63,)}, "36,893,488,147,419,1"),
    "a product that wraps round to 0": ({"dimensions": (2**32, 2**32)}, "should end at byte"),
    "a product that wraps round to what it was": ({"dimensions": (2**62 + 2, 1600)}, "should end at byte"),
    "half a block": ({"kind": 8}, "which Q8_0 can't be"),
    "a vocabulary of 2^40": ({"dimensions": (8, 1 << 40)}, "should end at byte"),
    "one column too many": ({"dimensions": (4, 800)}, r"is \(800, 4\) and should be|should be \(800, 8\)|is \(8"),
    "no matrix": ({"dimensions": (3200,)}, "token_embd.weight: is missing, or no matrix"),
    "an offset that is not aligned": ({"offset": 4}, "is cut short or damaged"),
    "an offset past the end": ({"offset": 1 << 40}, "should end at byte"),
    "an offset before the start": ({"offset": 2**64 - 32}, "should end at byte"),
    "the place of another": ({"offset": 32}, "in the same place"),
    "a name that leads elsewhere": ({"name": b"../../etc/passwd"}, "token_embd.weight: is missing"),
    "a name with a NUL": ({"name": b"token_embd.weight\0"}, "token_embd.weight: is missing"),
    "a name of control characters": ({"name": b"\x1b]0;x\x07"}, "token_embd.weight: is missing"),
    "a name twice": ({"name": b"blk.0.attn_q.weight"}, "has the tensor 'blk.0.attn_q.weight' twice"),
    "a long name": ({"name": b"x" * 300}, "a name of 300 bytes"),
    "no UTF-8": ({"name": b"\xc3"}, "no UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "told"), TENSORS.values(), ids=TENSORS)
def test_a_tensor_that_lies(changes: dict[str, Any], told: str, parts: Parts, folder: Path, refused: Refused) -> None:
    number = next(n for n, tensor in enumerate(parts.tensors) if tensor.name == b"token_embd.weight")
    path = written(folder, parts.with_tensor(number, **changes).encoded())
    with refused(told):
        open_model(path)


@pytest.mark.parametrize("name", [b"../../etc/passwd", b"a\0b", b"\x1b]0;x\x07", "‮gnp.exe".encode()])
def test_a_tensors_name_is_only_a_name(name: bytes, parts: Parts, folder: Path) -> None:
    """It is told so that no terminal obeys it, and no file is ever called by it."""
    more = Told(name, (4,), 0, len(parts.data))
    changed = replace(parts, tensors=[*parts.tensors, more], data=parts.data + bytes(32))
    with pytest.raises(UserError, match="should be absent") as caught:
        open_model(written(folder, changed.encoded()))
    assert str(caught.value).isprintable()
    assert not {"\x1b", "\0", "‮"} & set(str(caught.value))


HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "version 1": ({"version": 1}, "GGUF version 1; 2 and 3 are read"),
    "version 4": ({"version": 4}, "GGUF version 4"),
    "big-endian": ({"version": 3 << 24}, "is big-endian"),
    "2^60 entries": ({"num_entries": 1 << 60}, "1,152,921,504,606,846,976 entries"),
    "2^64 - 1 tensors": ({"num_tensors": 2**64 - 1}, "18,446,744,073,709,551,615 tensors"),
    "one entry more": ({"num_entries": 60}, "."),
    "one tensor more": ({"num_tensors": 21}, "."),
    "a key twice": ({"more_entries": [("general.architecture", entry(STRING, "llama"))]}, "has 'general.architecture' twice"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "told"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies(changes: dict[str, Any], told: str, parts: Parts, folder: Path, refused: Refused) -> None:
    path = written(folder, replace(parts, **changes).encoded())
    with refused(told):
        open_model(path)


def test_cut_anywhere(parts: Parts, folder: Path) -> None:
    """At every byte of the header, but for those of the vocabulary, which are all alike: every 23rd there."""
    whole = parts.encoded()
    end = len(parts.header())
    lengths = {*dense(end), *range(0, end, 23), len(whole) // 2, len(whole) - 1}
    path = written(folder, whole)
    for length in sorted(lengths, reverse=True):
        os.truncate(path, length)
        start = time.process_time()
        with pytest.raises(UserError, match=r"model\.gguf"):
            open_model(path)
        assert time.process_time() - start < A_SECOND, length


def dense(end: int) -> list[int]:
    """Where a header of `end` bytes is not vocabulary."""
    return [at for at in range(end) if at < 900 or at > end - 1400]


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_few_bits_flipped(parts: Parts, folder: Path, data: st.DataObject) -> None:
    """The file is refused, or it is a model that works, if worse: half of the flips are where the sizes and types stand."""
    whole = bytearray(parts.encoded())
    end = len(parts.header())
    anywhere = st.one_of(st.sampled_from(dense(end)), st.integers(0, end - 1), st.integers(0, len(whole) - 1))
    for at, bit in data.draw(st.lists(st.tuples(anywhere, st.integers(0, 7)), min_size=1, max_size=4)):
        whole[at] ^= 1 << bit
    opened(folder, bytes(whole))


@settings(max_examples=100)
@given(st.data())
def test_any_number_anywhere(parts: Parts, folder: Path, data: st.DataObject) -> None:
    """Eight bytes of the header replaced by a number that somebody may not have thought of."""
    whole = bytearray(parts.encoded())
    at = data.draw(st.integers(4, len(parts.header()) - 8))
    number = data.draw(
        st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 32])
        | st.integers(0, 2**64 - 1)
    )
    whole[at : at + 8] = struct.pack("<Q", number)
    opened(folder, bytes(whole))


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes(folder: Path, content: bytes) -> None:
    for start in (b"", b"GGUF\3\0\0\0", b"GGUF\3\0\0\0" + struct.pack("<QQ", 1, 1)):
        with pytest.raises(UserError):
            GgufFile(written(folder, start + content))


def opened(folder: Path, content: bytes) -> None:
    path = written(folder, content)
    start = time.process_time()
    try:
        stored = open_model(path)
    except UserError as error:
        assert str(path) in str(error) or "token" in str(error), error
        assert len(str(error)) < 2000
    else:
        works(stored.load())
        stored.tokenizer.decode(stored.tokenizer.encode("The fox 日本語"))
    assert time.process_time() - start < A_SECOND


def test_all_frequencies_one(parts: Parts, folder: Path, refused: Refused) -> None:
    """Llama 3's factors are solved for by a division; with rope_theta = 1 it is by zero."""
    factors = Told(b"rope_freqs.weight", (2,), 0, len(parts.data))
    changed = replace(
        parts.saying(LLAMA + "rope.freq_base", entry(F32, 1.0)),
        tensors=[*parts.tensors, factors],
        data=parts.data + struct.pack("<ff", 2.0, 3.0) + bytes(24),
    )
    with refused("rope_freqs.weight: is no scaling of Llama 3's kind"):
        open_model(written(folder, changed.encoded()))


@pytest.mark.parametrize("values", [(0.0, 0.0), (math.nan, 1.0), (math.inf, 1.0), (-1.0, 2.0), (1.0, 1e30)])
def test_factors_that_are_none(values: tuple[float, float], parts: Parts, folder: Path, refused: Refused) -> None:
    factors = Told(b"rope_freqs.weight", (2,), 0, len(parts.data))
    raw = struct.pack("<ff", *values) + bytes(24)
    changed = replace(parts, tensors=[*parts.tensors, factors], data=parts.data + raw)
    with refused(r"rope_freqs\.weight"):
        open_model(written(folder, changed.encoded()))


def test_as_many_of_everything_as_is_read(parts: Parts, folder: Path, refused: Refused) -> None:
    """The most tensors, layers, entries and texts that pass the header's own checks take no longer either."""
    told = [Told(f"t{n}".encode(), (1,), 0, 32 * n) for n in range((1 << 14) - 1)]
    told.append(replace(parts.tensors[0], name=b"token_embd.weight", dimensions=(8, 400), offset=32 << 14))
    many = replace(
        parts.saying(LLAMA + "block_count", entry(U32, 1 << 14)),
        tensors=told, data=bytes((32 << 14) + 12_800),
        more_entries=[(f"k{n}", entry(U8, 1)) for n in range((1 << 16) - len(parts.entries))],
    )  # fmt: skip
    with refused("should be"):
        open_model(written(folder, many.encoded()))
    texts = parts.saying("tokenizer.ggml.tokens", array(STRING, text("") * (1 << 20), 1 << 20))
    with refused("1,04"):
        open_model(written(folder, texts.encoded()))


def test_the_file_on_which_the_library_hangs(folder: Path, refused: Refused) -> None:
    """43 bytes that say they hold 2^62 of something small: gguf 0.19 counts to it."""
    content = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + array(U8, b"ab", 1 << 62)
    assert len(content) < 64
    with refused("bytes long"):
        GgufFile(written(folder, content))


def test_what_is_no_file(folder: Path, refused: Refused) -> None:
    places: dict[str, Callable[[Path], object]] = {
        "folder.gguf": lambda path: path.mkdir(),
        "pipe.gguf": os.mkfifo,
        "loop.gguf": lambda path: path.symlink_to(path),
        "zero.gguf": lambda path: path.symlink_to("/dev/zero"),
        "dangling.gguf": lambda path: path.symlink_to(folder / "nowhere"),
        "empty.gguf": lambda path: path.touch(),
    }
    for name, make in places.items():
        make(folder / name)
        for open_it in (open_model, GgufFile):
            with refused(name):
                open_it(folder / name)
    for name in ("x" * 300 + ".gguf", "x\0y.gguf", "x.gguf/"):
        for open_it in (open_model, GgufFile):
            with refused("model"):
                open_it(folder / name)


def test_a_link_is_followed(parts: Parts, folder: Path) -> None:
    """The Hugging Face hub's cache is made of links."""
    (folder / "link.gguf").unlink(missing_ok=True)
    (folder / "link.gguf").symlink_to(written(folder, parts.encoded()))
    assert open_model(folder / "link.gguf").config.num_hidden_layers == 2


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_is_never_opened(protocol: int, folder: Path, tmp_path: Path, refused: Refused) -> None:
    marker = tmp_path / "somebody was here"
    content = pickle.dumps(Trap(marker), protocol)
    with refused("no GGUF file.*pickle" if protocol else "no GGUF file"):
        open_model(written(folder, content))
    with refused("no GGUF file"):
        GgufFile(folder / "model.gguf")
    with pytest.raises(UserError):
        open_model(written(folder, b"GGUF\3\0\0\0" + content))
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists()  # so the trap works


def test_what_the_library_writes_is_read(folder: Path) -> None:
    path = folder / "by the library.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("a", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    assert file.read_rows("a", 1, 2).tolist() == [list(map(float, range(32, 64)))]
    whole = path.read_bytes()
    for length in range(len(whole)):
        with pytest.raises(UserError):
            GgufFile(written(folder, whole[:length]))


HOLLOW = {
    "a terabyte of nothing": b"",
    "a header of nothing": b"GGUF" + struct.pack("<IQQ", 3, 1 << 14, 1 << 16),
    "a text of half a terabyte": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IQ", STRING, 1 << 39),
    "2^37 floats": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + array(F32, b"", 1 << 37),
    "2^39 bools": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + array(BOOL, b"", 1 << 39),
    "2^37 texts": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + array(STRING, b"", 1 << 37),
    "a million texts": b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + text("a") + array(STRING, bytes(8 << 20), 1 << 20) + text("b") + array(STRING, b"", 1),
}  # fmt: skip
LITTLE = 256 << 20

IN_LITTLE_MEMORY = """
import resource, sys, time
from pathlib import Path
from fox.errors import UserError
from fox.formats.gguf.reader import GgufFile
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]), used + int(sys.argv[1])))
for path in sys.argv[2:]:
    start = time.process_time()
    try:
        GgufFile(Path(path))
        print("opened", end=" ")
    except UserError:
        print("refused", end=" ")
    except MemoryError:
        print("memory", end=" ")
    print(time.process_time() - start)
"""


def test_files_with_holes_take_little_memory(parts: Parts, folder: Path) -> None:
    """A file's size bounds nothing: a terabyte of zeros takes no room on the disk."""
    paths = [written(folder, parts.encoded()).rename(folder / "whole.gguf")]
    for name, start in HOLLOW.items():
        path = folder / f"{name}.gguf"
        path.write_bytes(start)
        os.truncate(path, 1 << 40)
        paths.append(path)
    command = [sys.executable, "-c", IN_LITTLE_MEMORY, str(LITTLE), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50)
    results = [line.split() for line in done.stdout.splitlines()]
    assert [result for result, _ in results] == ["opened", *["refused"] * len(HOLLOW)]
    assert all(float(seconds) < A_SECOND for _, seconds in results), results
