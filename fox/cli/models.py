"""The commands for a model that is there: chat, export, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fox.cli.arguments import ModelName


def chat(
    model: ModelName,
    prompt: Annotated[str | None, typer.Option(help="Answer this one message and end.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 always takes the likeliest word; 1 is as the model has it.")
    ] = 0.7,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1, help="Choose among the likeliest words that have this share together.")
    ] = 0.9,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among so many words at most; 0 is all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same replies.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest reply.")] = 256,
) -> None:
    """Talk with a model: a run, a Hugging Face folder, a GGUF file, or a name on the hub.

    Ctrl-C stops a reply, Ctrl-D ends; lines from a pipe are answered one by one.
    """
    from fox.engine.sampler import Sampling
    from fox.runs.chat import chat_with

    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    chat_with(model, prompt, system, sampling, max_tokens)


def export_(
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="The file (gguf) or folder (hf, ollama) to make.")],
    to: Annotated[
        str,
        typer.Option(
            help="gguf (llama.cpp, LM Studio), hf (transformers, vLLM), or ollama (a GGUF and its Modelfile)."
        ),
    ] = "gguf",
    file_type: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="f32, f16, bf16; for gguf and ollama q8_0, q5_1, q5_0, q4_k_m, q4_1, q4_0 too.",
            show_default="as it is stored",
        ),
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="For hf: cut the weights into files of at most this.", show_default="5GB"),
    ] = None,
) -> None:
    """Write a model for other engines. It is read back and compared with its source before it counts as done.

    Token ids must be equal on texts known to be hard, and predictions within what the type's rounding does; otherwise no file
    is left.
    """
    from rich.console import Console

    from fox.runs.export import export_model

    export_model(model, to, file_type, out, shard_size, Console(stderr=True))


def compare(
    model_a: Annotated[
        str, typer.Argument(metavar="MODEL_A", help="The model to hold the other against: see `fox chat`.")
    ],
    model_b: Annotated[
        str, typer.Argument(metavar="MODEL_B", help="The other: converted, quantised, or tuned further.")
    ],
    text: Annotated[Path, typer.Option(help="A text file that both read.")],
    chunk: Annotated[int, typer.Option(min=2, help="Tokens of context at most.")] = 512,
    max_tokens: Annotated[int, typer.Option(min=2, max=100_000, help="Compare on so many tokens at most.")] = 8192,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program.")] = False,
) -> None:
    """How far two models agree on a text: likeliest token, KL divergence, perplexity. For whatever was converted or quantised."""
    from rich.console import Console

    from fox.runs.compare import compare_models

    compare_models(model_a, model_b, text, chunk, max_tokens, as_json, Console(stderr=True))
