"""`fox export`: a named model, written for other engines, with what its run's records say of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from rich.console import Console
from rich.markup import escape

import fox
from fox.errors import UserError
from fox.export.export import GGUF_IN_FOLDER, Exported, Request, Target, export, stored_type
from fox.model.stored import StoredModel
from fox.report.about import About, Gate
from fox.report.card import model_card
from fox.report.run_files import read_run
from fox.report.terms import model_license
from fox.runs.models import NamedModel, find_model, open_named
from fox.tokenizer import Tokenizer

_PARTS: dict[str, Literal["base", "tuned"]] = {"model": "base", "tuned": "tuned"}
_SHAPE = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings", "rope_theta", "rope_scaling", "tie_word_embeddings",
)  # fmt: skip
_LONGEST_LICENSE = 200
_UNITS = {None: 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


def export_model(
    name: str, target: str, file_type: str | None, out: Path, shard_size: str | None, console: Console
) -> None:
    """Write the model that `name` means to `out`, tell what the gate found, and how to run it."""
    if shard_size and target != "hf":
        raise UserError("--shard-size", shard_size, problem=f"is for hf, and this is {target}", mend="Leave it out.")
    file_type = file_type.lower() if file_type else None
    request = Request(cast(Target, target), file_type or "f32", out, _bytes_of(shard_size or "5GB"))
    request.check()  # before a model is opened
    named = find_model(name)
    stored = open_named(named)
    if file_type is None:
        request = replace(request, file_type=stored_type(stored))
    run = read_run(named.run) if named.run else None

    def card(exported: Exported) -> str:
        return model_card(_about(stored, named, request, exported), run)

    about = {"type": "model", "name": named.title, "quantized_by": f"fox {fox.__version__}"}
    license = model_license(run) if run else _license_of(stored)
    if license:
        about["license"] = license
    exported = export(stored, request, about, card, console)
    made = exported.agreement.as_dict()
    for warning in exported.warnings:
        console.print(f"warning: {escape(str(out))}: {escape(warning)}.", soft_wrap=True, highlight=False)
    console.print(
        f"[green]✓[/green] {escape(str(out))}: {request.file_type}, {exported.num_bytes / 1e6:,.1f} MB. Read back and compared: "
        f"the same ids on {exported.texts} hard texts; on {made['tokens']} tokens, mean KL {made['mean_kl_nats']:.2g} nats, "
        f"the same likeliest token on {made['same_top_token']:.1%}",
        soft_wrap=True,
        highlight=False,
    )


def _about(stored: StoredModel, named: NamedModel, request: Request, exported: Exported) -> About:
    config, tokenizer, made = stored.config, stored.tokenizer, exported.agreement.as_dict()
    written = config.to_hugging_face(None, None, None)
    shape = {key: written[key] for key in _SHAPE}
    return About(
        name=named.title,
        target=request.target,
        file_type=request.file_type,
        num_bytes=exported.num_bytes,
        fox=fox.__version__,
        architecture=written["architectures"][0],
        parameters=stored.num_parameters(),
        tokenizer=_kind_of(tokenizer),
        tokenizer_entries=tokenizer.vocab_size,
        has_chat_template=bool(tokenizer.config.get("chat_template")),
        renders_chats=exported.renders_chats,
        bos=tokenizer.token_names.get("bos_token"),
        eos=tokenizer.token_names.get("eos_token"),
        gguf={"hf": "", "gguf": request.out.name, "ollama": GGUF_IN_FOLDER}[request.target],
        part=_PARTS.get(named.part, ""),
        converted_from=named.title if named.run is None else "",
        from_hub=bool(named.hub_name),
        license=_license_of(stored),
        gate=Gate(
            texts=exported.texts,
            tokens=exported.agreement.tokens,
            mean_kl_nats=made["mean_kl_nats"],
            max_kl_nats=made["max_kl_nats"],
            same_top_token=made["same_top_token"],
        ),
        **shape,
    )


def _license_of(stored: StoredModel) -> str:
    """What the source states, on one line: a GGUF file may hold a whole page, or anything, there."""
    return " ".join(stored.license[:_LONGEST_LICENSE].split())


def _kind_of(tokenizer: Tokenizer) -> str:
    kind = type(tokenizer.backend.model).__name__
    if kind != "BPE":
        return kind
    return "byte-level BPE" if tokenizer.is_byte_level else "BPE with byte fallback"


def _bytes_of(size: str) -> int:
    """5GB, 500MB or 2GiB in bytes."""
    match = re.fullmatch(r"([1-9]\d{0,8})\s*([KMG]I?)?B", size.strip().upper())
    if not match:
        raise UserError("--shard-size", size, problem="is no size", mend="Write it as 5GB, 500MB or 2GiB.")
    return int(match[1]) * _UNITS[match[2]]
