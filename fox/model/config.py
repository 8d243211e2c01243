"""A model's shape, and its two written forms: a recipe's [model] and Hugging Face's config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fox.errors import UserError
from fox.recipe.schema import Model


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama-style decoder, in Hugging Face's words."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    initializer_range: float
    tie_word_embeddings: bool

    @classmethod
    def from_recipe(cls, model: Model, vocab_size: int) -> ModelConfig:
        values = model.model_dump()
        values["head_dim"] = model.head_dim or model.hidden_size // model.num_attention_heads
        return cls(vocab_size=vocab_size, **values)

    @classmethod
    def from_hugging_face(cls, config: dict[str, Any], place: str) -> ModelConfig:
        """Read a config.json. Raises UserError for an architecture or an option that this model does not have."""
        architecture = (config.get("architectures") or ["none"])[0]
        if architecture != "LlamaForCausalLM":
            raise UserError(
                "architectures", architecture, place=place, problem="is not supported", mend="LlamaForCausalLM is."
            )
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        refused = {
            "hidden_act": (config.get("hidden_act", "silu"), "silu"),
            "attention_bias": (config.get("attention_bias", False), False),
            "mlp_bias": (config.get("mlp_bias", False), False),
            "rope_scaling": (rope.get("rope_type", rope.get("type", "default")), "default"),
            "attention_dropout": (float(config.get("attention_dropout", 0)), 0.0),
        }
        for key, (value, supported) in refused.items():
            if value != supported:
                raise UserError(key, value, place=place, problem="is not supported", mend=f"{supported!r} is.")
        try:
            heads = int(config["num_attention_heads"])
            hidden = int(config["hidden_size"])
            shape = cls(
                vocab_size=int(config["vocab_size"]),
                hidden_size=hidden,
                intermediate_size=int(config["intermediate_size"]),
                num_hidden_layers=int(config["num_hidden_layers"]),
                num_attention_heads=heads,
                num_key_value_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
                max_position_embeddings=int(config["max_position_embeddings"]),
                rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
                rms_norm_eps=float(config["rms_norm_eps"]),
                initializer_range=float(config.get("initializer_range", 0.02)),
                tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            )
        except KeyError as error:
            raise UserError(str(error.args[0]), place=place, problem="is missing") from None
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError("config.json", place=place, problem=f"holds a value of the wrong kind: {error}") from None
        sizes = (value for value in vars(shape).values() if type(value) is int)
        if min(sizes) < 1 or heads % shape.num_key_value_heads or shape.head_dim % 2:
            raise UserError("config.json", place=place, problem="describes a shape that no model can have")
        return shape

    def to_hugging_face(self, bos_id: int | None, eos_id: int | None, pad_id: int | None) -> dict[str, Any]:
        """What config.json says of this model. `torch_dtype` is added by whoever writes the weights."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "rope_scaling": None,
            "use_cache": True,
            "bos_token_id": bos_id,
            "eos_token_id": eos_id,
            "pad_token_id": pad_id,
            **vars(self),
        }
