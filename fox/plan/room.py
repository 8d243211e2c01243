"""What the memory of a machine has room for: the rows of a pass, and the model."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from fox.errors import UserError
from fox.plan.fits import PROCESS_BYTES, step_memory
from fox.plan.rows import FILLED_FRACTION
from fox.plan.size import count_parameters
from fox.recipe.schema import Model, Recipe
from fox.recipe.stage import Stage


@dataclass(frozen=True)
class Room:
    """The free memory of each of `devices` that share the state; how they multiply and attend is told as to `step_memory`."""

    free_bytes: int
    bf16_products: bool = True
    keeps_weights: bool = True
    devices: int = 1

    @property
    def usable_bytes(self) -> int:
        """What training may fill of it."""
        return int(FILLED_FRACTION * self.free_bytes)

    def needed(self, recipe: Recipe, stage: Stage, rows: int) -> int:
        """Bytes of a process at a step of `stage` with so many rows a pass."""
        other = stage.model_copy(update={"rows": rows})
        vocab_size = recipe.tokenizer.vocab_size
        step = step_memory(recipe, other, vocab_size, self.bf16_products, self.devices, self.keeps_weights)
        return PROCESS_BYTES + step.total

    def fitting(self, base: Recipe, models: Sequence[Model]) -> list[Model]:
        """Those of `models` that `base` could have, with a single row a pass if need be. Raises UserError where there is none."""
        least = [self._least(base, model) for model in models]
        found = [model for model, needed in zip(models, least, strict=True) if needed <= self.usable_bytes]
        if not found:
            which = "even the smallest model of these proportions" if len(models) > 1 else "the model"
            raise UserError(
                "--budget",
                problem=f"buys nothing that fits: a step of {which} takes {min(least) / 1e9:.1f} GB with a single row a "
                f"pass, and {self.usable_bytes / 1e9:.1f} GB of memory may be filled",
                mend="Shorten the chunks, free some memory, or see what takes less: docs/pretraining.md, Memory.",
            )
        return found

    def with_model(self, base: Recipe, model: Model) -> Recipe:
        """`base` with another model, and with fewer rows in the stages that have no room for theirs; batches are left as they are."""
        recipe = base.model_copy(update={"model": model})
        stages = {name: self._with_fewer_rows(recipe, stage) for name, stage in recipe.stage.items()}
        tune = self._with_fewer_rows(recipe, recipe.tune) if recipe.tune else None
        return recipe.model_copy(update={"stage": stages, "tune": tune})

    def too_little_for(self, base: Recipe, model: Model) -> str:
        """A note on a model that the time would buy."""
        parameters = count_parameters(model, base.tokenizer.vocab_size).total
        return (
            f"By the time alone, a model of {parameters / 1e6:,.0f} M parameters would be best. A step of it takes "
            f"{self._least(base, model) / 1e9:.1f} GB of memory with a single row a pass, and {self.usable_bytes / 1e9:.1f} GB may "
            f"be filled, {FILLED_FRACTION:.0%} of what is free: this is the best of those that fit. What takes less memory: "
            "docs/pretraining.md, Memory."
        )

    def _least(self, base: Recipe, model: Model) -> int:
        """Bytes of a process at the fullest stage, with a single row a pass in each."""
        recipe = base.model_copy(update={"model": model})
        stages = [*recipe.stage.values(), *([recipe.tune] if recipe.tune else [])]
        return max(self.needed(recipe, stage, rows=1) for stage in stages)

    def _with_fewer_rows(self, recipe: Recipe, stage: Stage) -> Stage:
        fits = bisect_right(
            range(1, stage.rows + 1), self.usable_bytes, key=lambda rows: self.needed(recipe, stage, rows)
        )
        return stage.model_copy(update={"rows": max(1, fits)})
