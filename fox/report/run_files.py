"""What a run left in its folder, read so that a half-done or damaged run still tells all that it can.

Nothing here raises because a file is missing, cut short or of the wrong shape: the reader gets what there is, and
`notes` says what there is not. Only a folder that holds nothing of a run is a mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from fox.errors import UserError

STEPS = ("tokenizer", "data", "pretrain", "tune", "eval")
"""The steps of every run that leave a manifest, in their order; a corpus that some make before them leaves one, too."""

Column = NDArray[np.float64]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Length = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Lenient(BaseModel):
    """A file of the run's, read by a report: keys that it does not know are another version's and are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class SavedRecipe(Lenient):
    """`recipe.json`: the resolved recipe, and key, value and origin of each of its values."""

    recipe: dict[str, Any] = {}
    rows: list[tuple[str, Any, str]] = []


class TextSize(Lenient):
    """How much text: of one source, trained on or held out."""

    documents: int | None = None
    tokens: int | None = None
    bytes: int | None = None


class Contaminated(Lenient):
    """Documents that were left out since they held texts of evaluation files, by file."""

    documents: dict[str, int] = {}


class Reading(Lenient):
    """What was done to a source's documents as they were read."""

    masked: dict[str, int] = {}
    """Personal data that were replaced, by kind."""


class SourceFacts(Lenient):
    """What the data step found in one source."""

    documents: int | None = None
    duplicates: int | None = None
    contaminated: Contaminated = Contaminated()
    reading: Reading = Reading()
    bad: int | None = None
    train: TextSize = TextSize()
    heldout: TextSize = TextSize()
    bytes_per_token: float | None = None

    @property
    def with_questions(self) -> int:
        """Documents that were left out since they held texts of evaluation files."""
        return sum(self.contaminated.documents.values())

    @property
    def masked(self) -> int:
        """Personal data that were replaced."""
        return sum(self.reading.masked.values())


class BaseModelFacts(Lenient):
    """The model that a training started from, as its user named it, and what its files state."""

    name: str
    from_hub: bool = False
    license: str = ""


class LaneFacts(Lenient):
    """How the documents of a source lie in a stage's chunks of one length."""

    stage: str
    source: str
    length: int
    bins: int = 0
    waste: float | None = None
    documents_whole: int | None = None
    documents_cut: int | None = None
    documents_left_over: int | None = None


class Facts(Lenient):
    """What a step found out: those of the data step name sources, those of training name a model and a machine."""

    sources: dict[str, SourceFacts] = {}
    parameters: int | None = None
    steps: int | None = None
    tokens: int | None = None
    precision: str | None = None
    threads: int | None = None
    torch: str | None = None
    cpu: str | None = None
    instruction_set: str | None = Field(default=None, validation_alias="instruction set")
    final_loss: float | None = None
    peak_memory_bytes: float | None = None
    seconds_training: float | None = None
    base_model: BaseModelFacts | None = None
    packing: list[LaneFacts] = []
    epochs: dict[str, float] = {}
    seen: dict[str, list[Amount]] = {}


class Manifest(Lenient):
    """`manifests/STEP.json`: what a finished step read and made, and in how long.

    `inputs` nests, as the steps write it: tables of the recipe, and tables of names with their SHA-256 (`files` by
    source, and what earlier steps made, by path). `outputs` are paths with their SHA-256.
    """

    inputs: dict[str, JsonValue] = {}
    outputs: dict[str, str] = {}
    seconds: float | None = None
    started: str | None = None
    fox: str | None = None
    facts: Facts = Facts()


class Sample(Lenient):
    """One opening line and what each model answered."""

    prompt: str
    base: str | None = None
    tuned: str | None = None
    tuned_ended: bool | None = None


class Replies(Lenient):
    """Answers of the tuned model to held-out chats, counted."""

    chats: int
    ended: int
    words: int | None = None
    known_words: int | None = None


class Results(Lenient):
    """`eval/results.json`: bits per byte by model and source, and samples. Lower is better; `tuned` follows `base`."""

    bits_per_byte: dict[str, dict[str, float]] = {}
    assistant_bits_per_byte: dict[str, dict[str, float]] = {}
    kneser_ney_bits_per_byte: dict[str, float] = {}
    replies: Replies | None = None
    samples: list[Sample] = []
    heldout: dict[str, TextSize] = {}


class MetricsRow(Lenient):
    """One line of `metrics.jsonl`: one step of the optimiser. What a row lacks is NaN."""

    step: int
    tokens: Amount
    stage: str = ""
    loss: float = np.nan
    learning_rate: float = np.nan
    gradient_norm: float = np.nan
    chunk_length: dict[str, Length] = {}
    mix: dict[str, Amount] = {}
    seconds: float = np.nan
    tokens_per_second: float = np.nan
    share_of_peak: float = np.nan
    memory_bytes: float = np.nan
    loss_by_source: dict[str, float] = {}
    epoch: dict[str, Amount] = {}


@dataclass(frozen=True)
class Band:
    """The rows `[first, end)` of one stage."""

    name: str
    first: int
    end: int


@dataclass(frozen=True)
class Metrics:
    """The steps of one training, column by column. All columns are equally long, and at least one row long."""

    rows: Sequence[MetricsRow]

    def column(self, name: str) -> Column:
        """One number a step; what is missing or infinite is NaN."""
        values = np.array([getattr(row, name) for row in self.rows], dtype=np.float64)
        return np.where(np.isfinite(values), values, np.nan)

    def by_source(self, name: str, absent: float) -> dict[str, Column]:
        """A table of the rows as a column for each source, the sources that gave most tokens first."""
        total: dict[str, float] = {}
        for row in self.rows:
            for source in getattr(row, name):
                total[source] = total.get(source, 0.0) + row.mix.get(source, 0.0)
        return {
            source: np.array([getattr(row, name).get(source, absent) for row in self.rows], dtype=np.float64)
            for source in sorted(total, key=lambda source: -total[source])
        }

    @property
    def bands(self) -> list[Band]:
        starts = [i for i, row in enumerate(self.rows) if i == 0 or row.stage != self.rows[i - 1].stage]
        ends = [*starts[1:], len(self.rows)]
        return [Band(self.rows[first].stage, first, end) for first, end in zip(starts, ends, strict=True)]


@dataclass
class RunFiles:
    """All that a report is made from."""

    folder: Path
    recipe: SavedRecipe = field(default_factory=SavedRecipe)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    pretrain: Metrics | None = None
    tune: Metrics | None = None
    results: Results | None = None
    notes: list[str] = field(default_factory=list)
    """What is missing, cut short or unreadable, in sentences."""

    @property
    def last_stage(self) -> str:
        """The stage of pre-training that the base model comes from, or nothing where that isn't known."""
        stages = self.recipe.recipe.get("stage")
        if isinstance(stages, dict) and stages:
            return str(list(stages)[-1])
        return self.pretrain.bands[-1].name if self.pretrain else ""

    @property
    def name(self) -> str:
        return str(self.recipe.recipe.get("name") or self.folder.resolve().name)

    def facts(self, step: str) -> Facts:
        return self.manifests[step].facts if step in self.manifests else Facts()


def read_run(folder: Path) -> RunFiles:
    """What the run in `folder` left. Raises UserError where the folder holds nothing of a run."""
    metrics_files = {"pretrain": folder / "pretrain/metrics.jsonl", "tune": folder / "tune/metrics.jsonl"}
    manifest_files = {step: folder / f"manifests/{step}.json" for step in ("corpus", *STEPS)}
    json_files = [folder / "recipe.json", folder / "eval/results.json", *manifest_files.values()]
    if not any(file.is_file() for file in [*json_files, *metrics_files.values()]):
        raise UserError(
            "RUN",
            str(folder),
            problem="is not the folder of a run: it holds no recipe.json, no manifests and no metrics"
            if folder.is_dir()
            else "is not a folder",
            mend="Name the folder that `fox run` made: runs/NAME.",
        )
    run = RunFiles(folder)
    run.recipe = _read(folder / "recipe.json", SavedRecipe, run) or SavedRecipe()
    for step, file in manifest_files.items():
        if manifest := _read(file, Manifest, run):
            run.manifests[step] = manifest
    run.pretrain = _read_metrics(metrics_files["pretrain"], run)
    run.tune = _read_metrics(metrics_files["tune"], run)
    run.results = _read(folder / "eval/results.json", Results, run)
    run.notes[:0] = _what_is_missing(run)
    return run


def _what_is_missing(run: RunFiles) -> list[str]:
    tunes = bool(run.recipe.recipe.get("tune")) or run.tune is not None or not run.recipe.recipe
    missing = [
        (not run.recipe.rows, "the recipe"),
        (not run.facts("data").sources, "what the data holds"),
        (run.pretrain is None, "training"),
        (run.pretrain is not None and "pretrain" not in run.manifests, "the end of training"),
        (tunes and run.tune is None, "tuning"),
        (run.tune is not None and "tune" not in run.manifests, "the end of tuning"),
        (run.results is None, "the evaluation"),
    ]
    names = [name for is_missing, name in missing if is_missing]
    return [f"Not there yet: {', '.join(names)}."] if names else []


Model = TypeVar("Model", bound=Lenient)


def _read(file: Path, model: type[Model], run: RunFiles) -> Model | None:
    """The JSON file as `model`; None where it is missing, and None and a note where it can't be read."""
    try:
        return model.model_validate_json(file.read_bytes()) if file.is_file() else None
    except OSError as error:
        reason = error.strerror or "the disk failed"
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        reason = ": ".join(filter(None, [".".join(str(part) for part in first["loc"]), first["msg"]]))
    run.notes.append(f"{file.relative_to(run.folder)} can't be read ({reason}) and is left out.")
    return None


def _read_metrics(file: Path, run: RunFiles) -> Metrics | None:
    """The steps in the file. A resumed run may write a step again: the later line counts."""
    if not file.is_file():
        return None
    name = file.relative_to(run.folder)
    rows: list[MetricsRow] = []
    unreadable = 0
    cut = False
    with file.open("rb") as lines:
        for line in lines:
            try:
                row = MetricsRow.model_validate_json(line)
            except ValidationError:
                cut = not line.endswith(b"\n")
                unreadable += not cut and bool(line.strip())
                continue
            while rows and rows[-1].step >= row.step:
                rows.pop()
            rows.append(row)
    if cut:
        run.notes.append(f"The last line of {name} is cut short, as a stopped run leaves it; it is left out.")
    if unreadable:
        run.notes.append(f"{unreadable} unreadable {'line' if unreadable == 1 else 'lines'} of {name} left out.")
    return Metrics(rows) if rows else None
