"""An export as tests ask for one: its progress and its card matter to none of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from fox.export.export import Exported, Request, export
from fox.model.stored import StoredModel


def exported(
    stored: StoredModel,
    path: Path,
    target: Any = "gguf",
    file_type: str = "f32",
    shard_bytes: int = 10**9,
    card: Callable[[Exported], str] = lambda _: "# A card\n",
) -> Exported:
    request = Request(target, file_type, path, shard_bytes)
    return export(stored, request, {"name": "wide"}, card, Console(file=io.StringIO()))


def ignore(*_: object) -> None:
    """Nobody watches."""
