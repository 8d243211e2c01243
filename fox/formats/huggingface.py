"""A model as a Hugging Face directory: config.json, model.safetensors, tokenizer.json, generation_config.json.

The only form in which Fox keeps a model; transformers, vLLM and llama.cpp's converter read it as it is.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fox.artifacts import disk_failures, write_json
from fox.errors import Failure, UserError

if TYPE_CHECKING:
    from torch import Tensor

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"


def write_model_files(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write config.json, generation_config.json and model.safetensors into a folder that is made whole by the caller.

    `tensors` carry Hugging Face's names ("model.layers.0…"). All have one type, which config.json states.
    """
    (dtype,) = {tensor.dtype for tensor in tensors.values()}
    write_json(folder / _CONFIG, {**config, "torch_dtype": str(dtype).removeprefix("torch.")})
    generation = {f"{name}_token_id": config[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    write_json(folder / "generation_config.json", {"do_sample": True, **generation})
    write_safetensors(folder / _WEIGHTS, tensors)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file. Raises Failure where the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with disk_failures(path):
        try:
            save_file(
                {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
                path,
                metadata={"format": "pt"},
            )
            path.chmod(path.parent.stat().st_mode & 0o666)  # the library lets its owner alone read it
        except SafetensorError as error:  # the library wraps the disk's errors in its own
            path.unlink(missing_ok=True)
            raise Failure(
                f"{path}: could not be written: {error}. Free some space and run the same command again, without --redo."
            ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model directory. Raises UserError where there is none or it is no JSON object."""
    path = folder / _CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = f"Name the model inside the run: {folder / 'model'}." if (folder / "model" / _CONFIG).exists() else ""
        raise UserError(
            "model",
            str(folder),
            problem="is no model directory (no config.json)",
            mend=hint or "Name a folder with config.json and model.safetensors.",
        ) from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or a number without end
        raise UserError("model", str(path), problem=f"can't be read: {error}") from None
    if not isinstance(config, dict):
        raise UserError("model", str(path), problem="is no JSON object")
    return config


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The name and shape of each tensor in a safetensors file, from its header."""
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)


def read_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which must be exactly those named in `shapes`, of those shapes."""
    found = tensor_shapes(path)
    wrong = sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
    if wrong:
        name = wrong[0]
        raise UserError(
            "model",
            str(path),
            problem=f"{name} is {found.get(name, 'missing')} and should be {shapes.get(name, 'absent')} "
            f"({len(wrong)} tensors do not fit config.json)",
        )
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in shapes}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        in_parts = path.with_name(f"{path.name}.index.json").exists()
        mend = (
            "Its weights are cut into several files: join them with transformers' save_pretrained." if in_parts else ""
        )
        raise UserError("model", str(path), problem="there is no such file", mend=mend) from None
    except (OSError, SafetensorError) as error:
        raise UserError("model", str(path), problem=f"is damaged: {error}", mend="Copy or make it again.") from None


def weights_path(folder: Path) -> Path:
    """Where a model directory keeps its weights."""
    return folder / _WEIGHTS
