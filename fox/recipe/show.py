"""`fox show`: a resolved recipe as a table."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from fox.recipe.load import LoadedRecipe


def print_recipe(loaded: LoadedRecipe) -> None:
    """Key, value and origin of every value, on standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        for key, value, origin in loaded.rows():
            console.out(f"{key} = {json.dumps(value, ensure_ascii=False)}  # {origin}")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("key", overflow="fold")
    table.add_column("value", overflow="fold", style="cyan")
    table.add_column("from", overflow="fold", style="dim")
    for key, value, origin in loaded.rows():
        table.add_row(key, json.dumps(value, ensure_ascii=False), origin)
    console.print(table)
