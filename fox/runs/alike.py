"""What the ranks that train together must have alike: the recipe, and of their machines what losses depend on.

Each rank reads the recipe for itself, and processes on several machines, or started by hand, may have read different ones: the gradients
of two recipes would be added up without a word. So before any work every rank tells the leader what it has.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fox.errors import Problem, shorten
from fox.recipe import LoadedRecipe, Recipe
from fox.runs.rows import attention_keeps_weights

if TYPE_CHECKING:
    from fox.train.team import Team

_SAME_COMMAND = "Start every process with the same command, the same recipe and the same -o."
_MENDS = {
    "fox": "Install the same fox on every machine.",
    "torch": "Install the same torch on every machine.",
    "precision": "-o train.precision=float32, or use machines that all multiply in bf16.",
    "attention": "Fox's own needs g++, and AVX-512 with bf16, on every machine (see the warnings); or -o train.precision=float32, which all do alike.",
}
_MAY_DIFFER = ("device", "instruction set")
"""With these, numbers are added in another order, as with another number of threads."""


def differences(team: Team, loaded: LoadedRecipe, wanted: Sequence[str]) -> tuple[list[Problem], list[str]]:
    """In what the ranks differ, the same for each of them: what to mend before they can train, and what to be warned of.

    A call for all ranks; on none it ends before all of them know. Raises Ended where another has failed.
    """
    told = team.to_leader(_mine(loaded, wanted))
    found = team.from_leader(lambda: _compared(told))
    team.to_leader(None)  # the leader, whose process may keep the store, is the last to go on, and to end
    return [Problem(**problem) for problem in found["problems"]], found["warnings"]


def _mine(loaded: LoadedRecipe, wanted: Sequence[str]) -> dict[str, Any]:
    trains = not {"pretrain", "tune"}.isdisjoint(wanted)
    return {
        "host": socket.gethostname(),
        "recipe": {"steps": list(wanted), **{key: value for key, value, _ in loaded.rows()}},
        "machine": _of_machine(loaded.recipe) if trains else {},
    }


def _of_machine(recipe: Recipe) -> dict[str, object]:
    from fox.train.machine import losses_depend_on, resolve_precision

    facts = {key: value for key, value in losses_depend_on().items() if key != "threads"}
    precision = resolve_precision(recipe.train.precision)
    attention = "torch's" if attention_keeps_weights(recipe) else "our own"
    return {**facts, "precision": precision, "attention": attention}


def _compared(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`problems` and `warnings`, of what each rank has told."""
    problems: list[Problem] = []
    warnings: list[str] = []
    for part in ("recipe", "machine"):
        pages = [one[part] for one in told]
        for key, value, ranks in _differing(pages):
            mine = pages[0].get(key)
            here = "is none on rank 0" if mine is None else "is that of rank 0"
            differ = f"{here}, and {_named(ranks, told)} has {_shown(value)}"
            if part == "machine" and key in _MAY_DIFFER:
                warnings.append(
                    f"{key} = {_shown(mine)}: {differ}. Each adds in its own way, which losses' last digits show."
                )
            else:
                problems.append(Problem(key, differ, _MENDS.get(key, _SAME_COMMAND), mine))
    moved = None if problems else _moved([one["recipe"] for one in told])
    if moved:  # the order of stages is that of training, and the order of a mix decides which rows come first
        key, rank = moved
        problems.append(Problem(key, f"stands at another place in the recipe of {_named([rank], told)}", _SAME_COMMAND))
    return {"problems": [vars(problem) for problem in problems], "warnings": warnings}


def _differing(pages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any, list[int]]]:
    """Each key of which there is another value than the first page's, that value, and on which ranks it is."""
    if not all(pages):  # a rank that trains nothing tells nothing of its machine
        return
    for key in dict.fromkeys(key for page in pages for key in page):
        others: dict[str, list[int]] = {}
        for rank, page in enumerate(pages):
            if page.get(key) != pages[0].get(key):
                others.setdefault(json.dumps(page.get(key)), []).append(rank)
        for value, ranks in others.items():
            yield key, json.loads(value), ranks


def _moved(pages: Sequence[Mapping[str, Any]]) -> tuple[str, int] | None:
    """Of pages with the same keys, the first that another than the first page has at another place, and that one's rank."""
    for rank, page in enumerate(pages):
        for key, other in zip(pages[0], page, strict=False):
            if key != other:
                return key, rank
    return None


def _named(ranks: Sequence[int], told: Sequence[Mapping[str, Any]]) -> str:
    more = f" (and so have {len(ranks) - 1} more)" if len(ranks) > 1 else ""
    return f"rank {ranks[0]} on {told[ranks[0]]['host']}{more}"


def _shown(value: object) -> str:
    return "none" if value is None else shorten(value)
