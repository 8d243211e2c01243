"""What a run has to show for itself, on standard output: the figures, and a short chat."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fox.progress import in_short
from fox.runs.folder import Run


def print_summary(run: Run) -> None:
    """Sources, scores, a short chat with the tuned model, and where to look next."""
    console = Console(highlight=False)
    print_sources(run)
    print_scores(run)
    results = _results(run)
    for sample in results.get("samples", []):
        console.print(f"\n[bold]you[/bold]  {escape(sample['prompt'])}", soft_wrap=True)
        console.print(f"[bold cyan]fox[/bold cyan]  {escape(sample['tuned'])}", soft_wrap=True)
    best = "tuned" if run.recipe.tune else "model"
    console.print(
        f"\nreport  {run.folder}/report/index.html\nchat    {_program()} chat {run.folder}/{best}", soft_wrap=True
    )


def print_sources(run: Run) -> None:
    """What was read, and what was set aside and why."""
    table = _table("source", "documents", "duplicates", "bad", "training tokens", "bytes a token")
    console = Console(highlight=False)
    sources = run.needs("data")["facts"]["sources"]
    for name, facts in sources.items():
        table.add_row(
            name,
            f"{facts['documents']:,}",
            f"{facts['duplicates']:,}",
            f"{facts['bad']:,}",
            in_short(facts["train"]["tokens"]),
            f"{facts['bytes_per_token']:.2f}",
        )
    console.print(table)
    for name, facts in sources.items():
        reading = facts["reading"]
        for reason, count in reading["bad"].items():
            first = next((bad["place"] for bad in reading["first_bad"] if bad["reason"] == reason), "")
            console.print(
                f"  {name}: set aside {count:,} x {escape(reason)} [dim](first: {escape(first)})[/dim]", soft_wrap=True
            )
        hits = facts.get("contaminated", {"documents": {}})
        for file, count in hits["documents"].items():
            console.print(
                f"  {name}: left out {count:,} documents with texts of {escape(file)} [dim](first: {escape(hits['first_places'][file][0])})[/dim]",
                soft_wrap=True,
            )
        for kind, count in reading.get("masked", {}).items():
            console.print(f"  {name}: masked {count:,} x {kind}", soft_wrap=True)
        for reason, count in reading["left_out"].items():
            console.print(f"  {name}: left out {count:,} x {escape(reason)}", soft_wrap=True)
        for reason, count in reading["skipped"].items():
            console.print(f"  {name}: did not open {count:,} x {escape(reason)}", soft_wrap=True)
        if not facts["heldout"]["documents"]:
            console.print(f"  {name}: too few documents to hold one out, so it is not measured", soft_wrap=True)


def print_scores(run: Run) -> None:
    """Held-out bits per byte after each stage and tuning, beside the bigram's; and how replies read."""
    console = Console(highlight=False)
    results = _results(run)
    per_model, assistant = results["bits_per_byte"], results["assistant_bits_per_byte"]
    sources = list(results["heldout"])
    chats = [name for name in sources if name in assistant["base"]]
    table = _table("held-out bits per byte", *sources, *(f"{name}: replies" for name in chats))
    bigram = results["kneser_ney_bits_per_byte"]
    table.add_row("Kneser-Ney bigram", *(f"{bigram[name]:.3f}" for name in sources), *("" for _ in chats))
    for model in per_model:
        known = {"start": "before", "averaged": "averaged, not taken", "base": "base model", "tuned": "tuned model"}
        label = known.get(model, f"after stage {model}")
        row = [per_model[model][name] for name in sources] + [assistant[model][name] for name in chats]
        table.add_row(label, *(f"{value:.3f}" for value in row))
    console.print(table)
    replies = results.get("replies")
    if replies:
        known = replies["known_words"] / max(1, replies["words"])
        console.print(
            f"{replies['ended']} of {replies['chats']} replies to held-out chats end by themselves; "
            f"{known:.1%} of their {replies['words']} words occur in the training text",
            soft_wrap=True,
        )


def _program() -> str:
    """What was typed to get here: `fox`, or `.venv/bin/fox` where it is not on the path."""
    return sys.argv[0] if Path(sys.argv[0]).name == "fox" else "fox"


def _results(run: Run) -> dict[str, Any]:
    return json.loads((run.folder / "eval" / "results.json").read_text(encoding="utf-8"))


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
