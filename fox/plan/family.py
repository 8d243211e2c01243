"""Models of the same proportions in other sizes: what `fox plan --budget` chooses from."""

from __future__ import annotations

from fox.plan.size import head_dim
from fox.recipe.schema import Model


def family(model: Model) -> list[Model]:
    """Models of the same proportions: as deep for their width, as many heads, kv heads and hidden units for it."""
    size = head_dim(model)
    group = model.num_attention_heads // model.num_key_value_heads
    found = []
    for heads in range(1, 129):
        width = heads * model.hidden_size // model.num_attention_heads
        ratio = width / model.hidden_size
        if width % 2 or not 1 / 16 <= ratio <= 16:
            continue
        fits = [n for n in range(1, heads + 1) if heads % n == 0 and n <= max(1, heads // group)]
        other = {
            "hidden_size": width,
            "intermediate_size": max(32, round(model.intermediate_size * ratio / 32) * 32),
            "num_hidden_layers": max(2, round(model.num_hidden_layers * ratio)),
            "num_attention_heads": heads,
            "num_key_value_heads": fits[-1],
            "head_dim": size,
        }
        found.append(model.model_copy(update=other))
    return found


def shape(model: Model) -> dict[str, int | None]:
    """The keys in which models of a family differ, with this one's values."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {**{name: getattr(model, name) for name in names}, "head_dim": model.head_dim}
