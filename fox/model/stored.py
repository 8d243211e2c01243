"""A model as it lies on the disk, whoever made it: its shape, its tokenizer, and its weights, read a few rows at a time.

R rows, C columns
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fox.errors import UserError
from fox.formats.gguf.reader import MAGIC, GgufFile
from fox.formats.huggingface import read_config, read_generation_config, read_license
from fox.formats.safetensors import SafetensorsFiles, check_shapes
from fox.formats.untrusted import open_untrusted
from fox.memory import machine_bytes
from fox.model.config import ModelConfig
from fox.model.gguf import GgufWeights, config_from_gguf
from fox.model.transformer import Transformer
from fox.tokenizer import Tokenizer
from fox.tokenizer.from_gguf import tokenizer_from_gguf

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
_CHUNK_WEIGHTS = 4 << 20  # 16 MB of float32


class Weights(Protocol):
    """Tensors on the disk, under Hugging Face's names."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def stored_types(self) -> Mapping[str, str]:
        """Of each tensor: F32, BF16, Q4_0 …"""
        ...

    def read_rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` of a tensor (R, C), in whatever floating-point type. A vector is one row."""
        ...


@dataclass(frozen=True)
class StoredModel:
    """A checked model: the weights are those, and of the shapes, that its configuration asks for.

    `warnings` are what its user should know: where its files disagree, and what was believed. `license` is what its files
    state; `generation` what generation_config.json advises beside token ids (temperature and the like).
    """

    path: Path
    config: ModelConfig
    tokenizer: Tokenizer
    weights: Weights
    warnings: tuple[str, ...] = ()
    license: str = ""
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Its tensors, in the order in which they are used."""
        return list(expected_shapes(self.config))

    def chunks(self, name: str) -> Iterator[Tensor]:
        """A tensor's rows in order (R, C), about 16 MB of float32 at a time."""
        shape = self.weights.shapes[name]
        num_rows = shape[0] if len(shape) > 1 else 1
        rows = max(1, _CHUNK_WEIGHTS // shape[-1])
        for start in range(0, num_rows, rows):
            yield self.weights.read_rows(name, start, min(start + rows, num_rows))

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A whole tensor in its own shape."""
        shape = self.weights.shapes[name]
        if self.weights.stored_types[name] == _CODES.get(dtype):  # may stay where it lies
            return self.weights.read_rows(name).view(shape)
        whole = torch.empty(shape, dtype=dtype)
        self.read_into(whole, name)
        return whole

    def read_into(self, whole: Tensor, name: str) -> None:
        """A whole tensor into one of its shape that is there already, and of its type."""
        rows_RC = whole.view(-1, whole.shape[-1])
        start = 0
        for chunk_RC in self.chunks(name):
            rows_RC[start : start + len(chunk_RC)] = chunk_RC
            start += len(chunk_RC)

    def load(self, dtype: torch.dtype = torch.float32) -> Transformer:
        """The model in memory, ready to run. Raises UserError where this machine has less than it takes."""
        needed, there = self.num_parameters() * dtype.itemsize, machine_bytes()
        if there and needed > there:  # the system would end us midway, without a word
            raise UserError(
                "model", str(self.path),
                problem=f"takes {needed / 1e9:,.1f} GB of memory, and this machine has {there / 1e9:,.1f} GB",
                mend="Take a smaller model, or a machine with more memory.",
            )  # fmt: skip
        with torch.device("meta"):
            model = Transformer(self.config)
        names = {name: written_name(name) for name in model.state_dict()}
        model.load_state_dict({name: self.tensor(written, dtype) for name, written in names.items()}, assign=True)
        return model.eval()

    def num_parameters(self) -> int:
        """Each counted once, a tied embedding too."""
        return sum(torch.Size(shape).numel() for shape in expected_shapes(self.config).values())


def open_model(path: Path) -> StoredModel:
    """Read all but the weights of a Hugging Face directory or a GGUF file.

    Raises UserError where it is neither, is damaged, is of an unsupported kind, or its parts do not fit each other.
    """
    try:
        is_file = path.is_file()
    except OSError as error:  # a name that is too long, or a folder that may not be looked into
        raise UserError("model", str(path), problem=f"can't be read: {error.strerror}") from None
    return _open_gguf(path) if is_file else _open_directory(path)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of each tensor of a model, as Hugging Face writes them.

    All layers are alike, so one alone is made: a hostile file may claim, and seem to have, thousands.
    """
    with torch.device("meta"):
        model = Transformer(replace(config, num_hidden_layers=1))
    made = {written_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    first = "model.layers.0."
    in_layer = {name.removeprefix(first): made.pop(name) for name in list(made) if name.startswith(first)}
    layers = {
        f"model.layers.{number}.{name}": shape
        for number in range(config.num_hidden_layers)
        for name, shape in in_layer.items()
    }
    return {EMBEDDING: made.pop(EMBEDDING), **layers, **made}


def written_name(name: str) -> str:
    """Hugging Face's name of one of our parameters."""
    return name if name == HEAD else f"model.{name}"


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


_CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def _open_directory(folder: Path) -> StoredModel:
    place = str(folder / "config.json")
    written = read_config(folder)
    config = ModelConfig.from_hugging_face(written, place)
    tokenizer = Tokenizer.load(folder)
    weights = SafetensorsFiles(folder)
    generation = read_generation_config(folder)
    warnings = [*tokenizer.warnings, *_believe_the_tokenizer(tokenizer, written, generation)]
    _check_layers(config, len(weights.shapes), place)
    _leave_out_copies(config, weights)
    advised = {key: value for key, value in generation.items() if not key.endswith(("_token_id", "_version"))}
    return _checked(StoredModel(folder, config, tokenizer, weights, tuple(warnings), read_license(folder), advised))


def _open_gguf(path: Path) -> StoredModel:
    try:
        with open_untrusted(path) as opened:
            start = opened.read(len(MAGIC))
    except OSError as error:
        raise UserError("model", str(path), problem=f"can't be read: {error}") from None
    if start != MAGIC:
        raise UserError("model", str(path), problem="is no GGUF file", mend=_instead(path, start))
    file = GgufFile(path)
    config = config_from_gguf(file)
    _check_layers(config, len(file.tensors), str(path))
    weights = GgufWeights(file, config, list(expected_shapes(config)))
    tokenizer = tokenizer_from_gguf(file.metadata)
    stated = file.metadata.scalar("general.license") if "general.license" in file.metadata else ""
    license = stated if isinstance(stated, str) else ""
    return _checked(StoredModel(path, config, tokenizer, weights, tuple(tokenizer.warnings), license))


def _checked(stored: StoredModel) -> StoredModel:
    check_fit(stored.config, stored.tokenizer)
    by = "config.json" if stored.path.is_dir() else "its metadata"
    check_shapes(stored.path, stored.weights.shapes, expected_shapes(stored.config), by)
    return stored


def _check_layers(config: ModelConfig, num_tensors: int, place: str) -> None:
    """Before anything is made in the number of layers that a file claims to have."""
    if config.num_hidden_layers > num_tensors:
        raise UserError(
            "num_hidden_layers", config.num_hidden_layers, place=place,
            problem=f"is too many for the {num_tensors} tensors that there are",
        )  # fmt: skip


def _leave_out_copies(config: ModelConfig, weights: SafetensorsFiles) -> None:
    """Forget tensors that say nothing of their own: rotary frequencies that old releases saved, and a tied head beside its embedding.

    Raises UserError where a head that config.json calls tied differs from the embedding.
    """
    for name in [name for name in weights.shapes if name.endswith(".rotary_emb.inv_freq")]:
        del weights.shapes[name]
    embedding = (
        config.vocab_size,
        config.hidden_size,
    )  # held against the file first, as their rows are read by these sizes
    if config.tie_word_embeddings and weights.shapes.get(HEAD) == weights.shapes.get(EMBEDDING) == embedding:
        rows = max(1, _CHUNK_WEIGHTS // config.hidden_size)
        for start in range(0, config.vocab_size, rows):
            stop = min(start + rows, config.vocab_size)
            if not torch.equal(weights.read_rows(HEAD, start, stop), weights.read_rows(EMBEDDING, start, stop)):
                raise UserError(
                    "tie_word_embeddings", True, problem=f"but {HEAD} is not the embedding",
                    mend="Set it to false in config.json, or remove that tensor.",
                )  # fmt: skip
        del weights.shapes[HEAD]


def _believe_the_tokenizer(tokenizer: Tokenizer, *configs: Mapping[str, Any]) -> list[str]:
    """Take up what else ends a reply from the model's configs, and tell where they contradict the tokenizer, which wins.

    The released Fox-1 config, for one, has bos = 1 and eos = 2, and its tokenizer the other way round.
    """
    special = set(tokenizer.special_ids.values())
    named: dict[str, set[int]] = {"bos": set(), "eos": set()}
    for config in configs:
        beginnings, ends = (set(_ids(config.get(f"{name}_token_id"))) for name in named)
        # Ends are often several (Qwen3 and Llama 3 name theirs in a list), and what may begin a text can be one of them. But
        # where a config has the two the other way round, it calls the tokenizer's bos an end by mistake.
        agrees = tokenizer.bos_id in beginnings if beginnings else tokenizer.eos_id in ends
        tokenizer.stop_ids |= {i for i in ends if i in special and (agrees or i != tokenizer.bos_id)}
        named["bos"] |= beginnings
        named["eos"] |= ends
    wrong = {
        "bos": named["bos"] - {tokenizer.bos_id} if tokenizer.bos_id is not None else set(),
        "eos": named["eos"] - tokenizer.stop_ids,
    }
    told = [
        f"{name} is {', '.join(map(str, sorted(ids)))} in its config and {ours} in its tokenizer"
        for name, ids, ours in (("bos", wrong["bos"], tokenizer.bos_id), ("eos", wrong["eos"], tokenizer.eos_id))
        if ids
    ]
    return [f"{'; '.join(told)}: the tokenizer's are used"] if told else []


def _ids(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [i for i in values if type(i) is int]


def _instead(path: Path, start: bytes) -> str:
    """What somebody who names a file that is no GGUF may have meant."""
    if start[:1] == b"\x80" or start[:2] == b"PK" or path.suffix in (".bin", ".pt", ".pth", ".pkl"):
        return "It looks like a pickle, which can run anything its maker wanted, so it is never opened: ask for safetensors."
    if path.suffix == ".safetensors":
        return f"Name the folder that it is in, with config.json and tokenizer.json: {path.parent}."
    return "Name a folder with config.json and safetensors files, a .gguf file, or a run of Fox's."
