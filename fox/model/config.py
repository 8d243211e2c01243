"""A model's shape, and two of its written forms: a recipe's [model] and Hugging Face's config.json. GGUF's is in `gguf`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fox.errors import UserError
from fox.recipe.schema import Model

# No model's sizes are larger (torch counts a matrix of two such in 64 bits), so a config.json that says so is wrong or hostile.
LARGEST = 1 << 28
_LARGEST_HEAD = 1 << 16  # 128 is usual; rotary frequencies are made before the weights are looked at


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are stretched past the context that the model was first trained for, in Hugging Face's words.

    "linear" divides every frequency by `factor` (Chen et al., arXiv 2306.15595); "llama3" the low ones alone, with a smooth
    passage between the two bounds (Llama 3.1's model card and code).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def to_hugging_face(self) -> dict[str, Any]:
        if self.kind == "linear":
            return {"rope_type": "linear", "factor": self.factor}
        return {"rope_type": self.kind, **{key: value for key, value in vars(self).items() if key != "kind"}}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama-style decoder, in Hugging Face's words. `qk_norm` is Qwen3's norm of queries and keys."""

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
    rope_scaling: RopeScaling | None = None
    qk_norm: bool = False

    @classmethod
    def from_recipe(cls, model: Model, vocab_size: int) -> ModelConfig:
        values = model.model_dump(exclude={"start_from"})
        values["head_dim"] = model.head_dim or model.hidden_size // model.num_attention_heads
        return cls(vocab_size=vocab_size, **values)

    @classmethod
    def from_hugging_face(cls, config: dict[str, Any], place: str) -> ModelConfig:
        """Read a config.json. Raises UserError for an architecture or an option that this model does not have."""
        named = config.get("architectures")
        architecture = named[0] if isinstance(named, list) and len(named) == 1 else None
        if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
            raise UserError(
                "architectures", named, place=place,
                problem="is not supported", mend=f"{' and '.join(_ARCHITECTURES)} are.",
            )  # fmt: skip
        model_type = _ARCHITECTURES[architecture]
        if config.get("model_type") not in (None, model_type):  # transformers would go by this one
            raise UserError(
                "model_type", config["model_type"], place=place,
                problem=f"is not what {architecture} is of", mend=f'"{model_type}" is.',
            )  # fmt: skip
        for key, value in _SUPPORTED.items():
            if config.get(key) not in (None, value):
                raise UserError(key, config[key], place=place, problem="is not supported", mend=f"{value!r} is.")
        kinds = config.get("layer_types") or []
        if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
            raise UserError(
                "layer_types",
                kinds,
                place=place,
                problem="is not supported",
                mend='"full_attention" in every layer is.',
            )
        theta, scaling = _rope(config, place)
        values = JsonValues({**config, "rope_theta": theta}, place)
        layers = values.whole("num_hidden_layers")
        if kinds and len(kinds) != layers:
            raise UserError(
                "layer_types", place=place, problem=f"names {len(kinds)} layers, and the model has {layers}"
            )
        is_qwen3 = model_type == "qwen3"
        heads, hidden = values.whole("num_attention_heads"), values.whole("hidden_size")
        shape = cls(
            vocab_size=values.whole("vocab_size"),
            hidden_size=hidden,
            intermediate_size=values.whole("intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=values.whole("num_key_value_heads", heads),
            head_dim=values.whole("head_dim", 128 if is_qwen3 else hidden // heads),  # as transformers has it
            max_position_embeddings=values.whole("max_position_embeddings"),
            rope_theta=values.positive("rope_theta", 10_000.0),
            rms_norm_eps=values.positive("rms_norm_eps", 1e-6),
            initializer_range=values.positive("initializer_range", 0.02),
            tie_word_embeddings=values.yes_or_no("tie_word_embeddings", False),
            rope_scaling=scaling,
            qk_norm=is_qwen3,
        )
        shape.check(place)
        return shape

    def check(self, place: str) -> None:
        """Raise UserError for a shape that no model can have."""
        heads = self.num_attention_heads
        too_large = self.head_dim > _LARGEST_HEAD or heads * self.head_dim > LARGEST
        if heads % self.num_key_value_heads or self.head_dim % 2 or too_large:
            raise UserError("model", place=place, problem="has heads of a shape that no model can have")

    def to_hugging_face(self, bos_id: int | None, eos_id: int | list[int] | None, pad_id: int | None) -> dict[str, Any]:
        """What config.json says of this model. `torch_dtype` is added by whoever writes the weights."""
        shape = {key: value for key, value in vars(self).items() if key not in ("rope_scaling", "qk_norm")}
        model_type = "qwen3" if self.qk_norm else "llama"
        (architecture,) = (name for name, kind in _ARCHITECTURES.items() if kind == model_type)
        return {
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            **({} if self.qk_norm else {"mlp_bias": False}),
            "rope_scaling": self.rope_scaling.to_hugging_face() if self.rope_scaling else None,
            "use_cache": True,
            "bos_token_id": bos_id,
            "eos_token_id": eos_id,
            "pad_token_id": pad_id,
            **shape,
        }


_ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}

_SUPPORTED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0,
    "quantization_config": None,
    "use_sliding_window": False,
}
"""Options of these architectures, and the one value of each that Fox's model computes."""


_ROPE_KEYS = {
    "rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    "partial_rotary_factor",
}  # fmt: skip


def _rope(config: dict[str, Any], place: str) -> tuple[Any, RopeScaling | None]:
    """Theta (None where the config has none) and scaling, from the old place of the two or the new.

    Raises UserError where they contradict each other: which of them is believed differs between releases of transformers.
    """
    theta = config.get("rope_theta")
    stated = [key for key in ("rope_scaling", "rope_parameters") if config.get(key)]  # before and since release 5
    scalings = [_scaling(key, config, place) for key in stated]
    if len(scalings) == 2 and scalings[0] != scalings[1]:
        raise UserError("rope_scaling", config["rope_scaling"], place=place, problem="is not what rope_parameters says")
    thetas = [config[key]["rope_theta"] for key in stated if config[key].get("rope_theta") is not None]
    if "rope_theta" in config and theta is None and not thetas:
        raise UserError("rope_theta", place=place, problem="is null")
    if any(other != (theta if theta is not None else thetas[0]) for other in thetas):
        raise UserError("rope_theta", theta, place=place, problem=f"is not {thetas[0]}, as {stated[-1]} says")
    return theta if theta is not None else next(iter(thetas), None), next(iter(scalings), None)


def _scaling(key: str, config: dict[str, Any], place: str) -> RopeScaling | None:
    rope = config[key]
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else None
    if kind not in ("default", "linear", "llama3"):
        raise UserError(
            key, rope, place=place, problem="is not supported",
            mend='Rotary positions without scaling, and of type "linear" or "llama3", are.',
        )  # fmt: skip
    unknown = sorted(name for name, value in rope.items() if name not in _ROPE_KEYS and value is not None)
    if unknown or rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        name = (unknown or ["partial_rotary_factor"])[0]
        raise UserError(f"{key}.{name}", rope[name], place=place, problem="is not supported")
    values = JsonValues(rope, place, f"{key}.")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", values.positive("factor"))
    scaling = RopeScaling(
        "llama3",
        values.positive("factor"),
        values.positive("low_freq_factor"),
        values.positive("high_freq_factor"),
        values.whole("original_max_position_embeddings"),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise UserError(key, rope, place=place, problem="has a high_freq_factor not above its low_freq_factor")
    above = config.get("original_max_position_embeddings")  # which transformers would prefer
    if above not in (None, scaling.original_max_position_embeddings):
        raise UserError("original_max_position_embeddings", above, place=place, problem=f"is not what {key} says")
    return scaling


class JsonValues:
    """What a config.json of unknown origin holds, each value of the kind that is asked for. Without one, and null, is the default."""

    def __init__(self, config: dict[str, Any], place: str, within: str = "") -> None:
        self._config, self._place, self._within = config, place, within

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if type(value) is not int or not 1 <= value <= LARGEST:
            raise self._wrong(key, value, f"is no whole number from 1 to {LARGEST:,}")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float) or not 1e-37 < value < 1e38:  # float32 ends there
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
            raise UserError(f"{self._within}{key}", place=self._place, problem="is missing")
        return value

    def _wrong(self, key: str, value: object, problem: str) -> UserError:
        return UserError(f"{self._within}{key}", value, place=self._place, problem=problem)
