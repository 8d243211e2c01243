"""A model's shape, and its two written forms: a recipe's [model] and Hugging Face's config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fox.errors import UserError
from fox.recipe.schema import Model

# No model's sizes are larger (torch counts a matrix of two such in 64 bits), so a config.json that says so is wrong or hostile.
_LARGEST = 1 << 28


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
        if config.get("architectures") != ["LlamaForCausalLM"]:
            raise UserError(
                "architectures", config.get("architectures"), place=place,
                problem="is not supported", mend='["LlamaForCausalLM"] is.',
            )  # fmt: skip
        ropes = {key: config.get(key) or {} for key in ("rope_parameters", "rope_scaling")}  # its new and its old place
        for key, rope in ropes.items():
            kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else None
            if kind != "default":
                raise UserError(
                    key, rope, place=place, problem="is not supported", mend="Rotary positions without scaling are."
                )
        supported = {
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0,
            "quantization_config": None,
        }
        for key, value in supported.items():
            if config.get(key) not in (None, value):
                raise UserError(key, config[key], place=place, problem="is not supported", mend=f"{value!r} is.")
        theta = next((rope["rope_theta"] for rope in ropes.values() if "rope_theta" in rope), config.get("rope_theta"))
        values = _Values({**config, "rope_theta": theta}, place)
        heads, hidden = values.whole("num_attention_heads"), values.whole("hidden_size")
        shape = cls(
            vocab_size=values.whole("vocab_size"),
            hidden_size=hidden,
            intermediate_size=values.whole("intermediate_size"),
            num_hidden_layers=values.whole("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=values.whole("num_key_value_heads", heads),
            head_dim=values.whole("head_dim", hidden // heads),
            max_position_embeddings=values.whole("max_position_embeddings"),
            rope_theta=values.positive("rope_theta", 10_000.0),
            rms_norm_eps=values.positive("rms_norm_eps"),
            initializer_range=values.positive("initializer_range", 0.02),
            tie_word_embeddings=values.yes_or_no("tie_word_embeddings", False),
        )
        if heads % shape.num_key_value_heads or shape.head_dim % 2 or heads * shape.head_dim > _LARGEST:
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


class _Values:
    """What a config.json of unknown origin holds, each value of the kind that is asked for. Without one, and null, is the default."""

    def __init__(self, config: dict[str, Any], place: str) -> None:
        self._config, self._place = config, place

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if type(value) is not int or not 1 <= value <= _LARGEST:
            raise self._wrong(key, value, f"is no whole number from 1 to {_LARGEST:,}")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e38:  # float32 ends there
            raise self._wrong(key, value, "is no positive number")
        return float(value)

    def yes_or_no(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "is neither true nor false")
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self._config.get(key)
        if value is None:
            value = default
        if value is None:
            raise UserError(key, place=self._place, problem="is missing")
        return value

    def _wrong(self, key: str, value: object, problem: str) -> UserError:
        return UserError(key, value, place=self._place, problem=problem)
