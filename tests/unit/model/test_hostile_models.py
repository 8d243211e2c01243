"""A model's folder in which something is hostile: refused by name, within a second and in little memory, and nothing in it is run.

Damage that test_directory.py has already is not repeated here; safetensors and GGUF files are damaged in tests/unit/formats.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fox.errors import UserError
from fox.model import Transformer
from fox.model.directory import load_model, save_model
from fox.model.stored import HEAD, open_model
from fox.tokenizer import Tokenizer

Refused = Callable[[str], contextlib.AbstractContextManager[None]]

pytestmark = pytest.mark.timeout(60)

A_SECOND = 2.0  # of the processor, and one more: machines are shared
FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"]


@pytest.fixture
def folder(tiny_model: Transformer, tiny_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A model that works."""
    save_model(tmp_path / "model", tiny_model, tiny_tokenizer)
    model, _ = load_model(tmp_path / "model")  # also so that no test counts what torch does but once
    assert model.logits(model(torch.tensor([[1, 2, 3]]))).isfinite().all()
    return tmp_path / "model"


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("form", ["pickle", "torch.save", "zip"])
@pytest.mark.parametrize("name", [*FILES, "chat_template.jinja", "special_tokens_map.json"])
def test_a_pickle_in_the_place_of_a_file(name: str, form: str, folder: Path, tmp_path: Path, refused: Refused) -> None:
    marker, path = tmp_path / "somebody was here", folder / name
    if form == "pickle":
        path.write_bytes(pickle.dumps(Trap(marker)))
    elif form == "torch.save":
        torch.save(Trap(marker), path)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", pickle.dumps(Trap(marker)))
    with refused("model|tokenizer"):
        open_model(folder)
    assert not marker.exists()
    if form == "pickle":
        pickle.loads(path.read_bytes())
        assert marker.exists()  # so the trap works


def test_a_pickle_beside_the_weights_is_left_alone(folder: Path, tmp_path: Path, refused: Refused) -> None:
    marker = tmp_path / "somebody was here"
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.pkl", "modeling_fox.py"):
        (folder / name).write_bytes(pickle.dumps(Trap(marker)))
    change(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_fox.Fox"}, trust_remote_code=True)
    load_model(folder)
    (folder / "model.safetensors").unlink()
    with refused("there is no such file. .* is a pickle"):
        open_model(folder)
    assert not marker.exists()


PLACES: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a loop": lambda path: path.symlink_to(path),
    "zeros without end": lambda path: path.symlink_to("/dev/zero"),
    "a hole of a terabyte": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
    "a hole of a gigabyte": lambda path: (path.touch(), os.truncate(path, 1 << 30)),
}


@pytest.mark.parametrize("make", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file(make: Callable[[Path], object], name: str, folder: Path, refused: Refused) -> None:
    (folder / name).unlink()
    make(folder / name)
    with refused("model|tokenizer"):
        open_model(folder)


@pytest.mark.parametrize(
    "name", ["pipe", "/dev/zero", "/dev/null", "/proc/self/mem", "loop", "x" * 300, "x\0y", "", "model/config.json"]
)
def test_a_model_that_is_none(name: str, folder: Path, refused: Refused) -> None:
    os.mkfifo(folder.parent / "pipe")
    (folder.parent / "loop").symlink_to("loop")
    with refused("model"):
        open_model(folder.parent / name)


def test_links_are_followed(folder: Path) -> None:
    """The Hugging Face hub's cache is made of links into a folder of blobs."""
    blobs = folder.parent / "blobs"
    folder.rename(blobs)
    folder.mkdir()
    for number, path in enumerate(sorted(blobs.iterdir())):
        (folder / path.name).symlink_to(path.rename(blobs / str(number)))
    load_model(folder)


def test_a_head_that_is_said_to_be_tied_and_of_another_size(folder: Path, refused: Refused) -> None:
    """It is compared with the embedding row by row, by sizes that config.json may lie about: 2^28 rows took for ever."""
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, HEAD: tensors["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    open_model(folder)
    change(folder / "config.json", vocab_size=1 << 28, hidden_size=1 << 28)
    with refused(r"is \(.*\) and should be"):
        open_model(folder)


def test_thousands_of_layers(folder: Path, refused: Refused) -> None:
    """As many as there are tensors, which is more than any of them has."""
    tensors = {f"t{n}": torch.zeros(1) for n in range(16_000)}
    save_file(tensors, folder / "model.safetensors")
    change(folder / "config.json", num_hidden_layers=16_000)
    with refused("should be"):
        open_model(folder)
    change(folder / "config.json", num_hidden_layers=16_001)
    with refused("num_hidden_layers = 16001: is too many for the 16000 tensors"):
        open_model(folder)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\0b", "\x1b]0;x\x07", "x" * 100_000])
def test_a_tensors_name_is_only_a_name(name: str, folder: Path, refused: Refused) -> None:
    save_file({**load_file(folder / "model.safetensors"), name: torch.zeros(1)}, folder / "model.safetensors")
    with refused("should be absent"):
        open_model(folder)


CONFIGS: dict[str, bytes] = {
    "lists of nothing": b'{"a":[' + b"[]," * 2_000_000 + b"[]]}",
    "a megabyte of lists": b'{"a":[' + b"[]," * 300_000 + b"[]]}",
    "a string of 5 MB": b'{"architectures":["' + b"x" * 5_000_000 + b'"]}',
    "a long architecture": b'{"architectures":["' + b"x" * 1_000_000 + b'"]}',
    "control characters": b'{"architectures":["\\u001b[2J"]}',
    "half a character": b'{"architectures":["\\ud800"]}',
    "objects in objects": b'{"architectures":' * 200_000,
    "UTF-16": '{"architectures":[]}'.encode("utf-16"),
}


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_a_config_of_too_much(content: bytes, folder: Path, refused: Refused) -> None:
    (folder / "config.json").write_bytes(content)
    with refused(r"config\.json"):
        open_model(folder)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    key=st.sampled_from(
        ["architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
         "vocab_size", "intermediate_size", "max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters",
         "rms_norm_eps", "tie_word_embeddings", "layer_types", "eos_token_id", "bos_token_id", "torch_dtype", "other"]
    ),
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["type", "rope_type", "factor", "rope_theta", "low_freq_factor"]) | st.text(max_size=3), inner, max_size=3
        ),
        max_leaves=8,
    ),
)  # fmt: skip
def test_any_value_in_a_config(key: str, value: Any, folder: Path) -> None:
    """It is refused, or the model works."""
    path = folder / "config.json"
    as_it_was = path.read_text()
    try:
        change(path, **{key: value})
        start = time.process_time()
        with contextlib.suppress(UserError):
            model, _ = load_model(folder)
            assert model.logits(model(torch.tensor([[1, 2, 3]]))).shape == (1, 3, 400)
        assert time.process_time() - start < A_SECOND
    finally:
        path.write_text(as_it_was)


TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
PARTS: dict[str, dict[str, Any]] = {
    "a regular expression that is none": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated", "invert": False}},
    "an unknown step": {"pre_tokenizer": {"type": "Shell", "command": "touch /tmp/x"}},
    "pieces of no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a table cut short": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(bytes(4)).decode()}},
    "a table of nothing": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
    "a text that grows to gigabytes": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 34}},
    "a text that grows at once": {"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 1_000_000}},
    "a long beginning": {"normalizer": {"type": "Prepend", "prepend": "a" * 1_000_000}},
    "a thousand steps": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 1000}},
    "a text that grows as it is read back": {"decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 34}},
    "more to strip than there is": {"decoder": {"type": "Strip", "content": "a", "start": 2**62, "stop": 2**62}},
    "a frame without its tokens": {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "Z", "type_id": 0}}], "pair": [], "special_tokens": {}}},
    "the text a thousand times": {"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 1000, "pair": [], "special_tokens": {}}},
    "added tokens without end": {"added_tokens": [{"id": 400 + n, "content": f"<{n}>", **TOKEN} for n in range(20_000)]},
    "normalizers in normalizers": {"normalizer": json.loads('{"type":"Sequence","normalizers":[' * 100 + "]}" * 100)},
    "no model": {"model": None},
    "a model of another kind": {"model": {"type": "Neural"}},
    "an id of 2^32 - 1": {"model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "<|end|>": 2**32 - 1}}},
    "an id of 2^32": {"model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 2**32}}},
    "an id below zero": {"model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": -1}}},
    "merges of nothing": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]}},
}  # fmt: skip


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_tokenizer_that_lies(parts: dict[str, Any], folder: Path, refused: Refused) -> None:
    change(folder / "tokenizer.json", **parts)
    with refused("tokenizer"):
        open_model(folder)


COUNTS = {
    "lists": b'{"normalizer":[' + b"[]," * 2_000_000 + b"[]]}",
    "a vocabulary of a million": json.dumps({"model": {"type": "BPE", "vocab": {f"t{n}": n for n in range(1_000_000)}, "merges": []}}).encode(),
    "merges": json.dumps({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]] * 1_300_000}}).encode(),
    "lists in lists": b"[" * 1_000_000,
    "objects in objects": b'{"model":' * 80_000,
    "no JSON": b"\xff\xfe",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("content", COUNTS.values(), ids=COUNTS)
def test_a_tokenizer_of_too_much(content: bytes, folder: Path, refused: Refused) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with refused("tokenizer"):
        open_model(folder)


@pytest.mark.parametrize(
    "parts",
    [
        {"padding": {"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}},
        {"truncation": {"strategy": "LongestFirst", "direction": "Right", "max_length": 3, "stride": 50}},
        {"truncation": {"strategy": "LongestFirst", "direction": "Right", "max_length": 3, "stride": 0}},
    ],
)  # fmt: skip
def test_texts_are_neither_padded_nor_cut(parts: dict[str, Any], folder: Path, tiny_tokenizer: Tokenizer) -> None:
    """As some released tokenizers would have it; 2^40 places of padding ended the process."""
    change(folder / "tokenizer.json", **parts)
    text = "The fox ran over the lazy dog"
    assert len(ids := Tokenizer.load(folder).encode(text)) > 3
    assert ids == tiny_tokenizer.encode(text)


def test_a_regular_expression_that_tries_for_ever(folder: Path, refused: Refused) -> None:
    """It is legal, so it shows at the text that it can't cut."""
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    change(folder / "tokenizer.json", pre_tokenizer=pattern)
    tokenizer = Tokenizer.load(folder)
    with refused("can't encode this text.*retry-limit"):
        tokenizer.encode("a" * 50 + "b")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_file_damaged(data: st.DataObject, folder: Path) -> None:
    """Bits flipped or an end cut off in any file: it is refused, or the model works."""
    path = folder / data.draw(st.sampled_from(FILES))
    as_it_was = path.read_bytes()
    raw = bytearray(as_it_was)
    near = min(len(raw), 3000) - 1  # of the weights, the header
    for at, bit in data.draw(st.lists(st.tuples(st.integers(0, near), st.integers(0, 7)), min_size=1, max_size=3)):
        raw[at] ^= 1 << bit
    try:
        path.write_bytes(raw[: data.draw(st.none() | st.integers(0, len(raw)))])
        start = time.process_time()
        with contextlib.suppress(UserError):
            model, tokenizer = load_model(folder)
            assert model.logits(model(torch.tensor([[1, 2, 3]]))).shape == (1, 3, 400)
            with contextlib.suppress(UserError):
                tokenizer.decode(tokenizer.encode("The fox 日本語"))
        assert time.process_time() - start < A_SECOND
    finally:
        path.write_bytes(as_it_was)


def test_the_check_notices_what_takes_too_much(refused: Refused) -> None:
    def too_much() -> None:
        taken = b"x" * (300 << 20)
        raise UserError("model", len(taken), problem="is large")

    with pytest.raises(AssertionError), refused("is large"):
        too_much()
    with refused("is large"):
        raise UserError("model", problem="is large")
