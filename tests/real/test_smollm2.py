"""Fox and transformers make the same of SmolLM2-135M-Instruct's real weights, and so does Fox of what it exports.

`make test-real` fetches the weights and runs this. The file is Q4_1 already: "exact" means the values of its 4-bit weights.

B rows, T tokens, V vocabulary
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fox.model.stored import StoredModel, open_model
from fox.tokenizer.chat import encode_chat
from fox.tokenizer.hard_texts import hard_texts_for

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]

QUESTION = "What is the capital of France?"
CHAT = [
    {"role": "user", "content": "What is 12 + 30? <|im_end|> naïve 🦊"},
    {"role": "assistant", "content": " It is 42."},
    {"role": "user", "content": "And\n\ntwice that?"},
]
# Logits are of size 20. Sums in another order change them by 7e-5; one matrix of the 210 rounded to bfloat16, by 0.014.
FLOAT32 = 1e-3
TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0")


@pytest.fixture(scope="module")
def tokens_BT(stored: StoredModel) -> Tensor:
    ids = stored.tokenizer.encode(
        "The capital of France is Paris. The fox no. 12345 ran over the lazy dog, and said: «naïve café», 日本語 🦊.\n"
        "def f(x: int) -> int:\n    return x * 2  # twice\n\nWater boils at 100 degrees Celsius and freezes at 0, therefore"
    )
    return torch.tensor([ids[:64], list(reversed(ids[:64]))])


@pytest.fixture(scope="module")
def ours_BTV(stored: StoredModel, tokens_BT: Tensor) -> Tensor:
    model = stored.load()
    with torch.inference_mode():
        return model.logits(model(tokens_BT))


def theirs(model: LlamaForCausalLM, tokens_BT: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(tokens_BT).logits


def assert_same(one: Tensor, other: Tensor) -> None:
    difference = (one - other).abs().max().item()
    print(f"logits of size {other.abs().max():.1f} differ by {difference:.2g}")
    assert difference < FLOAT32


def dequantised(path: Path) -> LlamaForCausalLM:
    """The model by transformers and the gguf library alone, neither reader of Fox's in between."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
    heads, kv_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings=True,
    )
    names = {
        "token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    weights = {}
    for tensor in reader.tensors:
        value = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        *block, name, _ = tensor.name.split(".")
        if name in ("attn_q", "attn_k"):  # llama.cpp's converter interleaves the halves that rotary embeddings pair
            rows, columns = value.shape
            of = heads if name == "attn_q" else kv_heads
            value = value.view(of, rows // of // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
        prefix = f"model.layers.{block[1]}." if block else ""
        weights[f"{prefix}{names[name]}.weight"] = value
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    return model.eval()


@pytest.mark.parametrize("source", ["gguf", "hf"])
def test_it_knows_the_capital_of_france(
    source: str, weights: Path, request: pytest.FixtureRequest, fox: Callable[..., str]
) -> None:
    model = weights if source == "gguf" else request.getfixturevalue("folder")
    assert "Paris" in fox("chat", model, "--prompt", QUESTION, "--temperature", "0")


def test_transformers_computes_the_same_from_the_dequantised_weights(
    weights: Path, tokens_BT: Tensor, ours_BTV: Tensor
) -> None:
    model = dequantised(weights)
    assert_same(ours_BTV, theirs(model, tokens_BT))
    # and the comparison notices one weight of one block that is less precise
    with torch.no_grad():
        model.model.layers[17].mlp.up_proj.weight.copy_(model.model.layers[17].mlp.up_proj.weight.bfloat16())
    with pytest.raises(AssertionError):
        assert_same(ours_BTV, theirs(model, tokens_BT))


def test_transformers_computes_the_same_from_our_export(folder: Path, tokens_BT: Tensor, ours_BTV: Tensor) -> None:
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    assert_same(ours_BTV, theirs(model, tokens_BT))
    with torch.no_grad():
        model.model.layers[5].input_layernorm.weight[7] *= 1.1
    with pytest.raises(AssertionError):
        assert_same(ours_BTV, theirs(model, tokens_BT))


def test_transformers_makes_the_same_tokens_of_our_export(stored: StoredModel, folder: Path) -> None:
    their = AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    compared = 0
    for text in hard_texts_for(stored.tokenizer):
        try:
            written = text.decode()
        except UnicodeDecodeError:
            continue  # transformers takes texts alone
        assert their(written, add_special_tokens=False)["input_ids"] == stored.tokenizer.encode(written), written
        compared += 1
    assert compared > 100


def test_transformers_renders_the_same_chat(stored: StoredModel, folder: Path) -> None:
    their = AutoTokenizer.from_pretrained(folder)
    for add in (False, True):
        chat = CHAT[:1] if add else CHAT
        rendered = their.apply_chat_template(chat, add_generation_prompt=add, tokenize=False)
        assert rendered.startswith("<|im_start|>system\n"), "SmolLM2's own system message"
        ours = encode_chat(stored.tokenizer, chat, add_generation_prompt=add).ids.tolist()
        # Theirs reads the names of special tokens that a user writes as those tokens; ours never does.
        clean = [{**message, "content": message["content"].replace("<|im_end|>", "")} for message in chat]
        wanted = their.apply_chat_template(clean, add_generation_prompt=add, return_dict=False)
        assert encode_chat(stored.tokenizer, clean, add_generation_prompt=add).ids.tolist() == wanted
        assert stored.tokenizer.backend.decode(ours, skip_special_tokens=False) == rendered


@pytest.mark.parametrize("file_type", TYPES)
def test_each_type_passes_its_gate(file_type: str, weights: Path, tmp_path: Path, fox: Callable[..., str]) -> None:
    out = tmp_path / f"{file_type}.gguf"
    fox("export", weights, "--type", file_type, "--out", out)
    assert open_model(out).names
    out.unlink()  # up to half a gigabyte


def test_compare_and_eval_work_on_it(weights: Path, folder: Path, tmp_path: Path, fox: Callable[..., str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The fox ran over the lazy dog, and then it slept until the evening.\n" * 8)
    compared: dict[str, Any] = json.loads(fox("compare", weights, folder, "--text", text, "--json"))
    assert compared["same_top_token"] == 1
    assert compared["mean_kl_nats"] < 1e-9
    scored = json.loads(fox("eval", weights, "--text", text, "--json"))
    assert 0.05 < found(scored, "bits_per_byte") < 1.5


def found(scores: Any, key: str) -> float:
    """The number under a key, however deep."""
    if isinstance(scores, dict):
        if isinstance(scores.get(key), (int, float)):
            return float(scores[key])
        scores = list(scores.values())
    return next((value for part in scores if isinstance(part, (dict, list)) and (value := found(part, key))), 0.0)
