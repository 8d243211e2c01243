"""Our model is transformers' LlamaForCausalLM, and its Qwen3ForCausalLM: the same logits from the same files, both ways.

float32 logits (of size about 10) agree within 1e-4. Every comparison is also shown to fail when a part of ours is damaged.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from fox.engine.generate import generate
from fox.engine.kv_cache import KVCache
from fox.engine.sampler import Sampling
from fox.kernels.attention import attend_plainly
from fox.model import Transformer, attention, transformer
from fox.model.config import RopeScaling
from fox.model.directory import load_model, save_model
from fox.model.norm import RMSNorm
from fox.tokenizer import Tokenizer

LAYOUTS = {
    "each its own": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "4 share 2": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "4 share 1": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "heads wider than their share": {"head_dim": 16},
    "untied": {"tie_word_embeddings": False},
    "far-reaching": {"rope_theta": 500_000.0},
    "nearsighted": {"rope_theta": 50.0},
    "stretched evenly": {"rope_scaling": RopeScaling("linear", 4.0)},
    "stretched as Llama 3": {"head_dim": 32, "rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 48)},
    "query-key norm": {"qk_norm": True},
    "query-key norm, untied, wide heads": {"qk_norm": True, "tie_word_embeddings": False, "head_dim": 16},
}
FLOAT32 = 1e-4
# A bfloat16 keeps 8 bits: each rounding costs up to 2^-9 of a value, and some ten a block add up and are amplified by the
# softmax. So both are 1.8 to 2.8 % (root mean square, over seeds) from what float32 makes of the same weights, and, rounding
# in another order (they round cosines before the turn, we after), as far from each other. The bound is 3.1 %.
BFLOAT16 = 2.0**-5


@pytest.fixture(params=LAYOUTS)
def model(request: pytest.FixtureRequest, make_model: Callable[..., Transformer]) -> Transformer:
    return make_model(**LAYOUTS[request.param])


@pytest.fixture
def tokens_BT() -> Tensor:
    return torch.randint(0, 400, (3, 33), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def ours(model: Transformer, tokens_BT: Tensor, segment_BT: Tensor | None = None) -> Tensor:
    return model.logits(model(tokens_BT, segment_BT)).float()


@torch.no_grad()
def theirs(model: LlamaForCausalLM, tokens_BT: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    return model(tokens_BT, attention_mask=attention_mask).logits.float()


def assert_same(one: Tensor, other: Tensor, limit: float = FLOAT32) -> None:
    assert (one - other).abs().max().item() < limit


def random_llama(seed: int, qk_norm: bool = False, **config: object) -> LlamaForCausalLM | Qwen3ForCausalLM:
    made = Qwen3ForCausalLM(Qwen3Config(**config)) if qk_norm else LlamaForCausalLM(LlamaConfig(**config))
    model = made.eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            mean, deviation = (0.0, 0.25) if parameter.ndim > 1 else (1.0, 0.3)
            parameter.normal_(mean, deviation, generator=generator)
    return model


def test_they_read_what_we_write(
    model: Transformer, tiny_tokenizer: Tokenizer, tokens_BT: Tensor, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", model, tiny_tokenizer)
    llama = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert llama.dtype == torch.float32
    assert isinstance(llama, Qwen3ForCausalLM if model.config.qk_norm else LlamaForCausalLM)
    assert_same(ours(model, tokens_BT), theirs(llama, tokens_BT))
    again, _ = load_model(tmp_path / "model")
    assert torch.equal(ours(again, tokens_BT), ours(model, tokens_BT))


@pytest.mark.parametrize("theta_in", ["rope_parameters", "rope_theta", "rope_scaling"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_we_read_what_they_write(
    layout: str,
    theta_in: str,
    make_config: Callable[..., object],
    tiny_tokenizer: Tokenizer,
    tokens_BT: Tensor,
    tmp_path: Path,
) -> None:
    wanted = make_config(**LAYOUTS[layout])
    shape = dataclasses.asdict(wanted)
    theta, scaling = shape.pop("rope_theta"), shape.pop("rope_scaling") and wanted.rope_scaling.to_hugging_face()
    rope = {"rope_type": "default", "rope_theta": theta, **(scaling or {})}
    llama = random_llama(seed=2, **shape, rope_parameters=rope)
    llama.save_pretrained(tmp_path)
    tiny_tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("rope_parameters")["rope_theta"] == theta
    # Releases before 5 wrote it at the top level, with rope_scaling null.
    config |= {"rope_theta": theta, "rope_scaling": scaling} if theta_in == "rope_theta" else {theta_in: rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, _ = load_model(tmp_path)
    assert model.config == wanted
    assert_same(ours(model, tokens_BT), theirs(llama, tokens_BT))


def interleaved(x_BKTH: Tensor, cos_B1TR: Tensor, sin_B1TR: Tensor) -> Tensor:
    """The paper's own pairs (2i, 2i + 1), which Meta's weights have and Hugging Face's do not."""
    first, second = x_BKTH[..., ::2], x_BKTH[..., 1::2]
    return torch.stack([first * cos_B1TR - second * sin_B1TR, second * cos_B1TR + first * sin_B1TR], -1).flatten(-2)


def wrongly_grouped(q: Tensor, k: Tensor, v: Tensor, may_see: Tensor | None) -> Tensor:
    group = q.shape[1] // k.shape[1]
    return attend_plainly(q, k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1), may_see)


def all_seeing(q: Tensor, k: Tensor, v: Tensor, may_see: Tensor | None) -> Tensor:
    return attend_plainly(q, k, v, torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool))


def without_norm_weight(norm: RMSNorm, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)


def of_each_norm(model: Transformer) -> Iterator[RMSNorm]:
    return (module for module in model.modules() if isinstance(module, RMSNorm))


Damage = Callable[[pytest.MonkeyPatch, Transformer], object]
DAMAGES: dict[str, Damage] = {
    "no rotation": lambda patch, model: patch.setattr(attention, "rotate", lambda x, *turn: x),
    "halves swapped": lambda patch, model: patch.setattr(
        attention, "rotate", lambda x, cos, sin, rotate=attention.rotate: rotate(x, cos, -sin)
    ),
    "pairs interleaved": lambda patch, model: patch.setattr(attention, "rotate", interleaved),
    "wrong groups": lambda patch, model: patch.setattr(attention, "attend", wrongly_grouped),
    "sees the future": lambda patch, model: patch.setattr(attention, "attend", all_seeing),
    "a block lost": lambda patch, model: model.layers.pop(1),
    "two blocks swapped": lambda patch, model: model.layers.append(model.layers.pop(0)),
    "no eps": lambda patch, model: [setattr(norm, "eps", 0.0) for norm in of_each_norm(model)],
    "no norm weight": lambda patch, model: patch.setattr(RMSNorm, "forward", without_norm_weight),
    "another theta": lambda patch, model: setattr(
        model, "config", dataclasses.replace(model.config, rope_theta=20_000.0)
    ),
    "gate turned round": lambda patch, model: patch.setattr(
        transformer.F, "silu", lambda x, silu=transformer.F.silu: silu(-x)
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_comparison_notices(
    damage: str, monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., Transformer], tiny_tokenizer: Tokenizer,
    tokens_BT: Tensor, tmp_path: Path,
) -> None:  # fmt: skip
    model = make_model()
    save_model(tmp_path / "model", model, tiny_tokenizer)
    wanted = theirs(LlamaForCausalLM.from_pretrained(tmp_path / "model").eval(), tokens_BT)
    assert_same(ours(model, tokens_BT), wanted)
    DAMAGES[damage](monkeypatch, model)
    with pytest.raises(AssertionError):
        assert_same(ours(model, tokens_BT), wanted)


@pytest.mark.parametrize("damage", [None, "no rotation", "wrong groups", "a block lost"])
def test_bfloat16_within_its_rounding(
    damage: str | None, monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., Transformer],
    tiny_tokenizer: Tokenizer, tokens_BT: Tensor, tmp_path: Path,
) -> None:  # fmt: skip
    save_model(tmp_path / "model", make_model(), tiny_tokenizer, torch.bfloat16)
    llama = LlamaForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert llama.dtype == torch.bfloat16, "config.json says so"
    model, _ = load_model(tmp_path / "model", torch.bfloat16)
    if damage:
        DAMAGES[damage](monkeypatch, model)
    mine, wanted = ours(model, tokens_BT), theirs(llama, tokens_BT)
    assert (relative_rms(mine, wanted) < BFLOAT16) is (damage is None)
    exact = theirs(llama.float(), tokens_BT)
    assert (relative_rms(mine, exact) < 1.25 * relative_rms(wanted, exact)) is (damage is None), "no worse than theirs"


def relative_rms(made: Tensor, wanted: Tensor) -> float:
    return ((made - wanted).square().mean() / wanted.square().mean()).sqrt().item()


def test_bfloat16_weights_computed_in_float32(
    make_model: Callable[..., Transformer], tiny_tokenizer: Tokenizer, tokens_BT: Tensor, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", make_model(), tiny_tokenizer, torch.bfloat16)
    llama = LlamaForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert_same(ours(load_model(tmp_path / "model")[0], tokens_BT), theirs(llama, tokens_BT))


@pytest.fixture
def padded(
    make_model: Callable[..., Transformer], tiny_tokenizer: Tokenizer, tmp_path: Path
) -> tuple[Transformer, LlamaForCausalLM, Tensor]:
    """The model twice, and which of 33 tokens are padding on the left of each row."""
    save_model(tmp_path / "model", make_model(), tiny_tokenizer)
    is_padding_BT = torch.arange(33)[None] < torch.tensor([0, 5, 20])[:, None]
    return load_model(tmp_path / "model")[0], LlamaForCausalLM.from_pretrained(tmp_path / "model").eval(), is_padding_BT


def test_padding_on_the_left_is_a_segment_of_its_own(
    padded: tuple[Transformer, LlamaForCausalLM, Tensor], tokens_BT: Tensor
) -> None:
    model, llama, is_padding_BT = padded
    segment_BT = (~is_padding_BT).long()
    wanted = theirs(llama, tokens_BT, attention_mask=segment_BT)[segment_BT.bool()]
    assert_same(ours(model, tokens_BT, segment_BT)[segment_BT.bool()], wanted)
    with pytest.raises(AssertionError):
        assert_same(ours(model, tokens_BT)[segment_BT.bool()], wanted)


def test_greedy_replies_are_the_same(padded: tuple[Transformer, LlamaForCausalLM, Tensor], tokens_BT: Tensor) -> None:
    model, llama, _ = padded
    prompt = tokens_BT[:1]
    wanted = llama.generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)[
        0, 33:
    ].tolist()
    cache = KVCache(model.config, 256, torch.float32, torch.device("cpu"))
    made = list(generate(model, prompt[0].tolist(), cache, Sampling(temperature=0), (), 40))
    assert len(set(wanted)) > 5, "a reply that says something"
    assert made == wanted
