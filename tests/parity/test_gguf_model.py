"""A model as GGUF is the model: ours reads what ours wrote, transformers reads it too, and the gguf library sees the same weights.

There and back in float32 nothing may change. transformers' logits (of size about 10) agree within 1e-4, as with our directories.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from fox.export.gguf import export_gguf
from fox.model import Transformer
from fox.model.config import RopeScaling
from fox.model.directory import load_model, save_model
from fox.model.gguf import config_to_gguf
from fox.model.stored import StoredModel, open_model
from fox.tokenizer import Tokenizer
from tests.parity.test_transformers_model import FLOAT32, LAYOUTS, assert_same, ours, theirs


@pytest.fixture
def tokens_BT() -> Tensor:
    return torch.randint(0, 400, (3, 33), generator=torch.Generator().manual_seed(1))


def written(model: Transformer, tokenizer: Tokenizer, folder: Path, file_type: str = "f32") -> Path:
    save_model(folder / "model", model, tokenizer)
    export_gguf(open_model(folder / "model"), folder / "model.gguf", file_type, {}, lambda weights: None)
    return folder / "model.gguf"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back(
    layout: str, make_model: Callable[..., Transformer], tiny_tokenizer: Tokenizer, tokens_BT: Tensor, tmp_path: Path
) -> None:
    model = make_model(**LAYOUTS[layout])
    again, tokenizer = load_model(written(model, tiny_tokenizer, tmp_path))
    assert again.config == model.config
    assert tokenizer.encode("A fox, naïve") == tiny_tokenizer.encode("A fox, naïve")
    assert torch.equal(ours(again, tokens_BT), ours(model, tokens_BT))


# transformers' own reader of GGUF knows neither kind of rotary scaling, and no head size of Qwen3's but 128.
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "stretched" not in name])
def test_transformers_reads_it(
    layout: str, make_model: Callable[..., Transformer], tiny_tokenizer: Tokenizer, tokens_BT: Tensor, tmp_path: Path
) -> None:
    head = {"head_dim": 128} if "norm" in layout else {}
    model = make_model(**LAYOUTS[layout] | head)
    path = written(model, tiny_tokenizer, tmp_path)
    theirs_too = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    assert_same(ours(model, tokens_BT), theirs(theirs_too, tokens_BT))


def test_the_comparison_notices_pairs_that_were_not_interleaved(
    monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., Transformer], tiny_tokenizer: Tokenizer,
    tokens_BT: Tensor, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr("fox.export.gguf.interleave", lambda weight_OI, head_dim: weight_OI)
    model = make_model()
    path = written(model, tiny_tokenizer, tmp_path)
    assert (ours(load_model(path)[0], tokens_BT) - ours(model, tokens_BT)).abs().max() > 100 * FLOAT32
    theirs_too = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    with pytest.raises(AssertionError):
        assert_same(ours(model, tokens_BT), theirs(theirs_too, tokens_BT))


@pytest.mark.parametrize("file_type", ["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0"])
def test_the_gguf_library_sees_the_same_weights(
    file_type: str, make_model: Callable[..., Transformer], tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64}
    path = written(make_model(**wide), tiny_tokenizer, tmp_path, file_type)
    stored = open_model(path)
    seen = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert seen["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    for name, theirs_of in (
        ("model.embed_tokens.weight", "token_embd"),
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down"),
    ):
        tensor = seen[f"{theirs_of}.weight"]
        wanted = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(whole(stored, name), wanted)
        assert stored.weights.stored_types[name] == tensor.tensor_type.name


def whole(stored: StoredModel, name: str) -> np.ndarray:
    return stored.tensor(name, torch.float32).numpy()


def test_a_part_of_an_interleaved_matrix_is_read_by_whole_heads(
    make_model: Callable[..., Transformer], tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    stored = open_model(written(make_model(), tiny_tokenizer, tmp_path))
    name = "model.layers.0.self_attn.q_proj.weight"
    all_RC = stored.weights.read_rows(name)
    for start, stop in ((0, 8), (3, 5), (7, 9), (13, 32), (31, 32)):
        assert torch.equal(stored.weights.read_rows(name, start, stop), all_RC[start:stop])


def test_a_factor_alone_scales_evenly_as_in_llama_cpp(
    make_model: Callable[..., Transformer], tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_type = lambda config: {  # noqa: E731
        key: value for key, value in config_to_gguf(config).items() if key != "llama.rope.scaling.type"
    }
    monkeypatch.setattr("fox.export.gguf.config_to_gguf", without_type)
    path = written(make_model(rope_scaling=RopeScaling("linear", 4.0)), tiny_tokenizer, tmp_path)
    assert open_model(path).config.rope_scaling == RopeScaling("linear", 4.0)
