"""The gate lets a good export of every type pass, stops whatever is wrong with one, and leaves nothing of what it stops."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import AddedToken
from torch import Tensor

from fox.errors import Failure, UserError
from fox.export import gate
from fox.export.gate import STEPS, check_chats, check_config, check_tensors, check_tokenizer
from fox.export.types import GGUF_TYPES
from fox.formats.gguf.block_types import BLOCK_TYPES, BlockType
from fox.formats.gguf.dequantize import dequantize
from fox.formats.gguf.quantize import quantize
from fox.model import Transformer
from fox.model.config import ModelConfig, RopeScaling
from fox.model.gguf import gguf_name
from fox.model.stored import StoredModel
from fox.tokenizer import Tokenizer
from fox.tokenizer.to_gguf import tokenizer_to_gguf
from tests.unit.export.exporting import exported

Damage = Callable[[pytest.MonkeyPatch], None]
LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)


# What is good passes


@pytest.mark.parametrize("file_type", GGUF_TYPES)
def test_a_good_file_of_every_type_passes(file_type: str, wide: StoredModel, out: Path) -> None:
    made = exported(wide, out / "a.gguf", file_type=file_type)
    assert {path.name for path in out.iterdir()} == {"a.gguf", "a.md"}
    assert made.num_bytes == (out / "a.gguf").stat().st_size
    assert made.texts > 50
    mean_kl = made.agreement.kl_N.mean().item()
    bound = gate.BOUNDS[file_type].mean_kl
    assert mean_kl <= bound / 3, "of a model like this, far from the bound"
    assert (mean_kl == 0) is (file_type == "f32")


@pytest.mark.parametrize("file_type", ["f32", "bf16", "f16"])
def test_a_good_folder_of_every_type_passes(file_type: str, wide: StoredModel, out: Path) -> None:
    made = exported(wide, out / "folder", "hf", file_type)
    assert made.num_bytes > (out / "folder/model.safetensors").stat().st_size
    assert [path.name for path in out.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    "layout",
    [{"tie_word_embeddings": False}, {"qk_norm": True}, {"rope_scaling": LLAMA3}, {"rope_scaling": RopeScaling("linear", 4.0)}],
    ids=["untied", "query-key norm", "stretched as Llama 3", "stretched evenly"],
)  # fmt: skip
def test_other_layouts_pass(
    layout: dict[str, Any], wide_model: Callable[..., Transformer], store: Callable[..., StoredModel], out: Path
) -> None:
    exported(store(wide_model(**layout)), out / "a.gguf", file_type="q4_k_m")


@pytest.mark.slow
def test_a_model_that_was_rounded_before_passes_again(wide: StoredModel, out: Path) -> None:
    """As SmolLM2's of Ollama: from blocks of one type to blocks of another, and to itself."""
    from fox.model.stored import open_model

    exported(wide, out / "q4_1.gguf", file_type="q4_1")
    rounded = open_model(out / "q4_1.gguf")
    for file_type in ("f32", "f16", "q4_1", "q4_0", "q4_k_m"):
        exported(rounded, out / f"{file_type}-again.gguf", file_type=file_type)


# Damages: by what the exporter writes, so that the file is whole, and wrong


def metadata(**changes: Any) -> Damage:
    """Another shape or constant in the file."""

    def damage(monkeypatch: pytest.MonkeyPatch) -> None:
        from fox.model.gguf import config_to_gguf

        def wrong(config: ModelConfig) -> dict[str, Any]:
            values = config_to_gguf(config)
            assert all(f"llama.{key}" in values for key in changes)
            return {**values, **{f"llama.{key}": value for key, value in changes.items()}}

        monkeypatch.setattr("fox.export.gguf.config_to_gguf", wrong)

    return damage


def tokens(change: Callable[[dict[str, Any], Tokenizer], None]) -> Damage:
    """Another tokenizer in the file."""

    def damage(monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
            values: dict[str, Any] = dict(tokenizer_to_gguf(tokenizer, vocab_size))
            change(values, tokenizer)
            return values

        monkeypatch.setattr("fox.export.gguf.tokenizer_to_gguf", wrong)

    return damage


def saying(key: str, value: Any) -> Damage:
    def change(values: dict[str, Any], _: Tokenizer) -> None:
        full = f"tokenizer.{key}"
        assert values[full] != value
        values[full] = value

    return tokens(change)


def kind_of(token: str, kind: int) -> Damage:
    def change(values: dict[str, Any], tokenizer: Tokenizer) -> None:
        token_id = tokenizer.backend.token_to_id(token)
        assert values["tokenizer.ggml.token_type"][token_id] != kind
        values["tokenizer.ggml.token_type"][token_id] = kind

    return tokens(change)


def without_half_of_the_merges(values: dict[str, Any], _: Tokenizer) -> None:
    values["tokenizer.ggml.merges"] = values["tokenizer.ggml.merges"][::2]


def without_the_second_end(values: dict[str, Any], _: Tokenizer) -> None:
    del values["tokenizer.ggml.eot_token_id"]


def without_a_template(values: dict[str, Any], _: Tokenizer) -> None:
    del values["tokenizer.chat_template"]


def two_tokens_swapped(values: dict[str, Any], tokenizer: Tokenizer) -> None:
    names, ids = values["tokenizer.ggml.tokens"], tokenizer.encode(" fox dog")[:2]
    names[ids[0]], names[ids[1]] = names[ids[1]], names[ids[0]]


def swapped(one: str, other: str) -> Damage:
    """Two tensors of the same shape in each other's place."""
    names = {one: gguf_name(other), other: gguf_name(one)}

    def damage(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fox.export.gguf.gguf_name", lambda name: names.get(name) or gguf_name(name))

    return damage


def weights(part: str, change: Callable[[Tensor], Tensor]) -> Damage:
    """Tensors with `part` in their name, changed as they are written."""

    def damage(monkeypatch: pytest.MonkeyPatch) -> None:
        from fox.export.rows import encoded_rows

        def wrong(stored: StoredModel, name: str, chunks: Iterable[Tensor], *others: Any) -> Iterator[Tensor]:
            return encoded_rows(stored, name, (change(c) for c in chunks) if part in name else chunks, *others)

        for module in ("gguf", "huggingface"):
            monkeypatch.setattr(f"fox.export.{module}.encoded_rows", wrong)

    return damage


def not_permuted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fox.export.gguf.interleave", lambda weight_OI, head_dim: weight_OI)


def q_not_permuted(monkeypatch: pytest.MonkeyPatch) -> None:
    from fox.model.gguf import is_interleaved

    monkeypatch.setattr(
        "fox.export.gguf.is_interleaved", lambda config, name: "k_proj" in name and is_interleaved(config, name)
    )


def one_bit(weight_RC: Tensor) -> Tensor:
    changed_RC = weight_RC.float().clone()
    changed_RC[3, 5] = torch.nextafter(changed_RC[3, 5], torch.tensor(9.0))
    return changed_RC


GATE, UP = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "two tensors swapped": (swapped(GATE, UP), "gate_proj"),
    "two blocks' norms swapped": (swapped("model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight"), "norm"),
    "heads not permuted": (not_permuted, "q_proj"),
    "queries not permuted": (q_not_permuted, "q_proj"),
    "a block of zeros": (weights("layers.1.", torch.zeros_like), "layers.1."),
    "rows reversed": (weights("layers.1.mlp.down_proj", lambda w: w.flip(0)), "down_proj"),
    "transposed": (weights("layers.0.self_attn.o_proj", lambda w: w.T), "o_proj"),
    "a norm a little off": (weights("layers.0.post_attention_layernorm", lambda w: w * 1.001), "post_attention_layernorm"),
    "a norm less one": (weights("model.norm", lambda w: w - 1), "model.norm"),
    "weights twice as large": (weights("layers.0.self_attn.v_proj", lambda w: w * 2), "v_proj"),
    "another base of the rotation": (metadata(**{"rope.freq_base": 10_500.0}), "rope_theta = 10500"),
    "another epsilon": (metadata(**{"attention.layer_norm_rms_epsilon": 1e-6}), "rms_norm_eps = 1e-06"),
    "a longer context": (metadata(context_length=512), "max_position_embeddings = 512"),
    "other key heads": (metadata(**{"attention.head_count": 2, "attention.head_count_kv": 1, "attention.key_length": 128, "attention.value_length": 128, "rope.dimension_count": 128}), "num_attention_heads = 2"),
    "another end": (saying("ggml.eos_token_id", 2), "eos_id = 2"),
    "another beginning": (saying("ggml.bos_token_id", 3), "bos_id = 3"),
    "another padding": (saying("ggml.padding_token_id", 3), "pad_id = 3"),
    "no second end": (tokens(without_the_second_end), "end at"),
    "no <bos> first": (saying("ggml.add_bos_token", False), "adds_bos"),
    "merges are missing": (tokens(without_half_of_the_merges), "makes"),
    "no merges": (saying("ggml.merges", ["a b"]), "makes|merge"),
    "text cut into other words": (saying("ggml.pre", "gpt-2"), "makes"),
    "merges that are minded": (saying("ggml.pre", "qwen2"), "makes"),
    "a token of text is none": (kind_of("<tool_call>", 1), "makes"),
    "a token of text is special": (kind_of("<tool_call>", 3), "makes|special"),
    "a special token of text": (kind_of("<|assistant|>", 4), "makes|special"),
    "a special token is none": (kind_of("<|assistant|>", 1), r"'<\|assistant\|>' is no special token"),
    "two tokens swapped": (tokens(two_tokens_swapped), "makes|reads|merge"),
    "another chat template": (saying("chat_template", "{{ messages[0].content }}"), "chat template"),
    "no chat template": (tokens(without_a_template), "chat template"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "told"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_stopped_and_nothing_is_left(
    damage: Damage, told: str, monkeypatch: pytest.MonkeyPatch, wide: StoredModel, out: Path
) -> None:
    damage(monkeypatch)
    with pytest.raises(Failure, match=rf"a\.gguf: not kept, for it did not pass the gate: .*({told})") as stopped:
        exported(wide, out / "a.gguf", file_type="q4_0")  # the type that may be furthest from its source
    assert stopped.value.exit_code == 1
    assert list(out.iterdir()) == []


def few_rows(change: Callable[[Tensor], Tensor], *rows: int) -> Callable[[Tensor], Tensor]:
    """Some rows changed, and all the others as they were."""

    def changed(weight_RC: Tensor) -> Tensor:
        changed_RC = weight_RC.float().clone()
        changed_RC[list(rows)] = change(changed_RC[list(rows)])
        return changed_RC

    return changed


def one_block(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The second half of one row of 512."""
    return few_rows(lambda w_RC: torch.cat((w_RC[:, :256], change(w_RC[:, 256:])), dim=1), 100)


FEW_ROWS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "some words are zero": ("embed_tokens", few_rows(torch.zeros_like, 300, 301, 350)),
    "two words swapped": ("embed_tokens", few_rows(lambda w: w.flip(0), 300, 301)),
    "one word negated": ("embed_tokens", few_rows(torch.neg, 300)),
    "a part of a gate is zero": ("layers.1.mlp.gate_proj", few_rows(torch.zeros_like, *range(40))),
    "one row of a gate is twice as large": ("layers.1.mlp.gate_proj", few_rows(lambda w: w * 2, 511)),
    "four rows of keys in others' place": ("layers.1.self_attn.k_proj", few_rows(lambda w: w.roll(4, 0), *range(8))),
    "one block of a row is zero": ("layers.0.mlp.down_proj", one_block(torch.zeros_like)),
}


@pytest.mark.parametrize("file_type", ["q4_k_m", "q5_0"])
@pytest.mark.parametrize(("part", "change"), FEW_ROWS.values(), ids=FEW_ROWS)
def test_a_few_wrong_rows_are_stopped(
    part: str, change: Callable[[Tensor], Tensor], file_type: str, monkeypatch: pytest.MonkeyPatch, wide: StoredModel,
    out: Path,
) -> None:  # fmt: skip
    """The rest of the tensor is right, and large."""
    weights(part, change)(monkeypatch)
    with pytest.raises(Failure, match=rf"{part}\.weight is not as it was"):
        exported(wide, out / "a.gguf", file_type=file_type)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("target", ["hf", "ollama"])
def test_nothing_is_left_of_a_damaged_folder(
    target: str, monkeypatch: pytest.MonkeyPatch, wide: StoredModel, out: Path
) -> None:
    weights("layers.1.mlp.up_proj", one_bit)(monkeypatch)
    with pytest.raises(Failure, match=r"up_proj\.weight is not as it was"):
        exported(wide, out / "folder", target)
    assert list(out.iterdir()) == []


def other_eps(folder: Path, config: dict[str, Any], dtype: str, advised: object) -> None:
    from fox.formats.huggingface import write_configs

    write_configs(folder, {**config, "rms_norm_eps": 1e-6}, dtype)


def no_second_end(folder: Path, config: dict[str, Any], dtype: str, advised: object) -> None:
    from fox.formats.huggingface import write_configs

    write_configs(folder, {**config, "eos_token_id": 1}, dtype)


@pytest.mark.parametrize(("write", "told"), [(other_eps, "rms_norm_eps"), (no_second_end, "end at")])
def test_a_folder_with_another_config_is_stopped(
    write: Callable[..., None], told: str, monkeypatch: pytest.MonkeyPatch, wide: StoredModel, out: Path
) -> None:
    monkeypatch.setattr("fox.export.huggingface.write_configs", write)
    with pytest.raises(Failure, match=told):
        exported(wide, out / "folder", "hf")
    assert list(out.iterdir()) == []


def test_lost_scaling_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
    wide_model: Callable[..., Transformer],
    store: Callable[..., StoredModel],
    out: Path,
) -> None:
    stored = store(wide_model(rope_scaling=LLAMA3))
    monkeypatch.setattr("fox.export.gguf.rope_factors", lambda config: None)
    with pytest.raises(Failure, match="rope_scaling = None"):
        exported(stored, out / "a.gguf", file_type="q4_0")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "file_type", "wrong"),
    [("gguf", "f32", float("nan")), ("hf", "bf16", float("inf")), ("ollama", "f16", float("nan")), ("gguf", "q4_k_m", float("-inf"))],
)  # fmt: skip
def test_a_source_of_no_numbers_is_refused(
    target: str, file_type: str, wrong: float, wide_model: Callable[..., Transformer],
    store: Callable[..., StoredModel], out: Path,
) -> None:  # fmt: skip
    model = wide_model()
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[3, 5] = wrong
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight has weights that are NaN or infinite"):
        exported(store(model), out / "made", target, file_type)
    assert list(out.iterdir()) == []


# Rounding


def coarser(weight_RC: Tensor, kind: str) -> Tensor:
    """Rounded to every second of the values that the type can hold, so that errors are twice as large."""
    if kind in ("F16", "BF16"):
        lost = 14 if kind == "F16" else 17
        bits_RC = weight_RC.view(torch.int32)
        return ((bits_RC + (1 << (lost - 1))) >> lost << lost).view(torch.float32)
    weight_NB = weight_RC.reshape(-1, 32)
    low_N1, high_N1 = weight_NB.amin(1, keepdim=True), weight_NB.amax(1, keepdim=True)
    symmetric = kind in ("Q8_0", "Q4_0", "Q5_0")
    first_N1 = torch.zeros_like(low_N1) if symmetric else low_N1
    step_N1 = 2 * (torch.maximum(-low_N1, high_N1) if symmetric else high_N1 - low_N1) / STEPS[kind]
    return (((weight_NB - first_N1) / step_N1).round() * step_N1 + first_N1).view_as(weight_RC)


@pytest.mark.parametrize("file_type", ["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_an_error_twice_as_large_as_roundings_is_stopped(
    file_type: str, monkeypatch: pytest.MonkeyPatch, wide: StoredModel, out: Path
) -> None:
    weights("mlp.up_proj", lambda weight_RC: coarser(weight_RC.float(), file_type.upper()))(monkeypatch)
    with pytest.raises(Failure, match=r"up_proj\.weight is not as it was: a weight is further off than rounding to"):
        exported(wide, out / "a.gguf", file_type=file_type)
    assert list(out.iterdir()) == []


def test_a_type_that_searches_may_be_four_times_worse_and_not_six(
    monkeypatch: pytest.MonkeyPatch, wide: StoredModel, out: Path
) -> None:
    """Q4_K's bound leaves room for outliers: what it stops is what is wrong, not what is poor."""
    noise = torch.Generator().manual_seed(0)
    with monkeypatch.context() as patched:
        weights("mlp.up_proj", lambda w: w + 0.45 * w.std() * torch.randn(w.shape, generator=noise))(patched)
        with pytest.raises(Failure, match=r"an error of 0\.5.* and Q4_K may have 0\.4"):
            exported(wide, out / "a.gguf", file_type="q4_k_m")
    weights("mlp.up_proj", lambda w: w + 0.25 * w.std() * torch.randn(w.shape, generator=noise))(monkeypatch)
    exported(wide, out / "a.gguf", file_type="q4_k_m")


_normal = torch.randn(500, 256, generator=torch.Generator().manual_seed(0))
_sparse = torch.rand(500, 256, generator=torch.Generator().manual_seed(1))
HARD_WEIGHTS = {
    "normal": _normal,
    "very small": _normal * 1e-9,
    "small": _normal * 1e-6,
    "large": _normal * 1000,
    "with outliers": _normal + 1000 * (_sparse < 0.001),
    "mostly zero": _normal * (_sparse < 0.05),
    "some rows zero": _normal * (torch.arange(500) % 5 > 0)[:, None],
    "rows of all sizes": _normal * torch.logspace(-12, 2, 500)[:, None],
    "blocks with one outlier": _normal + 64 * (torch.arange(256) == 3),
    "zero": _normal * 0,
    "on few values": (_normal * 4).round() / 4,
    "far from zero": _normal.abs() + 5,
    "heavy-tailed": (_normal / _normal.flip(0)).clamp(-6e4, 6e4),
}


@pytest.mark.parametrize("kind", [*gate.HALF_UNIT, *STEPS])
@pytest.mark.parametrize("weight_RC", HARD_WEIGHTS.values(), ids=HARD_WEIGHTS)
def test_true_rounding_is_never_stopped(weight_RC: Tensor, kind: str) -> None:
    of: BlockType = BLOCK_TYPES[kind]
    error_RC = (dequantize(quantize(weight_RC, of), of) - weight_RC).abs()
    assert (error_RC <= gate._allowed(weight_RC, kind)).all()


@pytest.mark.parametrize("kind", gate.WORST_ERROR)
@pytest.mark.parametrize("weight_RC", HARD_WEIGHTS.values(), ids=HARD_WEIGHTS)
def test_a_search_is_never_stopped_nor_near_it(weight_RC: Tensor, kind: str) -> None:
    of: BlockType = BLOCK_TYPES[kind]
    error_RC = (dequantize(quantize(weight_RC, of), of) - weight_RC).abs()
    assert gate._worst_error(weight_RC, error_RC, kind) < gate.WORST_ERROR[kind] / 2


# Its parts


def test_what_llama_cpp_takes_for_an_end_by_its_name_passes(
    own_tokenizer: Tokenizer, wide: StoredModel, out: Path
) -> None:
    """As Qwen's <|fim_pad|>, which is found in text, and which llama.cpp makes a control token of."""
    from fox.model.stored import open_model

    assert len(own_tokenizer.encode("<|fim_pad|>")) == 1
    exported(wide, out / "a.gguf")
    written = open_model(out / "a.gguf").tokenizer
    assert "<|fim_pad|>" in written.special_ids
    assert check_tokenizer(own_tokenizer, written) > 50
    assert check_tokenizer(own_tokenizer, own_tokenizer) > check_tokenizer(own_tokenizer, written)


def test_templates_are_compared_by_their_names(own_tokenizer: Tokenizer) -> None:
    def with_template(template: object) -> Tokenizer:
        made = copy.copy(own_tokenizer)
        made.config = {**own_tokenizer.config, "chat_template": template}
        return made

    a, b = {"name": "default", "template": "a"}, {"name": "tools", "template": "b"}
    for one, other in (("a", [a]), ([a, b], [b, a])):
        check_tokenizer(with_template(one), with_template(other))
    for one, other in (("a", [b]), ([a, b], [a]), ("a", None), ([a], "b")):
        with pytest.raises(Failure, match="chat template"):
            check_tokenizer(with_template(one), with_template(other))


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(ModelConfig) if field.name != "initializer_range"]
)
def test_every_part_of_a_config_counts(name: str, make_config: Callable[..., ModelConfig]) -> None:
    config = make_config(rope_scaling=LLAMA3)
    check_config(config, config)
    value = getattr(config, name)
    other = {bool: lambda: not value, int: lambda: value + 1, float: lambda: value * 1.0001, RopeScaling: lambda: None}
    with pytest.raises(Failure, match=name):
        check_config(config, dataclasses.replace(config, **{name: other[type(value)]()}))


def test_a_float32_of_a_constant_is_the_same_constant(make_config: Callable[..., ModelConfig]) -> None:
    config = make_config(rms_norm_eps=1e-6, rope_theta=123_456.789)
    rounded = {name: torch.tensor(getattr(config, name)).item() for name in ("rms_norm_eps", "rope_theta")}
    check_config(config, dataclasses.replace(config, **rounded, initializer_range=0.5))


def test_who_asks_is_told_of_every_weight_and_every_block(wide: StoredModel) -> None:
    told: list[int] = []
    check_tensors(wide, wide, told.append)
    assert sum(told) == wide.num_parameters()
    blocks: list[int] = []
    gate.check_predictions(wide, wide, "f32", lambda: blocks.append(1))
    assert len(blocks) == gate.num_parts(wide)


def test_predictions_are_a_check_of_their_own(
    wide_model: Callable[..., Transformer], store: Callable[..., StoredModel], wide: StoredModel, tmp_path: Path
) -> None:
    """Where the weights and the constants were let pass."""
    other = dataclasses.replace(wide, config=dataclasses.replace(wide.config, rope_theta=9000.0))
    for file_type in ("f32", "f16"):
        with pytest.raises(Failure, match="predict otherwise than their source"):
            gate.check_predictions(wide, other, file_type, lambda: None)


def test_a_continuation_that_becomes_another_where_its_source_was_sure_is_stopped(
    monkeypatch: pytest.MonkeyPatch, wide: StoredModel
) -> None:
    other = dataclasses.replace(wide, config=dataclasses.replace(wide.config, rope_theta=300.0))
    monkeypatch.setitem(gate.BOUNDS, "f32", gate.Bound(100.0, 0.0))
    with pytest.raises(Failure, match="choose another token where their source was sure of its own by"):
        gate.check_predictions(wide, other, "f32", lambda: None)


def test_a_context_shorter_than_the_prompts(
    wide_model: Callable[..., Transformer], store: Callable[..., StoredModel], out: Path
) -> None:
    exported(store(wide_model(max_position_embeddings=10)), out / "a.gguf")


def test_special_tokens_that_text_could_write_are_noticed(own_tokenizer: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(own_tokenizer.backend.to_str())
    backend.add_special_tokens([AddedToken("<new>", special=True, normalized=False)])
    other = Tokenizer(backend, own_tokenizer.config)
    other.stop_ids = own_tokenizer.stop_ids
    with pytest.raises(Failure, match="'<new>' is a special token of the written tokenizer, and none of its source"):
        check_tokenizer(own_tokenizer, other)


def test_chats_are_compared(own_tokenizer: Tokenizer) -> None:
    """What special tokens do to the text beside them shows in no text alone."""
    stated = json.loads(own_tokenizer.backend.to_str())
    next(token for token in stated["added_tokens"] if token["content"] == "<|user|>")["rstrip"] = True
    other = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(stated)), own_tokenizer.config)
    other.stop_ids = own_tokenizer.stop_ids
    assert check_tokenizer(own_tokenizer, other) > 50
    with pytest.raises(Failure, match=r"of the chat .*Be brief"):
        check_chats(own_tokenizer, other)
    assert check_chats(own_tokenizer, own_tokenizer) == ""


def test_a_template_that_refuses_must_refuse_in_both(own_tokenizer: Tokenizer) -> None:
    refuses = "{{ raise_exception('no') if messages[0].role == 'system' }}{{ messages[0].content }}"
    other = copy.copy(own_tokenizer)
    other.config = {**own_tokenizer.config, "chat_template": refuses}
    assert check_chats(other, other) == "", "it takes the others"
    with pytest.raises(Failure, match="makes None of the chat"):
        check_chats(own_tokenizer, other)


BROKEN = {
    "broken": ("{% for m in messages %}", "can't render these messages: "),
    "refuses all": ("{{ raise_exception('[b]no[/b]') }}", r"can't render these messages: \[b\]no\[/b\]"),
    "nothing": ("{{ '' }}", "makes nothing of these messages"),
    "no default": ([{"name": "tools", "template": "x"}], "none is named default"),
}


@pytest.mark.parametrize(("template", "told"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("target", ["gguf", "ollama"])
def test_a_template_that_renders_no_chat_is_told(
    template: Any, told: str, target: str, wide_model: Callable[..., Transformer], store: Callable[..., StoredModel],
    own_tokenizer: Tokenizer, out: Path,
) -> None:  # fmt: skip
    """Nothing of it could be compared, which must not look as if it had been."""
    broken = copy.copy(own_tokenizer)
    broken.config = {**own_tokenizer.config, "chat_template": template}
    made = exported(store(wide_model(), tokenizer=broken), out / "made", target)
    assert not made.renders_chats
    (warning,) = made.warnings
    assert re.search(f"its chat template .*{told}.*`fox chat` will refuse it", warning)
    good = exported(store(wide_model()), out / "good", target)
    assert good.renders_chats and not good.warnings


def test_the_time_that_passes_is_no_difference(own_tokenizer: Tokenizer) -> None:
    ticks = copy.copy(own_tokenizer)
    ticks.config = {**own_tokenizer.config, "chat_template": "{{ strftime_now('%f') }}{{ messages[0].content }}"}
    assert check_chats(ticks, ticks) == ""
