"""A model's shape and weights as GGUF has them: llama.cpp's names, and its order of the rotated pairs.

R = H/2 rotated pairs of a head, O output features, I input features
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fox.errors import UserError
from fox.formats.gguf.reader import GgufFile, Metadata
from fox.model.config import JsonValues, ModelConfig, RopeScaling
from fox.model.rotary import frequencies, slowdown

if TYPE_CHECKING:
    from fox.formats.gguf.writer import Value

ROPE_FACTORS = "rope_freqs.weight"
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_IN_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NOT_COMPUTED = {
    "attention.causal": True,
    "rope.scaling.attn_factor": 1,
    **dict.fromkeys(("logit_scale", "residual_scale", "embedding_scale", "attention.scale"), 0),
    **dict.fromkeys(("attention.clamp_kqv", "attention.sliding_window", "expert_count", "expert_used_count"), 0),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), 0),
}
"""Options that GGUF has for these architectures, which change what is computed, and what each must say if it is there."""
_COMPUTED = {
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scaling.type",
    "rope.scaling.factor", "rope.scale_linear", "rope.scaling.original_context_length", "rope.scaling.finetuned",
}  # fmt: skip
"""Of attention and positions, what is read, and the two last, which matter only for scaling that is refused."""


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor that Hugging Face calls `name`: model.layers.3.mlp.up_proj.weight is blk.3.ffn_up.weight."""
    stem, _, kind = name.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{kind}"
    _, _, number, inner = stem.split(".", 3)
    return f"blk.{number}.{_IN_BLOCK[inner]}.{kind}"


def config_from_gguf(file: GgufFile) -> ModelConfig:
    """The shape that a GGUF file's metadata and tensors state. Raises UserError for one that Fox's model can't have."""
    metadata, place = file.metadata, str(file.path)
    architecture = metadata.text("general.architecture")
    if architecture not in ("llama", "qwen3"):
        raise UserError(
            "general.architecture", architecture, place=place, problem="is not supported", mend="llama and qwen3 are."
        )
    for key, harmless in _NOT_COMPUTED.items():
        full = f"{architecture}.{key}"
        if full in metadata and metadata.scalar(full) != harmless:
            raise UserError(full, metadata.scalar(full), place=place, problem="is not supported")
    for key in metadata:
        kind, _, option = key.partition(".")
        if (
            kind == architecture
            and option.startswith(("attention.", "rope."))
            and option not in {*_COMPUTED, *_NOT_COMPUTED}
        ):
            raise UserError(key, place=place, problem="is not supported")
    if metadata.whole("split.count", 1) > 1:
        raise UserError(
            "split.count", metadata.whole("split.count"), place=place, problem="the model is cut into several files",
            mend="Join them with llama.cpp's `llama-gguf-split --merge`.",
        )  # fmt: skip
    names = ("embedding_length", "feed_forward_length", "block_count", "context_length", "attention.head_count")
    sizes = {name: metadata.whole(f"{architecture}.{name}") for name in names}
    heads = sizes["attention.head_count"]
    head_dim = metadata.whole(f"{architecture}.attention.key_length", sizes["embedding_length"] // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if metadata.whole(f"{architecture}.{key}", head_dim) != head_dim:
            raise UserError(f"{architecture}.{key}", place=place, problem=f"is not the head size, {head_dim}")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UserError("token_embd.weight", place=place, problem="is missing, or no matrix")
    values = JsonValues(
        {
            **sizes,
            "attention.key_length": head_dim,
            "vocab_size": embedding.shape[0],
            "attention.head_count_kv": metadata.whole(f"{architecture}.attention.head_count_kv", heads),
            "rope.freq_base": metadata.number(f"{architecture}.rope.freq_base", 10_000.0),
            "attention.layer_norm_rms_epsilon": metadata.number(f"{architecture}.attention.layer_norm_rms_epsilon"),
        },
        place,
        f"{architecture}.",
    )
    config = ModelConfig(
        vocab_size=values.whole("vocab_size"),
        hidden_size=values.whole("embedding_length"),
        intermediate_size=values.whole("feed_forward_length"),
        num_hidden_layers=values.whole("block_count"),
        num_attention_heads=values.whole("attention.head_count"),
        num_key_value_heads=values.whole("attention.head_count_kv"),
        head_dim=values.whole("attention.key_length"),
        max_position_embeddings=values.whole("context_length"),
        rope_theta=values.positive("rope.freq_base"),
        rms_norm_eps=_shortest(values.positive("attention.layer_norm_rms_epsilon")),
        initializer_range=0.02,  # GGUF does not say it, and only training from nothing needs it
        tie_word_embeddings="output.weight" not in file.tensors,
        rope_scaling=_linear(metadata, architecture),
        qk_norm=architecture == "qwen3",
    )
    config.check(place)
    if ROPE_FACTORS in file.tensors:
        config = _with_llama3(config, file)
    return config


def config_to_gguf(config: ModelConfig) -> dict[str, Value]:
    """A model's shape as GGUF's metadata."""
    architecture = "qwen3" if config.qk_norm else "llama"
    values: dict[str, Value] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    if config.rope_scaling is not None and config.rope_scaling.kind == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_scaling.factor}
    return {"general.architecture": architecture, **{f"{architecture}.{key}": value for key, value in values.items()}}


def rope_factors(config: ModelConfig) -> Tensor | None:
    """What llama.cpp keeps of Llama 3's rotary scaling: a tensor (R,) of what each frequency is divided by."""
    if config.rope_scaling is None or config.rope_scaling.kind != "llama3":
        return None
    return slowdown(frequencies(config), config.rope_scaling)


def is_interleaved(config: ModelConfig, name: str) -> bool:
    """Whether llama.cpp keeps this matrix with the two of each rotated pair beside each other, as Meta's Llama has them."""
    return not config.qk_norm and name.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight"))


def interleave(weight_OI: Tensor, head_dim: int) -> Tensor:
    """Pairs (i, i + H/2) of each head beside each other."""
    return weight_OI.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def part(weight_OI: Tensor, head_dim: int) -> Tensor:
    """The way back: pairs (2i, 2i + 1) of each head to (i, i + H/2)."""
    return weight_OI.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


class GgufWeights:
    """The weights of a GGUF file under Hugging Face's names, and in its order."""

    def __init__(self, file: GgufFile, config: ModelConfig, names: list[str]) -> None:
        self.path: Path = file.path
        self._file, self._config = file, config
        ours = {gguf_name(name): name for name in names}
        found = {ours.get(name, name): tensor for name, tensor in file.tensors.items() if name != ROPE_FACTORS}
        self.shapes = {name: tensor.shape for name, tensor in found.items()}
        self.stored_types = {name: tensor.kind.name for name, tensor in found.items()}

    def read_rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` of a tensor as float32. A vector is one row."""
        if is_interleaved(self._config, name):  # whole heads, and of them what is asked for
            head, rows = self._config.head_dim, self.shapes[name][0]
            stop = rows if stop is None else stop
            first = start // head * head
            heads_RC = self._file.read_rows(gguf_name(name), first, min(-(-stop // head) * head, rows))
            return part(heads_RC, head)[start - first : stop - first]
        return self._file.read_rows(gguf_name(name), start, stop)


def _linear(metadata: Metadata, architecture: str) -> RopeScaling | None:
    # llama.cpp's default is linear: a factor alone scales.
    kind = metadata.text(f"{architecture}.rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise UserError(
            f"{architecture}.rope.scaling.type", kind, place=metadata.place, problem="is not supported",
            mend="linear is, and Llama 3's by rope_freqs.weight.",
        )  # fmt: skip
    keys = (f"{architecture}.rope.scaling.factor", f"{architecture}.rope.scale_linear")
    key = next((key for key in keys if key in metadata), None)
    if kind == "none" or key is None:
        return None
    factor = JsonValues({key: metadata.number(key)}, metadata.place).positive(key)
    return None if factor == 1.0 else RopeScaling("linear", factor)


def _with_llama3(config: ModelConfig, file: GgufFile) -> ModelConfig:
    """`config` with the Llama 3 scaling that gives the file's factors. Raises UserError where none does."""
    place = str(file.path)
    if file.tensors[ROPE_FACTORS].shape != (config.head_dim // 2,) or config.rope_scaling is not None:
        raise UserError(ROPE_FACTORS, place=place, problem="does not fit the model")
    factor_R = file.read_rows(ROPE_FACTORS)[0]
    if torch.equal(factor_R, torch.ones_like(factor_R)):
        return config
    frequency_R = frequencies(config)
    for scaling in _candidates(factor_R, frequency_R):
        if torch.allclose(slowdown(frequency_R, scaling), factor_R, rtol=1e-4, atol=0):
            return replace(config, rope_scaling=scaling)
    raise UserError(ROPE_FACTORS, place=place, problem="is no scaling of Llama 3's kind, and no other is supported")


def _candidates(factor_R: Tensor, frequency_R: Tensor) -> list[RopeScaling]:
    """Scalings that may have given these factors: that of all Llama 3 models, and one solved for.

    Within the passage the share that is kept grows evenly with the frequency, so two of its points give the two bounds,
    but for one measure common to them and the original context; low_freq_factor = 1 is everybody's choice.
    """
    largest = round(float(factor_R.max()), 4)
    if not (torch.isfinite(factor_R).all() and factor_R.min() > 0 and 1 < largest < 1e6):
        return []
    found = [RopeScaling("llama3", largest)]
    kept_R = (1 / factor_R - 1 / largest) / (1 - 1 / largest)
    in_passage = ((kept_R > 1e-3) & (kept_R < 1 - 1e-3)).nonzero()[:, 0].tolist()
    if len(in_passage) >= 2:
        first, last = in_passage[0], in_passage[-1]
        slope = float((kept_R[first] - kept_R[last]) / (frequency_R[first] - frequency_R[last]))
        low_over_width = slope * float(frequency_R[first]) - float(kept_R[first])
        if 0 < slope < math.inf and 0 < low_over_width < math.inf:  # all frequencies are one where rope_theta is 1
            width = 1 / low_over_width
            context = round(2 * math.pi * slope * width)
            if 1 <= context < 1 << 28:
                found.append(RopeScaling("llama3", largest, 1.0, round(1 + width, 4), context))
    return found


def _shortest(value: float) -> float:
    """1e-05 for 9.999999747378752e-06: GGUF keeps float32, and people write the shortest decimal number that it rounds from."""
    return float(str(np.float32(value)))
