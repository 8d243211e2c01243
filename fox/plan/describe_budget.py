"""A proposal as a page of text for a terminal of 80 columns."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator

from fox.plan.budget import USED_FRACTION, Proposal
from fox.recipe.keys import dotted
from fox.recipe.write import toml_value


def describe_proposal(proposal: Proposal, budget: str, has_base: bool) -> str:
    """What to train in the time, what the neighbours would give, the -o list, and where each figure comes from."""
    return "\n".join(_lines(proposal, budget, has_base))


def _lines(proposal: Proposal, budget: str, has_base: bool) -> Iterator[str]:
    model = proposal.recipe.model
    by_step_law, by_deepseek = proposal.fitted_learning_rates
    yield f"For {budget} on this machine, from {proposal.recipe.name if has_base else 'a starter of Fox-1 in small'}"
    yield ""
    rows = [
        ("parameters", f"{proposal.parameters:,}"),
        ("shape", f"{model.num_hidden_layers} layers of {model.hidden_size} / {model.intermediate_size}"),
        ("tokens of pre-training", f"{proposal.tokens:,}"),
        ("tokens a parameter", f"{proposal.tokens / proposal.parameters:.1f}"),
        ("tokens a step, mean", f"{proposal.batch_tokens:,}"),
        (
            "peak learning rate",
            f"{proposal.learning_rate:g}   (Step Law {by_step_law:g}, DeepSeek's fit {by_deepseek:g})",
        ),
        ("FLOP", f"{proposal.flops:.2e}"),
        (
            "training takes",
            f"{proposal.seconds / 3600:.2f} h, {USED_FRACTION:.0%} of the time; the rest is for all else",
        ),
    ]
    if proposal.worth_tokens < 0.99 * proposal.tokens:
        rows.insert(3, ("  worth, as text repeats", f"{proposal.worth_tokens:,.0f}"))
    for name, value in rows:
        yield f"  {name:<24}  {value}"
    yield ""
    yield "Beside it, for the same time" if proposal.alternatives else "By the fit of size against tokens"
    yield f"  {'parameters':>14}  {'tokens':>14}  expected loss"
    here = (proposal.parameters, proposal.tokens, proposal.expected_loss)
    for parameters, tokens, loss in sorted([here, *proposal.alternatives]):
        mark = "  <- proposed" if parameters == proposal.parameters else ""
        yield f"  {parameters:>14,}  {tokens:>14,}  {loss:.3f}{mark}"
    yield ""
    if has_base:
        yield "As changes of the recipe (or --write FILE for a recipe of its own)"
        for key, value in proposal.changed.items():
            yield f"  -o {shlex.quote(f'{dotted(key)}={toml_value(value)}')}"
    else:
        yield "--write FILE makes a recipe of it."
    yield ""
    for note in proposal.notes:
        yield from _wrapped("! ", note)
    yield from _wrapped(
        "",
        "Size and tokens: the lowest L(N, D) = 1.82 + 482 / N^0.348 + 2085 / D^0.366 (Hoffmann et al., arXiv 2203.15556, "
        "with Besiroglu et al.'s constants, arXiv 2404.10102) among sizes of the same proportions, each with the tokens that "
        "this machine trains it on in the time; repeated text after arXiv 2305.16264. The loss is of that fit's text: it "
        "compares sizes. Learning rate and batch: Step Law, arXiv 2503.04715, equation 1: 1.79 N^-0.713 D^0.307, N "
        "without embedding, and 0.58 D^0.571, but at least 100 steps; DeepSeek LLM, arXiv 2401.02954: 0.3118 C^-0.125.",
    )


def _wrapped(mark: str, text: str) -> list[str]:
    return textwrap.wrap(text, 80, initial_indent=mark, subsequent_indent=" " * len(mark), break_on_hyphens=False)
