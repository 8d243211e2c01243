"""What an export is, in plain values: the exporter fills it in, the card tells it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Gate:
    """How the written model agreed with its source when it was read back.

    `texts` hard texts gave the same ids; on `tokens` tokens the two predictions were compared: the divergence of the
    written model's from its source's in nats, and the share of tokens on which both find the same token likeliest.
    """

    texts: int
    tokens: int
    mean_kl_nats: float
    max_kl_nats: float
    same_top_token: float


@dataclass(frozen=True, kw_only=True)
class About:
    """A model that was written for other engines.

    target              hf (a Hugging Face directory), gguf (one file) or ollama (a directory with a GGUF file and a Modelfile)
    file_type           of the weights: bf16, q4_k_m …
    num_bytes           of the weights' files
    fox                 Fox's version
    gguf                the GGUF file's name, without folders; empty for hf
    architecture        LlamaForCausalLM …
    rope_scaling        as config.json has it; None where positions are not stretched
    tokenizer           what it is, in words: byte-level BPE
    renders_chats       whether that template makes anything of a chat; one that is broken does not
    part                which model of a run it is; empty where no run of Fox's made it
    converted_from      the model as its user named it; told where there is no run: its last part, or, from_hub, owner/name
    license             that the converted files state; empty where they state none, and for a run, whose recipe states it
    """

    name: str
    target: Literal["hf", "gguf", "ollama"]
    file_type: str
    num_bytes: int
    fox: str
    architecture: str
    parameters: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    tie_word_embeddings: bool
    tokenizer: str
    tokenizer_entries: int
    has_chat_template: bool
    renders_chats: bool = True
    bos: str | None = None
    eos: str | None = None
    rope_scaling: Mapping[str, Any] | None = None
    gguf: str = ""
    part: Literal["", "base", "tuned"] = ""
    converted_from: str = ""
    from_hub: bool = False
    license: str = ""
    gate: Gate | None = None

    @property
    def chats(self) -> bool:
        """Whether it is meant to be talked with, rather than to go on with a text."""
        return self.has_chat_template and self.renders_chats and self.part != "base"

    @property
    def is_quantized(self) -> bool:
        return self.file_type not in ("f32", "f16", "bf16")

    @property
    def short_name(self) -> str:
        """The name as file names and Ollama's models have it."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:60] or "model"
