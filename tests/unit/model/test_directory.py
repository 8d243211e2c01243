"""Model directories come back as written, and hostile ones are refused by name, fast, whatever they claim."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fox.engine.conversation import Conversation
from fox.engine.sampler import Sampling
from fox.errors import UserError
from fox.model import Transformer
from fox.model.directory import load_model, save_model
from fox.model.stored import open_model
from fox.tokenizer import Tokenizer

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def folder(tiny_model: Transformer, tiny_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save_model(tmp_path / "model", tiny_model, tiny_tokenizer)
    return tmp_path / "model"


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not LEFT_OUT}))


LEFT_OUT = object()


@pytest.mark.parametrize("tied", [True, False])
def test_as_written(
    tied: bool, make_model: Callable[..., Transformer], tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = make_model(tie_word_embeddings=tied, rope_theta=777.0)
    save_model(tmp_path / "model", model, tiny_tokenizer)
    again, tokenizer = load_model(tmp_path / "model")
    assert again.config == model.config
    assert tokenizer.special_ids == tiny_tokenizer.special_ids
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    assert ("lm_head.weight" in load_file(tmp_path / "model" / "model.safetensors")) is not tied


def test_special_ids_are_the_tokenizers_whatever_the_config_says(folder: Path) -> None:
    """The released Fox-1 config.json has bos and eos swapped (FOX1.md)."""
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 1
    change_config(folder, bos_token_id=1, eos_token_id=2)
    _, tokenizer = load_model(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (2, 1)


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", ["MistralForCausalLM"]),
        ("architectures", ["LlamaForCausalLM", "MistralForCausalLM"]),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", []),
        ("architectures", {"a": 1}),
        ("architectures", LEFT_OUT),
        ("architectures", ["Qwen2ForCausalLM"]),
        ("rope_scaling", {"rope_type": "dynamic", "factor": 8.0}),
        ("rope_scaling", {"type": "longrope", "factor": 2.0}),
        ("rope_scaling.low_freq_factor", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_scaling.factor", {"type": "linear"}),
        ("rope_scaling.factor", {"type": "linear", "factor": 0}),
        ("rope_scaling", LLAMA3 | {"high_freq_factor": 1.0}),
        ("rope_scaling.original_max_position_embeddings", LLAMA3 | {"original_max_position_embeddings": 1.5}),
        ("rope_scaling.partial_rotary_factor", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("rope_scaling", "yarn"),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("layer_types", ["full_attention"] * 2),
        ("model_type", "mistral"),
        ("rope_theta", None),
        ("rope_parameters.attention_factor", {"rope_type": "default", "attention_factor": 2.0}),
        ("rope_parameters.full_attention", {"full_attention": {"rope_type": "default"}}),
        ("use_sliding_window", True),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
        ("rope_parameters", [1]),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("hidden_act", "gelu"),
        ("attention_dropout", 0.1),
        ("attention_dropout", "none"),
        ("quantization_config", {"quant_method": "gptq"}),
        *[(key, wrong) for key in ("vocab_size", "num_hidden_layers", "head_dim") for wrong in (0, -1, 1.5, "3", [3], True, 10**30)],
        ("num_key_value_heads", 10**9),
        ("max_position_embeddings", 10**9),
        ("hidden_size", 2**28 + 1),
        ("vocab_size", None),
        ("hidden_size", LEFT_OUT),
        *[("rope_theta", wrong) for wrong in (0, -1.0, "1e4", float("nan"), float("inf"), 10**400)],
        ("rms_norm_eps", float("nan")),
        ("initializer_range", -1),
        ("tie_word_embeddings", "yes"),
    ],
)  # fmt: skip
def test_a_config_is_refused_by_the_name_of_what_is_wrong(key: str, value: object, folder: Path) -> None:
    change_config(folder, **{key.partition(".")[0]: value})
    with pytest.raises(UserError, match=rf"config\.json  {key}(:| = )"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling .* is not what rope_parameters says"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_theta .* is not 1000000.0, as rope_parameters says"),
        ({"rope_scaling": LLAMA3, "original_max_position_embeddings": 4096}, "original_max_position_embeddings = 4096: is not what rope_scaling says"),
    ],
)  # fmt: skip
def test_places_that_contradict_each_other_are_refused(changes: dict[str, Any], told: str, folder: Path) -> None:
    change_config(folder, **changes)
    with pytest.raises(UserError, match=told):
        load_model(folder)


def test_ends_in_a_list_all_end_a_reply_also_one_that_pads(folder: Path) -> None:
    """Qwen3's layout: eos <|im_end|>, pad <|endoftext|>, and both in generation_config.json."""
    other, pad = 5, 0
    eos = load_model(folder)[1].eos_id
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [eos, other, pad]}))
    stored = open_model(folder)
    assert stored.tokenizer.stop_ids == {eos, other, pad}
    assert not stored.warnings


@pytest.mark.parametrize("place", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("states_bos", [True, False])
def test_a_beginning_that_its_config_calls_an_end_ends_a_reply_too(place: str, states_bos: bool, folder: Path) -> None:
    """Qwen3's layout with bos <|endoftext|>, which both begins a text and ends one."""
    bos, eos = (load_model(folder)[1].bos_id, load_model(folder)[1].eos_id)
    assert bos is not None and bos != eos
    for name in ("config.json", "generation_config.json"):
        written = json.loads((folder / name).read_text())
        ends = {"eos_token_id": [eos, bos] if name == place else eos, "bos_token_id": bos if states_bos else None}
        (folder / name).write_text(json.dumps({**written, **ends}))
    stored = open_model(folder)
    assert stored.tokenizer.stop_ids == {eos, bos}
    assert not stored.warnings


def test_a_swapped_config_is_believed_no_more_where_another_is_right(folder: Path) -> None:
    """As the released Fox-1's would be, had its generation_config.json been mended alone."""
    bos, eos = (load_model(folder)[1].bos_id, load_model(folder)[1].eos_id)
    for name, pair in (("config.json", (eos, bos)), ("generation_config.json", (bos, eos))):
        written = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**written, "bos_token_id": pair[0], "eos_token_id": pair[1]}))
    stored = open_model(folder)
    assert stored.tokenizer.stop_ids == {eos}
    assert "the tokenizer's are used" in stored.warnings[0]


def test_what_qwen3_leaves_out_is_as_transformers_has_it(
    make_model: Callable[..., Transformer], tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_model(tmp_path / "qwen", make_model(qk_norm=True, head_dim=128, rms_norm_eps=1e-6), tiny_tokenizer)
    change_config(tmp_path / "qwen", head_dim=LEFT_OUT, rms_norm_eps=LEFT_OUT)
    config = load_model(tmp_path / "qwen")[0].config
    assert (config.head_dim, config.rms_norm_eps) == (128, 1e-6)


@pytest.mark.parametrize("changes", [{"num_key_value_heads": 3}, {"head_dim": 7}, {"head_dim": 1 << 27}])
def test_shapes_that_no_model_has(changes: dict[str, int], folder: Path) -> None:
    change_config(folder, **changes)
    with pytest.raises(UserError, match="no model can have"):
        load_model(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 2},
        {"num_hidden_layers": 4},
        {"num_hidden_layers": 28},
        {"num_hidden_layers": 10**6},
        {"num_hidden_layers": 1 << 28},
        {"vocab_size": 401},
        {"vocab_size": 1 << 28, "hidden_size": 1 << 28, "intermediate_size": 1 << 28, "head_dim": 1 << 26},
        {"num_key_value_heads": 4},
        {"tie_word_embeddings": False},
    ],
)
def test_weights_that_do_not_fit_the_config(changes: dict[str, Any], folder: Path) -> None:
    change_config(folder, **changes)
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(folder)


def test_a_context_of_any_length_takes_no_memory_before_it_is_used(folder: Path) -> None:
    change_config(folder, max_position_embeddings=1 << 28)
    conversation = Conversation(*load_model(folder))
    assert "".join(conversation.reply("Hi", Sampling(), 5))


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", b"\xff\xfe", "[" * 100_000, '{"a":' * 100_000, '{"vocab_size": ' + "9" * 5000 + "}"],
)
def test_a_config_that_is_no_json_object(content: str | bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"can't be read|no JSON object"):
        load_model(folder)


def test_no_model_directory(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no model directory.*config\.json"):
        load_model(folder.parent)
    (folder.parent / "some.gguf").touch()
    with pytest.raises(UserError, match=f"Name the file in it: {folder.parent}/some.gguf"):
        load_model(folder.parent)


def header(raw: bytes, **changes: Any) -> bytes:
    """A safetensors file with its header changed and its data as they were."""
    (length,) = struct.unpack("<Q", raw[:8])
    changed = json.dumps({**json.loads(raw[8 : 8 + length]), **changes}).encode()
    return struct.pack("<Q", len(changed)) + changed + raw[8 + length :]


NORM = "model.norm.weight"
HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "only a length": lambda raw: raw[:8],
    "cut within the header": lambda raw: raw[:100],
    "cut within the data": lambda raw: raw[:-1],
    "longer than it says": lambda raw: raw + b"\0",
    "a header without end": lambda raw: struct.pack("<Q", 2**63) + raw[8:],
    "a header of 99 MB": lambda raw: struct.pack("<Q", 99_000_000) + raw[8:],
    "no JSON": lambda raw: struct.pack("<Q", 4) + b"{{{{",
    "lists in lists": lambda raw: struct.pack("<Q", 90_000) + b"[" * 90_000,
    "data beyond the end": lambda raw: header(raw, **{NORM: {"dtype": "F32", "shape": [32], "data_offsets": [0, 2**40]}}),
    "data before the start": lambda raw: header(raw, **{NORM: {"dtype": "F32", "shape": [32], "data_offsets": [-128, 0]}}),
    "a shape larger than its data": lambda raw: header(raw, **{NORM: {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 128]}}),
    "a type of its own": lambda raw: header(raw, **{NORM: {"dtype": "F999", "shape": [32], "data_offsets": [0, 128]}}),
}  # fmt: skip


@pytest.mark.parametrize("damage", HOSTILE.values(), ids=HOSTILE)
def test_damaged_weights(damage: Callable[[bytes], bytes], folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"model\.safetensors'?: is damaged"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop(NORM), rf"{NORM} is missing and should be \(32,\) \(1 tensors"),
        (lambda tensors: tensors.update(more=torch.zeros(2)), r"more is \(2,\) and should be absent"),
        (lambda tensors: tensors.update({NORM: torch.zeros(33)}), rf"{NORM} is \(33,\) and should be \(32,\)"),
        (lambda tensors: tensors.update({NORM: torch.zeros(1, 32)}), rf"{NORM} is \(1, 32\)"),
        (
            lambda tensors: tensors.update({NORM: torch.zeros(32, dtype=torch.int8)}),
            rf"{NORM} as I8, which is not supported",
        ),
    ],
)
def test_other_tensors_than_the_models(
    change: Callable[[dict[str, torch.Tensor]], object], told: str, folder: Path
) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=told):
        load_model(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="there is no such file"):
        load_model(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"index\.json.*can't be read"):
        load_model(folder)
    (folder / "model.safetensors").mkdir()
    with pytest.raises(UserError, match="is damaged"):
        load_model(folder)


def test_a_tokenizer_that_does_not_fit(
    make_model: Callable[..., Transformer], tiny_tokenizer: Tokenizer, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="tokenizer = 400: has more entries than the model's vocab_size = 399"):
        save_model(tmp_path / "other", make_model(vocab_size=399), tiny_tokenizer)
    assert not (tmp_path / "other").exists()
    change_config(folder, vocab_size=399)
    with pytest.raises(UserError, match="tokenizer = 400: has more entries"):
        load_model(folder)


def test_a_tokenizer_without_an_end(tiny_model: Transformer, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    endless = Tokenizer(tiny_tokenizer.backend, {**tiny_tokenizer.config, "eos_token": None})
    with pytest.raises(UserError, match="eos_token: is missing"):
        save_model(tmp_path / "model", tiny_model, endless)


def test_a_model_larger_than_this_machine_s_memory_is_refused_before_its_weights_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = open_model(folder)
    monkeypatch.setattr("fox.model.stored.machine_bytes", lambda: 4 * stored.num_parameters() - 1)
    monkeypatch.setattr(stored.weights, "read_rows", None)
    with pytest.raises(UserError, match=r"takes .* GB of memory, and this machine has .* GB"):
        stored.load()
    monkeypatch.undo()
    for enough in (4 * stored.num_parameters(), 0):  # 0 where a system doesn't tell
        monkeypatch.setattr("fox.model.stored.machine_bytes", lambda enough=enough: enough)
        stored.load()
