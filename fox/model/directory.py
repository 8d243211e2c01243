"""A model together with its tokenizer, to and from a Hugging Face directory: the form in which Fox keeps its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fox.artifacts import folder_made_whole
from fox.formats.huggingface import write_configs
from fox.formats.safetensors import SINGLE, write_safetensors
from fox.model.stored import check_fit, open_model, written_name
from fox.model.transformer import Transformer
from fox.tokenizer import Tokenizer


def save_model(
    folder: Path,
    model: Transformer,
    tokenizer: Tokenizer,
    dtype: torch.dtype = torch.float32,
    advised: Mapping[str, Any] | None = None,
) -> None:
    """Write model and tokenizer as one directory, whole or not at all; `advised` is what another's files said of sampling."""
    check_fit(model.config, tokenizer)
    config = model.config.to_hugging_face(tokenizer.bos_id, ends_of(tokenizer), tokenizer.pad_id)
    tensors = {written_name(name): tensor.to("cpu", dtype) for name, tensor in model.state_dict().items()}
    with folder_made_whole(folder) as partial:
        write_configs(partial, config, str(dtype).removeprefix("torch."), advised or None)
        write_safetensors(partial / SINGLE, tensors)
        tokenizer.save(partial)


def ends_of(tokenizer: Tokenizer) -> int | list[int] | None:
    """What ends a reply, as config.json has it: eos, or a list that begins with it."""
    others = sorted(tokenizer.stop_ids - {tokenizer.eos_id})
    return [tokenizer.eos_id, *others] if others and tokenizer.eos_id is not None else tokenizer.eos_id


def load_model(path: Path, dtype: torch.dtype = torch.float32) -> tuple[Transformer, Tokenizer]:
    """The model and tokenizer of a directory or a GGUF file. Raises UserError as `open_model` does."""
    stored = open_model(path)
    return stored.load(dtype), stored.tokenizer
