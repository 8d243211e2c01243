"""The loop: the losses it had, its rows, and that a stop at any step changes nothing at all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fox.artifacts import sha256_of_json
from fox.errors import Failure, UserError
from fox.formats.token_shards import Shard
from fox.model import Transformer
from fox.model.transformer import Block
from fox.progress import Meter
from fox.recipe import Recipe
from fox.train.checkpoint import Checkpoints
from fox.train.loop import Outcome
from fox.train.stages import new_model, pretrain, total_tokens, tune
from tests.unit.train.stops import slowly

Scores = list[tuple[str, str]]
TRAIN = {"precision": "float32", "compile": False, "checkpoint_every_steps": 3}


class Stop(Exception):  # noqa: N818 (it is nobody's error)
    """A kill, as far as one process can have it: nothing after it is done."""


class StoppingMeter(Meter):
    def __init__(self, stop_at_tokens: float = math.inf) -> None:
        super().__init__("pretrain", None, "tokens")
        self.stop_at_tokens = stop_at_tokens
        self.reported: list[int] = []

    def advance_to(self, done: int, note: str = "") -> None:
        super().advance_to(done, note)
        self.reported.append(done)
        if done >= self.stop_at_tokens:
            raise Stop


def hash_of(model: Transformer) -> str:
    return sha256_of_json({name: tensor.tolist() for name, tensor in model.state_dict().items()})


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, without what depends on the machine's mood."""
    moods = ("seconds", "tokens_per_second", "share_of_peak", "memory_bytes", "memory_now_bytes")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in moods} for row in rows]


@pytest.fixture
def run(
    make_recipe: Callable[..., Recipe], shards: dict[str, Shard], tmp_path: Path
) -> Callable[..., tuple[Transformer, Outcome]]:
    """Train the micro recipe in a folder below tmp_path, from where that is."""

    def train(
        name: str = "run", meter: Meter | None = None, after: Callable[..., Any] = lambda *_: None, **other: Any
    ) -> tuple[Transformer, Outcome]:
        recipe = make_recipe(**other)
        model = new_model(recipe, 60)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        made_of = {"optimizer": recipe.optimizer.model_dump()}
        return model, pretrain(recipe, model, shards, folder, made_of, meter or StoppingMeter(), after)

    return train


def test_twenty_steps_have_the_losses_that_they_had(
    run: Callable[..., Any], tmp_path: Path, golden: Callable[[str, Any], Any]
) -> None:
    run()
    made = [{"loss": row["loss"], "gradient_norm": row["gradient_norm"]} for row in rows_of(tmp_path / "run")]
    expected = golden("losses_of_20_steps", made)
    assert len(made) == 20
    # Bit for bit only on one kind of processor: another adds in another order, and twenty steps carry on a difference of
    # 1e-7. A wrong mask, order, schedule or decay moves the losses by 1e-3 and more.
    for row, was in zip(made, expected, strict=True):
        assert row == pytest.approx(was, rel=1e-4)


def test_a_recipe_that_makes_blocks_twice_has_the_same_losses(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0
    plain = Block.forward

    def counted(*given: Any) -> Any:
        nonlocal made
        made += torch.is_grad_enabled()
        return plain(*given)

    monkeypatch.setattr(Block, "forward", counted)
    counts = []
    for name, twice in (("once", False), ("twice", True)):
        run(name, train={**TRAIN, "activation_checkpointing": twice})
        counts.append(made)
    assert counts[1] == 3 * counts[0], "twice as many as the first time, beside those"
    assert rows_of(tmp_path / "twice") == rows_of(tmp_path / "once")


def test_the_golden_losses_notice_a_lost_decay(
    run: Callable[..., Any], tmp_path: Path, golden: Callable[[str, Any], Any]
) -> None:
    run(optimizer={"peak_learning_rate": 1e-2, "weight_decay": 0.0})
    losses = [row["loss"] for row in rows_of(tmp_path / "run")]
    assert losses != pytest.approx([row["loss"] for row in golden("losses_of_20_steps", None)], rel=1e-4)


def test_it_learns_and_says_of_each_step_what_it_did(run: Callable[..., Any], tmp_path: Path) -> None:
    seen: Scores = []
    meter = StoppingMeter()
    model, outcome = run(meter=meter, after=lambda stage, _: seen.append(stage))
    rows = rows_of(tmp_path / "run")
    assert seen == ["short", "mixed", "long"]
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert [row["tokens"] for row in rows] == meter.reported
    assert rows[-1]["tokens"] == outcome.tokens == 3840
    assert (outcome.steps, outcome.final_loss) == (20, rows[-1]["loss"])
    assert rows[0]["loss"] == pytest.approx(math.log(60), rel=0.01)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert rows[0]["learning_rate"] == pytest.approx(1e-2 / 4) and rows[-1]["learning_rate"] == pytest.approx(
        1e-2 * (1 - math.sqrt(0.875))
    )
    assert [sum(row["mix"].values()) for row in rows] == [128] * 10 + [256] * 10
    assert rows[-1]["chunk_length"] == {"a": 64, "c": 64}
    assert all(0.8 * sum(row["mix"].values()) < row["targets"] < sum(row["mix"].values()) for row in rows)
    assert not model.training


def test_the_passes_of_a_step_add_up_to_the_step(run: Callable[..., Any], tmp_path: Path) -> None:
    whole = {"tokens": 640, "chunk_length": 16, "rows": 8, "batch_tokens": 128, "mix": {"text": 1.0}}
    sources = {"source": {"a": {"path": "a"}, "b": {"path": "b"}}, "tune": None}
    losses = []
    for rows in (8, 2):
        run(
            f"{rows}",
            stage={"only": {**whole, "rows": rows}},
            schedule={"warmup_tokens": 0, "decay_tokens": 0},
            **sources,
        )
        losses.append([row["loss"] for row in rows_of(tmp_path / f"{rows}")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# Checkpoints are at 3, 6, 9, 10 (a stage's end), 12, 15, 16 (again) and 18: before, at and after each.
@pytest.mark.parametrize(
    "stops", [[10], [2, 5, 10, 10, 12, 20], *map(slowly, ([1], [3], [4], [9], [11], [15], [16], [17], [19]))]
)
def test_a_stopped_run_goes_on_bit_for_bit(run: Callable[..., Any], tmp_path: Path, stops: list[int]) -> None:
    never_stopped, outcome = run("whole")
    tokens = [row["tokens"] for row in rows_of(tmp_path / "whole")]
    for step in stops:
        with pytest.raises(Stop):
            run("stopped", StoppingMeter(tokens[step - 1]))
    model, again = run("stopped")
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "whole")
    assert hash_of(model) == hash_of(never_stopped)
    assert again.final_loss == outcome.final_loss


def test_a_run_stopped_while_it_scores_scores_again(run: Callable[..., Any], tmp_path: Path) -> None:
    whole: Scores = []
    run("whole", after=lambda stage, model: whole.append((stage, hash_of(model))))
    scored: Scores = []

    def stop_at_mixed(stage: str, model: Transformer) -> None:
        if stage == "mixed":
            raise Stop
        scored.append((stage, hash_of(model)))

    with pytest.raises(Stop):
        run("stopped", after=stop_at_mixed)
    run("stopped", after=lambda stage, model: scored.append((stage, hash_of(model))))
    assert scored == whole
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "whole")


def test_the_comparison_notices_a_lost_optimizer(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("whole")

    load = Checkpoints.load

    def forgetful(checkpoints: Checkpoints, model: Any, optimizer: torch.optim.Optimizer) -> Any:
        found = load(checkpoints, model, optimizer)
        optimizer.state.clear()
        return found

    monkeypatch.setattr(Checkpoints, "load", forgetful)
    with pytest.raises(Stop):
        run("stopped", StoppingMeter(900))
    run("stopped")
    stopped, whole = rows_of(tmp_path / "stopped"), rows_of(tmp_path / "whole")
    assert stopped[:7] == whole[:7]  # up to the checkpoint and one step more: its loss is of weights that were not lost
    assert stopped != whole


def test_a_finished_run_is_not_trained_again(run: Callable[..., Any], tmp_path: Path) -> None:
    first, _ = run()
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    meter = StoppingMeter()
    second, outcome = run(meter=meter)
    assert hash_of(first) == hash_of(second)
    assert meter.reported == [] and outcome.steps == 20
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_metrics_that_are_shorter_than_the_checkpoint_end_it(run: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(meter=StoppingMeter(900))
    path = tmp_path / "run/metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    with pytest.raises(
        Failure, match=r"metrics\.jsonl: has 4 rows, and the checkpoint is of step 6.*--out.*--redo pretrain"
    ):
        run()


def test_half_a_row_that_a_kill_left_is_dropped(run: Callable[..., Any], tmp_path: Path) -> None:
    run("whole")
    with pytest.raises(Stop):
        run(meter=StoppingMeter(900))
    with (tmp_path / "run/metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 8, "lo')
    run()
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")


def test_a_rate_that_makes_it_diverge_is_a_failure_that_says_what_to_lower(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    rules = {"precision": "float32", "compile": False, "skips_in_a_row": 2}
    with pytest.raises(Failure, match=r"no longer finite.*optimizer\.peak_learning_rate.*--out") as error:
        run(optimizer={"peak_learning_rate": 1e30}, schedule={"warmup_tokens": 0, "decay_tokens": 0}, train=rules)
    assert error.value.exit_code == 1
    assert all(math.isfinite(row.get("loss", 0.0)) for row in rows_of(tmp_path / "run"))


def test_a_step_without_anything_to_learn_is_named(
    make_recipe: Callable[..., Recipe], make_shard: Callable[..., Shard], tmp_path: Path
) -> None:
    recipe = make_recipe()
    shard = make_shard("c", [40] * 8, with_loss_mask=True)
    assert shard.is_learnt is not None
    shard.is_learnt = torch.zeros(len(shard.tokens), dtype=torch.bool).numpy()
    with pytest.raises(UserError) as error:
        tune(recipe, new_model(recipe, 60), {"c": shard}, tmp_path, {}, StoppingMeter(), lambda *_: None)
    assert error.value.problems[0].key == "tune.batch_tokens"


def test_tuning_learns_from_the_marked_tokens_alone(
    make_recipe: Callable[..., Recipe], shards: dict[str, Shard], tmp_path: Path
) -> None:
    recipe = make_recipe()
    outcome = tune(recipe, new_model(recipe, 60), shards, tmp_path, {}, StoppingMeter(), lambda *_: None)
    assert recipe.tune and outcome.tokens == total_tokens({"tune": recipe.tune}) == 1024
    rows = rows_of(tmp_path)
    assert [row["stage"] for row in rows] == ["tune"] * 4
    assert all(0.3 * 256 < row["targets"] < 0.7 * 256 for row in rows)
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 1e-3, 7.5e-4, 2.5e-4])
