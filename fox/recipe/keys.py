"""How a key of a recipe is written: `stage.foundation.tokens`, `source."v1.5".path`, `eval.prompts[1]`."""

from __future__ import annotations

import re
import tomllib
from typing import Any

KeyPath = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def dotted(key: KeyPath) -> str:
    """A key path as it is written in TOML and after `-o`, quoted where it must be; `key_path` reads it back."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE.fullmatch(part) else _quoted(part))
    return text


def key_path(text: str) -> KeyPath:
    """The key path that `text` spells. Raises ValueError where it spells none."""
    if "\n" in text:
        raise ValueError("a key stands on one line")
    parts: list[str] = []
    table: Any = tomllib.loads(f"{text} = 0")
    while isinstance(table, dict):
        ((part, table),) = table.items()
        parts.append(part)
    return tuple(parts)


def _quoted(part: str) -> str:
    shown = (f"\\{sign}" if sign in '"\\' else sign if sign.isprintable() else f"\\U{ord(sign):08x}" for sign in part)
    return f'"{"".join(shown)}"'
