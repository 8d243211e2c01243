"""`fox runs`: which runs there are and how far, what differs between some, and what of one can be thrown away.

Nothing here needs a whole run: a folder that is half-done, damaged or of another version is listed with what can be read of it.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fox.artifacts import PARTIAL, REPLACED, locked, remove_at_once, write_atomically
from fox.errors import Failure, UserError
from fox.recipe.schema import Schedule, Train
from fox.recipe.stage import Stage
from fox.report.run_files import STEPS, Metrics, RunFiles, read_run
from fox.train.events import read_events

_FOLDERS = {"tokenizer": "tokenizer", "data": "data", "pretrain": "pretrain", "tune": "tune", "eval": "eval"}
_LATEST = "latest"


@dataclass(frozen=True)
class Summary:
    """A run on a line or two. `state` maps each step to done, running, stopped or nothing."""

    name: str
    folder: str
    running: bool
    state: dict[str, str]
    tokens_done: int
    tokens_planned: int | None
    loss: float | None
    heldout_bits_per_byte: dict[str, float]
    bytes: int
    changed: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Waste:
    """Something that a run no longer needs."""

    path: Path
    why: str
    bytes: int


def summaries(folder: Path) -> list[Summary]:
    """All runs right below `folder`, the last changed first; none where it is not there. Raises UserError where it is a file."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise UserError("--in", str(folder), problem="is no folder", mend="Name the folder that runs lie in.")
    found = [summary for path in sorted(folder.iterdir()) if path.is_dir() and (summary := _summary(path))]
    return sorted(found, key=lambda one: one.changed, reverse=True)


def compare_runs(folders: list[Path], picture: Path | None) -> dict[str, Any]:
    """Recipe keys in which runs differ, their scores and speed, by the runs' folders; and their losses drawn in `picture`."""
    runs = {str(folder): read_run(folder) for folder in folders}
    if len(runs) < 2:
        raise UserError("RUNS", str(folders[0]), problem="is one run", mend="Name two or more different ones.")
    recipes = {name: {key: value for key, value, _ in run.recipe.rows} for name, run in runs.items()}
    keys = dict.fromkeys(key for recipe in recipes.values() for key in recipe)
    differing = {}
    for key in keys:
        values = [json.dumps(recipe.get(key)) for recipe in recipes.values()]
        if len(set(values)) > 1:
            differing[key] = {name: recipe.get(key) for name, recipe in recipes.items()}
    if picture:
        write_atomically(picture, _losses_of(runs))
    return {
        "recipe": differing,
        "runs": {name: {**asdict(_told(Path(name), run)), **_speed(run)} for name, run in runs.items()},
        "picture": str(picture) if picture else None,
    }


def waste_of(folder: Path) -> list[Waste]:
    """What a run does not need to go on, be read or be drawn. Raises UserError where `folder` is no run."""
    read_run(folder)
    found = []
    for path in _walk(folder):
        if path.name.startswith((PARTIAL, REPLACED)):
            found.append(Waste(path, "left by a process that was killed", _size(path)))
    for step in ("pretrain", "tune"):
        found += [
            Waste(path, "older than the checkpoints that the run keeps", _size(path)) for path in _old(folder, step)
        ]
    for path in sorted((folder / "find-lr").glob("rate-*/checkpoints")):
        if (path.parent / "result.json").is_file():
            found.append(Waste(path, "of a trial that is done", _size(path)))
    return found


def clean(folder: Path) -> list[Waste]:
    """Remove what `waste_of` finds. Raises Failure, with nothing removed, where the run is running."""
    read_run(folder)
    if is_running(folder):
        raise Failure(f"{folder}: a fox process is working in this run. Nothing was removed; stop it first, or wait.")
    before = waste_of(folder)  # what killed processes left goes as the lock is taken
    with locked(folder):
        remove_at_once(waste.path for waste in waste_of(folder))
    return before


def is_running(folder: Path) -> bool:
    """Whether a process holds the run. Looks only, and writes nothing."""
    try:
        lock = os.open(folder / "lock", os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def describe_runs(found: list[Summary], folder: Path) -> str:
    """The runs by their folders' names; lines of at most 60 characters where names are short."""
    if not found:
        return f"no runs below {folder}"
    return "\n".join([f"In {folder}:", *(line for summary in found for line in _lines(summary))])


def describe_comparison(compared: dict[str, Any]) -> str:
    """The comparison as lines: keys that differ, then each run's figures."""
    lines = ["Recipe keys that differ" if compared["recipe"] else "The recipes are the same."]
    for key, values in compared["recipe"].items():
        lines += [f"  {key}", *(f"    {Path(name).name}: {_short(value)}" for name, value in values.items())]
    for name, told in compared["runs"].items():
        lines += ["", name, f"  tokens {told['tokens_done']:,}, loss {_number(told['loss'])}"]
        lines.append(f"  tokens/s {_number(told['tokens_per_second'], 0)}, hours {_number(told['hours'], 2)}")
        lines += [f"  {source}: {bits:.3f} bits per byte" for source, bits in told["heldout_bits_per_byte"].items()]
    if compared["picture"]:
        lines += ["", f"Losses by tokens: {compared['picture']}"]
    return "\n".join(lines)


def describe_waste(folder: Path, found: list[Waste], removed: bool) -> str:
    """What would go, or has gone."""
    if not found:
        return f"{folder}: nothing to remove"
    lines = [f"{waste.path.relative_to(folder)}  {in_bytes(waste.bytes)}\n  {waste.why}" for waste in found]
    total = in_bytes(sum(waste.bytes for waste in found))
    lines.append(f"removed {total}" if removed else f"{total} in all; nothing is removed yet: add --yes")
    return "\n".join(lines)


def in_bytes(size: int) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


def _summary(folder: Path) -> Summary | None:
    try:
        return _told(folder, read_run(folder))
    except UserError:
        return None


def _told(folder: Path, run: RunFiles) -> Summary:
    running = is_running(folder)
    state = {step: _state(folder, run, step) for step in STEPS}
    if running:
        at = next((step for step in STEPS if state[step] != "done"), None)
        if at:
            state[at] = "running"
    tables = run.recipe.recipe.get("stage")
    stages = list(tables.values()) if isinstance(tables, dict) else []
    planned = [stage["tokens"] for stage in stages if isinstance(stage, dict) and isinstance(stage.get("tokens"), int)]
    loss = _last_loss(run.pretrain)
    changed = max((path.stat().st_mtime for path in folder.rglob("*.json*") if path.is_file()), default=0.0)
    bits = run.results.bits_per_byte if run.results else {}
    return Summary(
        name=run.name,
        folder=str(folder),
        running=running,
        state=state,
        tokens_done=int(run.pretrain.rows[-1].tokens) if run.pretrain else 0,
        tokens_planned=sum(planned) or None,
        loss=loss,
        heldout_bits_per_byte=bits.get("base", {}),
        bytes=_size(folder),
        changed=datetime.datetime.fromtimestamp(changed, datetime.UTC).isoformat(timespec="minutes")[:16],
        notes=list(run.notes),
    )


def _state(folder: Path, run: RunFiles, step: str) -> str:
    if step in run.manifests:
        return "done"
    return "stopped" if (folder / _FOLDERS[step]).exists() else ""


def _last_loss(metrics: Metrics | None) -> float | None:
    if metrics is None:
        return None
    loss = metrics.column("loss")
    finite = loss[np.isfinite(loss)]
    return float(finite[-1]) if len(finite) else None


def _speed(run: RunFiles) -> dict[str, float | None]:
    if run.pretrain is None:
        return {"tokens_per_second": None, "hours": None}
    speeds, seconds = run.pretrain.column("tokens_per_second"), run.pretrain.column("seconds")
    median = float(np.nanmedian(speeds)) if np.isfinite(speeds).any() else None
    hours = float(np.nanmax(seconds)) / 3600 if np.isfinite(seconds).any() else None
    return {"tokens_per_second": median, "hours": hours}


def _lines(summary: Summary) -> Iterator[str]:
    signs = {"done": "✓", "running": "…", "stopped": "▪", "": "·"}
    steps = " ".join(f"{step}{signs[state]}" for step, state in summary.state.items())
    named = f", {summary.name}" if summary.name != Path(summary.folder).name else ""
    yield f"{Path(summary.folder).name}{named}{'  (running)' if summary.running else ''}"
    yield f"  {steps}"
    planned = f" of {_tokens(summary.tokens_planned)}" if summary.tokens_planned else ""
    yield f"  {_tokens(summary.tokens_done)}{planned} tokens, loss {_number(summary.loss)}"
    if summary.heldout_bits_per_byte:
        for source, bits in summary.heldout_bits_per_byte.items():
            yield f"  {source}: {bits:.3f} bits per byte"
    yield f"  {in_bytes(summary.bytes)}, changed {summary.changed.replace('T', ' ')}"


def _tokens(number: int) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _number(value: float | None, digits: int = 3) -> str:
    return "?" if value is None else f"{value:,.{digits}f}"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 48 else f"{text[:47]}…"


def _old(run: Path, step: str) -> list[Path]:
    """Checkpoints that training itself would remove, with the one that `latest` names (without it: the newest) just saved.

    Once the model is made, none is needed any more to be averaged, or to go back to in trouble. Raises Failure where the run's record is
    damaged.
    """
    folder = run / step / "checkpoints"
    names = sorted(path.name for path in folder.glob("step-*") if path.name[5:].isdecimal())
    if not names:
        return []
    try:
        latest = (folder / _LATEST).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        latest = names[-1]
    try:
        recipe = json.loads((run / "recipe.json").read_bytes())["recipe"]
        schedule, train = Schedule.model_validate(recipe["schedule"]), Train.model_validate(recipe["train"])
        stages = [Stage.model_validate(stage) for stage in recipe["stage"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []  # what is to be kept is not known
    if latest not in names:
        return []  # damaged: nothing is taken away that may have to replace it
    from fox.train.averaging import averaged_steps
    from fox.train.checkpoint import Checkpoints, Identity, Progress
    from fox.train.trouble import looks_back

    is_made = (run / "manifests" / f"{step}.json").is_file()
    checkpoints = Checkpoints(
        folder,
        Identity({}, {}),
        train.keep_checkpoints,
        train.milestone_every_steps,
        needed_steps=averaged_steps(stages, schedule, train) if step == "pretrain" and not is_made else [],
        drift_steps=0 if is_made else looks_back(train),
    )
    return checkpoints.outlived(Progress(int(latest[5:]), events=read_events(run / step)))


def _walk(folder: Path) -> Iterator[Path]:
    """What is in a folder, and in those in it; not into what a killed process left, nor through links."""
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink() and not path.name.startswith((PARTIAL, REPLACED)):
            yield from _walk(path)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def _losses_of(runs: dict[str, RunFiles]) -> bytes:
    """The smoothed losses of all runs by tokens, as a PNG."""
    from matplotlib.figure import Figure

    from fox.report.plots import smoothed, thinned
    from fox.report.style import BASELINE, SOURCES, chart_style, clip, png

    with chart_style(9):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for number, (name, run) in enumerate(runs.items()):
            if run.pretrain is None:
                continue
            loss = smoothed(run.pretrain.column("loss"), run.pretrain.bands)
            colour = SOURCES[number] if number < len(SOURCES) else BASELINE
            axes.plot(*thinned(run.pretrain.column("tokens"), loss), color=colour, label=clip(Path(name).name, 30))
        axes.set_xlabel("tokens")
        axes.set_title("Loss, nats a token", loc="left")
        if axes.lines:
            axes.legend(frameon=False)
        return png(figure)
