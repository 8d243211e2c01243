"""The JSON files of a Hugging Face model directory: config.json and generation_config.json.

The form in which Fox keeps a model; transformers, vLLM and llama.cpp's converter read it as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fox.artifacts import write_json
from fox.errors import UserError
from fox.formats.untrusted import read_untrusted, read_untrusted_json

CONFIG = "config.json"
_GENERATION = "generation_config.json"
_LARGEST = 4 << 20  # a config of a few hundred lines is some kilobytes
_LARGEST_HEAD = 1 << 16  # characters


def write_configs(
    folder: Path, config: Mapping[str, Any], dtype: str, advised: Mapping[str, Any] | None = None
) -> None:
    """Write config.json, which names the type of the weights, and generation_config.json with what is `advised` for sampling."""
    write_json(folder / CONFIG, {**config, "torch_dtype": dtype})
    generation = {f"{name}_token_id": config[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    # With _from_model_config, say, transformers would make the file's values anew, and heed none of them.
    kept = {
        key: value for key, value in (advised or {}).items() if _is_plain(key) and key[:1] != "_" and _is_plain(value)
    }
    write_json(folder / _GENERATION, {**({"do_sample": True} if advised is None else kept), **generation})


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model directory. Raises UserError where there is none or it is no JSON object."""
    config = _read_json(folder / CONFIG)
    if config is None:
        raise UserError("model", str(folder), problem="is no model directory (no config.json)", mend=_instead(folder))
    return config


def read_generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json, which a model directory may lack."""
    return _read_json(folder / _GENERATION) or {}


def read_license(folder: Path) -> str:
    """The licence that a model directory's README.md states in its head, by its name where it is `other`; or nothing.

    The head is searched and not read as YAML, of which a few lines can name a billion values.
    """
    try:
        text = read_untrusted(folder / "README.md", _LARGEST).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""
    head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    lines = f"{head[1]}\n"[:_LARGEST_HEAD].rpartition("\n")[0] if head else ""  # no line that is cut
    word = r"[\w.+-](?:[\w.+ -]{0,62}[\w.+-])?"
    stated, name = (
        re.search(rf"""^{key}:[ \t]*['"]?({word})['"]?[ \t\r]*$""", lines, re.MULTILINE)
        for key in ("license", "license_name")
    )
    if stated and name and stated[1].lower() == "other":
        return name[1]
    return stated[1] if stated else ""


def _is_plain(value: object) -> bool:
    """Whether JSON in UTF-8 can say it: NaN, half characters and what is nested are no advice that anybody gives."""
    if isinstance(value, list):
        return all(_is_plain(item) and not isinstance(item, list) for item in value)
    if isinstance(value, str):
        return not re.search("[\ud800-\udfff]", value)
    return value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _instead(folder: Path) -> str:
    """What somebody who names a folder without config.json may have meant."""
    gguf = sorted(folder.glob("*.gguf")) if folder.is_dir() else []
    if gguf:
        return f"Name the file in it: {gguf[0]}."
    return "Name a folder with config.json and safetensors files, a .gguf file, or a run of Fox's."


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = read_untrusted_json(path, _LARGEST)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, no JSON, or a number without end
        raise UserError("model", str(path), problem=f"can't be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError("model", str(path), problem="is no JSON object")
    return content
