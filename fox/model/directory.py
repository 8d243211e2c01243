"""A model together with its tokenizer, to and from a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import torch

from fox.artifacts import folder_made_whole
from fox.errors import UserError
from fox.formats.huggingface import read_config, read_safetensors, tensor_shapes, weights_path, write_model_files
from fox.model.config import ModelConfig
from fox.model.transformer import Transformer
from fox.tokenizer import Tokenizer

_HEAD = "lm_head.weight"


def save_model(folder: Path, model: Transformer, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32) -> None:
    """Write model and tokenizer as one directory, whole or not at all."""
    check_fit(model.config, tokenizer)
    config = model.config.to_hugging_face(tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    tensors = {_written_name(name): tensor.to("cpu", dtype) for name, tensor in model.state_dict().items()}
    with folder_made_whole(folder) as partial:
        write_model_files(partial, config, tensors)
        tokenizer.save(partial)


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Transformer, Tokenizer]:
    """Read a model directory. Raises UserError where it is none, is damaged, or its tokenizer does not fit."""
    place, weights = str(folder / "config.json"), weights_path(folder)
    config = ModelConfig.from_hugging_face(read_config(folder), place)
    tokenizer = Tokenizer.load(folder)
    check_fit(config, tokenizer)
    num_tensors = len(tensor_shapes(weights))
    if config.num_hidden_layers > num_tensors:  # before anything is made in such a number
        raise UserError(
            "num_hidden_layers",
            config.num_hidden_layers,
            place=place,
            problem=f"is too many for the {num_tensors} tensors in {weights.name}",
        )
    with torch.device("meta"):
        model = Transformer(config)
    names = {_written_name(name): name for name in model.state_dict()}
    shapes = {written: tuple(model.state_dict()[name].shape) for written, name in names.items()}
    tensors = read_safetensors(weights, shapes)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UserError("model", str(weights), problem=f"{name} holds {tensor.dtype}, which are no weights")
    model.load_state_dict({names[written]: tensor.to(dtype) for written, tensor in tensors.items()}, assign=True)
    return model.eval(), tokenizer


def check_fit(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raise UserError where the tokenizer has ids that the model has no row for, or lacks the ids that every model needs."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            "tokenizer",
            tokenizer.vocab_size,
            problem=f"has more entries than the model's vocab_size = {config.vocab_size}",
            mend="Use the tokenizer that the model was trained with.",
        )
    if tokenizer.eos_id is None:
        raise UserError(
            "tokenizer.eos_token", problem="is missing, so no reply could end", mend="Name it in tokenizer_config.json."
        )


def _written_name(name: str) -> str:
    return name if name == _HEAD else f"model.{name}"
