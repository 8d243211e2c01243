"""Words that several commands take, and the recipe that they name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

if TYPE_CHECKING:
    from fox.recipe import LoadedRecipe

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file: recipes/tiny.toml.")]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run (runs/tiny), a model's folder (Hugging Face, safetensors), a .gguf file, or a name on the hub (owner/model).",
    ),
]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        metavar="KEY=VALUE",
        help="Change one value of the recipe: -o stage.foundation.tokens=2e6. Repeat it for more.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="Where the run lives.", show_default="runs/ and the recipe's name"),
]
Redo = Annotated[
    str | None,
    typer.Option("--redo", metavar="STEP", help="Remove what this step and all later ones made, and do them again."),
]


def first_of(default: str) -> type[typer.core.TyperGroup]:
    """A group of commands in which the word `default` may be left out: `fox data RECIPE` is `fox data prepare RECIPE`."""

    class _Group(typer.core.TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            known = (*self.commands, *ctx.help_option_names)
            return super().parse_args(ctx, args if args and args[0] in known else [default, *args])

    return _Group


def load(recipe: Path, override: list[str] | None) -> LoadedRecipe:
    """The recipe with `-o` laid over it; a model that it starts from is looked into."""
    from fox.recipe import load_recipe
    from fox.recipe.start import Shape

    def shape_of(name: str) -> Shape:
        from fox.runs.start import shape_of

        return shape_of(name)

    def tell(notice: str) -> None:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun starts many, who all read it
            typer.echo(f"note: {notice}", err=True)

    return load_recipe(recipe, override or [], shape_of, tell)
