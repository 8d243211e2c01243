"""What other people's programs read of an export, and what is left when one ends early: nothing, or all of it."""

from __future__ import annotations

import copy
import fcntl
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fox.artifacts import PARTIAL, alone
from fox.errors import Failure, UserError
from fox.export import export as exporting
from fox.export.export import Request, stored_type
from fox.export.gguf import export_gguf
from fox.export.types import GGUF_TYPES
from fox.model import Transformer
from fox.model.config import RopeScaling
from fox.model.gguf import gguf_name
from fox.model.stored import StoredModel, open_model
from fox.tokenizer import Tokenizer
from tests.unit.export.exporting import exported, ignore

HERE = Path(__file__).parent
LLAMA31 = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)


# A Hugging Face directory


@pytest.mark.parametrize("shard_bytes", [1, 600_000, 10**9])
def test_shards_are_no_larger_than_asked_for_or_hold_one_tensor(
    shard_bytes: int, wide_model: Callable[..., Transformer], store: Callable[..., StoredModel], out: Path
) -> None:
    model = wide_model(tie_word_embeddings=False)
    made = exported(store(model), out / "folder", "hf", "f32", shard_bytes)
    files = sorted((out / "folder").glob("*.safetensors"))
    names: dict[str, str] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118 (no dict)
        assert sum(sizes.values()) <= shard_bytes or len(sizes) == 1
        names |= dict.fromkeys(sizes, path.name)
    assert made.num_bytes >= sum(path.stat().st_size for path in files)
    if shard_bytes == 10**9:
        assert [path.name for path in files] == ["model.safetensors"]
        assert not (out / "folder/model.safetensors.index.json").exists()
    else:
        count = len(files)
        assert [path.name for path in files] == [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
        assert count == len(names) if shard_bytes == 1 else 1 < count < len(names)
        index = json.loads((out / "folder/model.safetensors.index.json").read_text())
        assert index["weight_map"] == names
        assert index["metadata"]["total_size"] == 4 * model.num_parameters()
    theirs = AutoModelForCausalLM.from_pretrained(out / "folder", dtype=torch.float32).eval()
    tokens_BT = torch.randint(0, 416, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted_BTV = model.logits(model(tokens_BT))
        torch.testing.assert_close(theirs(tokens_BT).logits, wanted_BTV, atol=1e-4, rtol=0)
        with pytest.raises(AssertionError):  # the comparison is worth something
            torch.testing.assert_close(theirs(tokens_BT.flip(1)).logits, wanted_BTV, atol=1e-4, rtol=0)


def test_configs_say_what_transformers_needs(wide: StoredModel, own_tokenizer: Tokenizer, out: Path) -> None:
    exported(wide, out / "folder", "hf", "bf16")
    assert {path.name for path in (out / "folder").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "README.md", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    config = json.loads((out / "folder/config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert config["architectures"] == ["LlamaForCausalLM"]
    ends = [own_tokenizer.eos_id, own_tokenizer.special_ids["<|user|>"]]
    generation = GenerationConfig.from_pretrained(out / "folder")
    for said in (config["eos_token_id"], generation.eos_token_id):
        assert said == ends
    assert (generation.bos_token_id, generation.pad_token_id) == (own_tokenizer.bos_id, own_tokenizer.pad_id)
    assert AutoModelForCausalLM.from_pretrained(out / "folder").dtype == torch.bfloat16
    theirs = AutoTokenizer.from_pretrained(out / "folder")
    assert theirs("Naïve 🦊 fox<tool_call>")["input_ids"] == [
        own_tokenizer.bos_id, *own_tokenizer.encode("Naïve 🦊 fox<tool_call>"),
    ]  # fmt: skip
    assert theirs.chat_template == own_tokenizer.config["chat_template"]
    assert open_model(out / "folder").tokenizer.stop_ids == set(ends)


def test_what_begins_a_text_and_ends_replies_does_both_there_and_back(
    wide_model: Callable[..., Transformer], store: Callable[..., StoredModel], own_tokenizer: Tokenizer, out: Path
) -> None:
    """Qwen3's layout: llama.cpp ends replies at <|endoftext|>, which is bos there."""
    assert own_tokenizer.bos_id is not None
    tokenizer = copy.copy(own_tokenizer)
    tokenizer.stop_ids = {tokenizer.eos_id, tokenizer.bos_id}
    exported(store(wide_model(), tokenizer=tokenizer), out / "a.gguf")
    stored = open_model(out / "a.gguf")
    assert tokenizer.bos_id in stored.tokenizer.stop_ids
    exported(stored, out / "folder", "hf")
    again = open_model(out / "folder")
    assert again.tokenizer.stop_ids == stored.tokenizer.stop_ids
    assert not again.warnings


@pytest.mark.parametrize("target", ["hf", "gguf"])
def test_a_weight_too_large_for_float16_is_refused_by_its_name(
    target: str, wide_model: Callable[..., Transformer], store: Callable[..., StoredModel], out: Path
) -> None:
    model = wide_model()
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[0, 0] = 70_000.0
        model.layers[1].mlp.gate_proj.weight[0] = (
            0.0  # nothing comes to it, so that bfloat16's rounding of it shows nowhere
        )
    stored = store(model)
    with pytest.raises(
        UserError, match=r"layers\.1\.mlp\.down_proj\.weight can't be written: .*7e\+04.*--type f32 or bf16"
    ):
        exported(stored, out / "made", target, "f16")
    assert list(out.iterdir()) == []
    exported(stored, out / "made", target, "bf16")


def test_a_type_keeps_a_model_as_it_is_stored(
    wide_model: Callable[..., Transformer], store: Callable[..., StoredModel], out: Path
) -> None:
    for dtype, kind in ((torch.float32, "f32"), (torch.float16, "f16"), (torch.bfloat16, "bf16")):
        assert stored_type(store(wide_model(), dtype)) == kind
    stored = store(wide_model())
    for file_type, kind in (("f16", "f16"), ("q8_0", "f32"), ("q4_k_m", "f32")):
        exported(stored, out / file_type, file_type=file_type)
        assert stored_type(open_model(out / file_type)) == kind


# A GGUF file


@pytest.mark.parametrize("file_type", GGUF_TYPES)
def test_the_gguf_library_reads_every_tensor_as_ours(
    file_type: str, wide_model: Callable[..., Transformer], store: Callable[..., StoredModel], out: Path
) -> None:
    stored = store(wide_model(tie_word_embeddings=False, rope_scaling=LLAMA31))
    exported(stored, out / "a.gguf", file_type=file_type)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(out / "a.gguf").tensors}
    ours = open_model(out / "a.gguf")
    assert theirs.keys() == {"rope_freqs.weight", *map(gguf_name, stored.names)}
    for name in stored.names:
        tensor = theirs[gguf_name(name)]
        assert tensor.shape.tolist() == list(ours.weights.shapes[name])[::-1]
        wanted_OI = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).copy())
        if name.endswith(
            ("q_proj.weight", "k_proj.weight")
        ):  # pairs (2i, 2i + 1) of each head of 64: llama.cpp's order
            wanted_OI = wanted_OI.view(-1, 32, 2, 256).transpose(1, 2).reshape(-1, 256)
        assert torch.equal(ours.tensor(name, torch.float32), wanted_OI.view(ours.weights.shapes[name])), name


EXPECTED = {
    "general.architecture": "llama", "general.name": "wide", "general.file_type": 15, "general.quantization_version": 2,
    "llama.vocab_size": 416, "llama.context_length": 256, "llama.embedding_length": 256, "llama.block_count": 2,
    "llama.feed_forward_length": 512, "llama.rope.dimension_count": 64, "llama.rope.freq_base": 10_000.0,
    "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.attention.key_length": 64,
    "llama.attention.value_length": 64, "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "stablelm2", "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.add_eos_token": False, "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.unknown_token_id": 3, "tokenizer.ggml.eot_token_id": 7,
}  # fmt: skip


def test_the_metadata_that_llama_cpp_reads_are_there(wide: StoredModel, own_tokenizer: Tokenizer, out: Path) -> None:
    exported(wide, out / "a.gguf", file_type="q4_k_m")
    fields = gguf.GGUFReader(out / "a.gguf").fields
    assert {key: fields[key].contents() for key in EXPECTED} == EXPECTED
    assert fields["tokenizer.chat_template"].contents() == own_tokenizer.config["chat_template"]
    tokens, kinds = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type"))
    assert len(tokens) == len(kinds) == 416
    assert tokens[own_tokenizer.vocab_size :] == [f"[PAD{n}]" for n in range(own_tokenizer.vocab_size, 416)]
    assert (kinds[1], kinds[300], kinds[tokens.index("<tool_call>")], kinds[415]) == (3, 1, 4, 5)
    assert all(merge.count(" ") == 1 for merge in fields["tokenizer.ggml.merges"].contents())


LAYOUTS: dict[str, dict[str, Any]] = {
    "Llama 3.1's scaling": {"rope_scaling": LLAMA31, "rope_theta": 500_000.0},
    "Llama 3.2's scaling": {"rope_scaling": RopeScaling("llama3", 32.0, 1.0, 4.0, 8192), "rope_theta": 500_000.0},
    "another's scaling": {"rope_scaling": RopeScaling("llama3", 4.0, 1.0, 3.0, 512)},
    "linear scaling": {"rope_scaling": RopeScaling("linear", 4.0)},
    "qwen3": {"qk_norm": True, "rope_theta": 1e6, "rms_norm_eps": 1e-6},
    "qwen3, stretched": {"qk_norm": True, "rope_scaling": RopeScaling("linear", 2.5)},
    "untied": {"tie_word_embeddings": False},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_config_comes_back_exactly(
    layout: str, wide_model: Callable[..., Transformer], store: Callable[..., StoredModel], out: Path
) -> None:
    model = wide_model(initializer_range=0.02, **LAYOUTS[layout])
    exported(store(model), out / "a.gguf")
    assert open_model(out / "a.gguf").config == model.config
    exported(open_model(out / "a.gguf"), out / "again", "hf")
    assert open_model(out / "again").config == model.config
    fields = gguf.GGUFReader(out / "a.gguf").fields
    architecture = fields["general.architecture"].contents()
    assert architecture == ("qwen3" if model.config.qk_norm else "llama")
    scaling = model.config.rope_scaling
    is_linear = scaling is not None and scaling.kind == "linear"
    assert (f"{architecture}.rope.scaling.type" in fields) is is_linear
    if is_linear:
        assert fields[f"{architecture}.rope.scaling.factor"].contents() == scaling.factor


# What is there already


@pytest.mark.parametrize(
    ("target", "taken"), [("gguf", "made.gguf"), ("gguf", "made.md"), ("hf", "made.gguf"), ("ollama", "made.gguf")]
)
def test_nothing_is_written_over(target: str, taken: str, wide: StoredModel, out: Path) -> None:
    (out / taken).write_text("theirs")
    with pytest.raises(UserError, match=rf"--out = '.*{taken}': is there already"):
        exported(wide, out / "made.gguf", target)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(taken, "theirs")]


def test_a_link_to_nothing_is_there_already(wide: StoredModel, out: Path) -> None:
    (out / "made.gguf").symlink_to("nowhere")
    with pytest.raises(UserError, match="is there already"):
        exported(wide, out / "made.gguf")


@pytest.mark.parametrize("name", [".", "..", "/", ""])
def test_a_folder_for_a_file(name: str, wide: StoredModel) -> None:
    for target in ("gguf", "hf"):
        with pytest.raises(UserError, match="is there already"):
            exported(wide, Path(name), target)


@pytest.mark.parametrize(
    ("name", "card"), [("a.gguf", "a.md"), ("a", "a.md"), ("a-v1.5", "a-v1.5.md"), ("a.md", "a.md.md")]
)
def test_a_card_has_a_name_of_its_own(name: str, card: str, wide: StoredModel, out: Path) -> None:
    exported(wide, out / name)
    assert (out / card).read_text() == "# A card\n"
    assert open_model(out / name).config.hidden_size == 256


def test_a_folder_is_made_for_what_is_to_lie_in_it(wide: StoredModel, out: Path) -> None:
    exported(wide, out / "b/c/a.gguf")
    assert (out / "b/c/a.gguf").is_file()
    (out / "file").write_text("")
    with pytest.raises(UserError, match="is no folder"):
        exported(wide, out / "file/a.gguf")


def test_a_card_that_can_not_be_made_leaves_nothing(wide: StoredModel, out: Path) -> None:
    def fails(_: object) -> str:
        raise Failure("no card")

    for target in ("gguf", "hf"):
        with pytest.raises(Failure, match="no card"):
            exported(wide, out / "made", target, card=fails)
        assert list(out.iterdir()) == []


# Ended early


@pytest.mark.parametrize("target", ["gguf", "hf", "ollama"])
def test_a_file_that_may_not_be_so_large_leaves_nothing(target: str, wide: StoredModel, out: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(Failure, match=r"made.*: is larger than a file may be here"):
            exported(wide, out / "made", target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(out.iterdir()) == []


@pytest.fixture
def small_disk(out: Path) -> Iterator[Path]:
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(out)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no small disk can be mounted here: {made.stderr.strip()}")
    yield out
    subprocess.run(["umount", str(out)], check=True)


@pytest.mark.parametrize("target", ["gguf", "hf", "ollama"])
def test_a_full_disk_leaves_nothing(target: str, wide: StoredModel, small_disk: Path) -> None:
    with pytest.raises(Failure, match="the disk is full"):
        exported(wide, small_disk / "made", target)
    assert list(small_disk.iterdir()) == []


THREE_EXPORTS = """
import os, sys, threading, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from tests.unit.export.exporting import exported
from fox.export import export
from fox.model.stored import open_model

def forever(*_):
    os.write(1, b"written\\n")  # in one piece: print() of three threads may come as one line
    time.sleep(100)

export._through_the_gate = forever
source = open_model(Path(sys.argv[2]))
for target in ("gguf", "hf", "ollama"):
    threading.Thread(target=exported, args=(source, Path(sys.argv[3]) / target, target), daemon=True).start()
time.sleep(100)
"""


@pytest.mark.slow
def test_killed_before_the_gate_nothing_has_its_name_and_the_next_one_goes_through(
    wide: StoredModel, out: Path
) -> None:
    words = [sys.executable, "-c", THREE_EXPORTS, *map(str, (HERE, wide.path, out))]
    with subprocess.Popen(words, cwd=HERE.parents[2], text=True, stdout=subprocess.PIPE) as three:
        assert three.stdout and [three.stdout.readline() for _ in range(3)] == ["written\n"] * 3
        three.kill()
    left = {path.name for path in out.iterdir()}
    assert len(left) >= 3 and all(name.startswith(PARTIAL) for name in left), left
    for target in ("gguf", "hf", "ollama"):
        exported(wide, out / target, target)
    assert {path.name for path in out.iterdir()} == {"gguf", "gguf.md", "hf", "ollama"}


@pytest.mark.parametrize("target", ["gguf", "hf", "ollama"])
def test_of_two_at_once_the_first_wins_and_the_second_says_so(
    target: str, monkeypatch: pytest.MonkeyPatch, wide: StoredModel, out: Path
) -> None:
    through_the_gate = exporting._through_the_gate
    told: list[str] = []

    def meanwhile(*words: Any) -> Any:
        with pytest.raises(Failure) as refused:
            exported(wide, out / "made", target)
        told.append(str(refused.value))
        return through_the_gate(*words)

    monkeypatch.setattr(exporting, "_through_the_gate", meanwhile)
    exported(wide, out / "made", target)
    assert told == [f"{out}/made: another process is writing it. Wait for it, or name another."]
    path = {"gguf": "made", "hf": "made", "ollama": "made/model.gguf"}[target]
    assert open_model(out / path).config.hidden_size == 256
    assert not [path for path in out.iterdir() if path.name.startswith(PARTIAL)]


def test_one_that_waited_at_the_door_while_another_finished_writes_nothing_over(
    monkeypatch: pytest.MonkeyPatch, wide: StoredModel, out: Path
) -> None:
    """Between its first look and its lock."""
    check = Request.check

    def meanwhile(request: Request) -> None:
        check(request)
        monkeypatch.setattr(Request, "check", check)
        request.out.write_text("another's")

    for target in ("gguf", "hf"):
        monkeypatch.setattr(Request, "check", meanwhile)
        with pytest.raises(UserError, match="is there already"):
            exported(wide, out / "made", target)
        assert [path.read_text() for path in out.iterdir()] == ["another's"]
        (out / "made").unlink()


def test_what_lies_at_a_partial_files_name_is_not_written_through(wide: StoredModel, out: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (out / f"{PARTIAL}made").symlink_to(tmp_path / "theirs")
    exported(wide, out / "made")
    assert (tmp_path / "theirs").read_text() == "theirs"
    (out / f"{PARTIAL}again.lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(Failure, match="can't be written"):
        exported(wide, out / "again")


def test_a_lock_that_was_removed_meanwhile_is_no_lock(monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    flock = fcntl.flock

    def after_the_other_ended(descriptor: int, how: int) -> None:
        (out / f"{PARTIAL}made.lock").unlink()
        flock(descriptor, how)

    monkeypatch.setattr("fox.artifacts.fcntl.flock", after_the_other_ended)
    with pytest.raises(Failure, match="another process is writing it"), alone(out / "made"):
        raise AssertionError("it was let in")
    monkeypatch.undo()
    with alone(out / "made"):
        assert [path.name for path in out.iterdir()] == [f"{PARTIAL}made.lock"]
    assert list(out.iterdir()) == []


def test_only_what_is_interleaved_is_read_whole(wide: StoredModel, out: Path) -> None:
    asked: list[str] = []

    class Watched(StoredModel):
        def tensor(self, name: str, dtype: torch.dtype) -> torch.Tensor:
            asked.append(name)
            return super().tensor(name, dtype)

    export_gguf(Watched(wide.path, wide.config, wide.tokenizer, wide.weights), out / "a.gguf", "q8_0", {}, ignore)
    assert asked == [name for name in wide.names if "q_proj" in name or "k_proj" in name]
