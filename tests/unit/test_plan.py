"""fox.plan: sums that can be done by hand, and mistakes that must be told."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fox.errors import UserError
from fox.plan import GPUS, describe, plan
from fox.plan import memory as plan_memory
from fox.plan.memory import block_activation_bytes_per_token, large_head_chunk_rows, loss_chunk_rows
from fox.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"

# hidden 8, MLP 16, 2 blocks, 2 query heads and 1 kv head of size 4, vocabulary 300. By hand:
#   block = 8*8 (q) + 2 * 8*4 (k, v) + 8*8 (o) + 3 * 8*16 (mlp) + 2*8 (norms) = 592
#   all   = 300*8 (tied) + 2*592 + 8 = 3,592
SMALLEST = """
name = "smallest"
source.pages.path = "pages"
source.books.path = "books"
tokenizer.vocab_size = 300
optimizer.peak_learning_rate = 1e-3

[model]
hidden_size = 8
intermediate_size = 16
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
max_position_embeddings = 64

[schedule]
warmup_tokens = 700
decay_tokens = 1500

[stage.short]
tokens = 2000
chunk_length = 16
rows = 4
batch_tokens = 256
mix = { pages = 1.0, books = 1.0 }

[stage.long]
tokens = 2048
chunk_length = { pages = 32, books = 64 }
rows = 2
batch_tokens = 512
mix = { pages = 3.0, books = 1.0 }
"""


@pytest.fixture
def smallest(tmp_path: Path) -> Recipe:
    return recipe_with(tmp_path)


@pytest.fixture(scope="module")
def fox_1() -> Recipe:
    return load_recipe(RECIPES / "fox-1-1.6b.toml").recipe


def recipe_with(folder: Path, *overrides: str) -> Recipe:
    page = folder / "smallest.toml"
    page.write_text(SMALLEST, encoding="utf-8")
    return load_recipe(page, overrides).recipe


def test_fox_1_has_exactly_the_published_parameters(fox_1: Recipe) -> None:
    parameters = plan(fox_1).parameters
    assert parameters.embedding == 524_288_000
    assert parameters.blocks == 1_140_981_760
    assert parameters.final_norm == 2_048
    assert parameters.head == 0
    assert parameters.total == parameters.without_lookup == 1_665_271_808


def test_fox_1_caches_64_kib_a_token(fox_1: Recipe) -> None:
    assert plan(fox_1).kv_cache_bytes_per_token == 64 * 1024


def test_fox_1_warms_up_over_2000_steps_and_decays_from_late_stage_2(fox_1: Recipe) -> None:
    broad, longer, quality, _ = plan(fox_1).stages
    assert (broad.warmup_steps, longer.warmup_steps) == (2000, 0)
    assert broad.decay_steps == 0
    assert 0 < longer.decay_steps < longer.steps / 5
    assert quality.decay_steps == quality.steps


def test_flops_of_the_smallest_model(smallest: Recipe) -> None:
    told = plan(smallest)
    assert told.parameters.one_block == 592
    assert told.parameters.total == 3592
    assert told.attention_flops_per_position == 12 * 2 * 2 * 4
    short, long = told.stages
    assert short.flops_per_token == 6 * 3592 + 192 * 16 == 24_624
    assert short.flops_per_token_causal == 6 * 3592 + 192 * 16 / 2
    assert long.mean_chunk_length == 40  # three quarters of the tokens in chunks of 32, one in chunks of 64
    assert long.flops_per_token == 6 * 3592 + 192 * 40
    assert short.steps == 8 and short.tokens == 2048
    assert told.flops == 2048 * short.flops_per_token + 2048 * long.flops_per_token


def test_an_untied_head_is_counted_and_its_lookup_is_no_work(tmp_path: Path) -> None:
    parameters = plan(recipe_with(tmp_path, "model.tie_word_embeddings=false")).parameters
    assert parameters.total == 3592 + 2400
    assert parameters.without_lookup == 3592
    assert parameters.without_embedding_and_head == 1192


def test_warmup_and_decay_cross_stages(smallest: Recipe) -> None:
    short, long = plan(smallest).stages
    assert (short.warmup_steps, long.warmup_steps) == (3, 0)  # 700 of 256 a step
    assert (short.decay_steps, long.decay_steps) == (0, 3)  # the last 1,500 of 512 a step


def test_days_follow_from_peak_and_mfu(smallest: Recipe) -> None:
    short = plan(smallest, gpus=2, gpu="a100-80gb", mfu=0.5).stages[0]
    rate = 2 * 312e12 * 0.5 / 24_624
    assert short.tokens_per_second == pytest.approx(rate, rel=1e-12)
    assert short.days == pytest.approx(2048 / rate / 86_400, rel=1e-12)


def test_without_mfu_it_is_assumed_and_said(smallest: Recipe) -> None:
    told = plan(smallest, gpu="a100-80gb")
    assert told.mfu == 0.40 and told.mfu_is_assumed
    assert "ASSUMED" in describe(told)
    assert "ASSUMED" not in describe(plan(smallest, gpu="a100-80gb", mfu=0.40))


def test_a_measured_rate_gives_days_and_the_mfu_it_means(smallest: Recipe) -> None:
    told = plan(smallest, gpu="a100-80gb", tokens_per_second=1024)
    assert told.days == pytest.approx(4096 / 1024 / 86_400)
    assert told.stages[0].mfu == pytest.approx(1024 * 24_624 / 312e12)
    assert told.mfu is None


def test_without_a_gpu_or_a_rate_time_is_unknown(smallest: Recipe) -> None:
    told = plan(smallest)
    assert told.days is None and told.stages[0].tokens_per_second is None
    assert "not known. Give --gpu NAME, or --tokens-per-second" in describe(told)


def test_memory_of_one_device_and_of_four(smallest: Recipe) -> None:
    alone, shared = plan(smallest).stages[0].memory, plan(smallest, gpus=4).stages[0].memory
    assert alone.state == 16 * 3592 and shared.state == 4 * 3592
    assert alone.state + alone.gathered == 18 * 3592
    per_token = 2 * (4 * 8 + 2 * 8 + 2 * 4 + 4 * 16) + 4 * 2
    assert block_activation_bytes_per_token(smallest.model, 2) == per_token
    weights = 4 * 2 * 16 * 16 * 2  # of attention: rows, heads, tokens, tokens, bytes
    assert alone.activations == shared.activations == 2 * (4 * 16 * per_token + weights)
    assert alone.activations_recomputed == 64 * 2 * 8 * 2 + 64 * per_token + weights
    assert alone.logits == 64 * 300 * 12
    assert alone.head_gradient == 300 * 8 * 8
    assert alone.total == alone.state + alone.gathered + alone.activations + alone.logits + alone.head_gradient


def test_on_a_gpu_and_in_long_rows_attention_keeps_no_weights(smallest: Recipe, tmp_path: Path) -> None:
    per_token = block_activation_bytes_per_token(smallest.model, 2)
    assert plan(smallest, gpu="l4").stages[0].memory.activations == 2 * 64 * per_token
    sizes = ["stage.short.chunk_length=2048", "stage.short.batch_tokens=8192", "stage.short.tokens=8192"]
    long = recipe_with(tmp_path, "model.max_position_embeddings=2048", *sizes)
    assert plan(long).stages[0].memory.activations == 2 * 4 * 2048 * per_token


def test_logits_are_made_a_chunk_at_a_time() -> None:
    memory = plan(load_recipe(RECIPES / "fox-1-1.6b.toml", ["tokenizer.vocab_size=32000"]).recipe).stages[0].memory
    assert memory.logits == 524 * 32_000 * 12  # 2^24 / 32,000 = 524.3
    assert memory.head_gradient == 32_000 * 2048 * 8


@pytest.mark.parametrize(("precision", "rows", "element_bytes"), [("bf16", 512, 2), ("float32", 256, 4)])
def test_a_large_head_is_copied_a_block_at_a_time(precision: str, rows: int, element_bytes: int) -> None:
    """2^28 bytes of logits are 524 rows of 256,000 in bfloat16; and 2^24 weights are 8,192 entries of 2,048."""
    told = plan(load_recipe(RECIPES / "fox-1-1.6b.toml", [f"train.precision={precision}"]).recipe)
    memory = told.stages[0].memory
    assert memory.logits == rows * (256_000 * element_bytes + 8192 * 12)
    assert memory.head_gradient == 256_000 * 2048 * 4 + 2**24 * 2 * element_bytes
    assert memory.gathered == (2 * 1_140_983_808 if precision == "bf16" else 0), "all but the head"
    assert f"of at most {rows} tokens at a time x 256,000" in " ".join(describe(told).split())


def test_the_plan_counts_what_the_loss_and_the_attention_do() -> None:
    import torch

    from fox.kernels import attention
    from fox.model import loss, loss_of_large_head

    assert (plan_memory.LOSS_CHUNK_ROWS, plan_memory.LOSS_CHUNK_LOGITS) == (loss._CHUNK_ROWS, loss._CHUNK_LOGITS)
    assert plan_memory.LARGE_HEAD_WEIGHTS == loss._WHOLE_WEIGHTS
    assert plan_memory.LARGE_HEAD_SCORE_BYTES == loss_of_large_head._SCORE_BYTES
    assert plan_memory.MOST_TOKENS_BY_PRODUCTS == attention._MOST_TOKENS_BY_PRODUCTS
    for vocab_size in (300, 16_384, 16_385, 256_000, 1 << 25):
        chunk = next(loss._chunks(10_000, vocab_size))
        assert chunk.stop - chunk.start == loss_chunk_rows(vocab_size)
        for dtype in (torch.bfloat16, torch.float32):
            rows = loss_of_large_head._chunk_rows(vocab_size, dtype)
            assert rows == large_head_chunk_rows(vocab_size, dtype.itemsize)


def test_fox_1_fits_80_gb_and_not_24(fox_1: Recipe) -> None:
    assert plan(fox_1, gpus=64, gpu="h100-80gb").problems == ()
    told = plan(fox_1, gpus=64, gpu="rtx-4090")
    assert {problem.key for problem in told.problems} == {
        "stage.broad.rows",
        "stage.longer.rows",
        "stage.quality.rows",
        "tune.rows",
    }
    assert "recompute activations" in told.problems[0].mend
    assert "Does NOT fit: broad, longer, quality, tune." in describe(told)


def test_the_rows_it_mends_with_do_fit(fox_1: Recipe) -> None:
    problem = plan(fox_1, gpus=64, gpu="rtx-4090").problems[0]
    mend = re.search(r"-o (stage\.broad\.rows=\d+)", problem.mend)
    assert mend
    mended = load_recipe(RECIPES / "fox-1-1.6b.toml", [mend[1]]).recipe
    assert "stage.broad.rows" not in {p.key for p in plan(mended, gpus=64, gpu="rtx-4090").problems}


def test_the_gpus_it_mends_with_do_fit(fox_1: Recipe) -> None:
    problem = plan(fox_1, gpus=1, gpu="l40s").problems[0]
    mend = re.search(r"--gpus (\d+)", problem.mend)
    assert mend
    assert "stage.broad.rows" not in {p.key for p in plan(fox_1, gpus=int(mend[1]), gpu="l40s").problems}


def test_where_no_one_change_is_enough_two_are_named(fox_1: Recipe) -> None:
    """On one 32 GB GPU the state alone takes 27; more GPUs alone never make room for the activations of 8 rows."""
    problem = plan(fox_1, gpus=1, gpu="rtx-5090").problems[0]
    assert "--gpus 2 with -o stage.broad.rows=2; --gpus 2 and recompute activations" in problem.mend


def test_a_batch_that_devices_cannot_share_is_a_problem_with_a_mend(smallest: Recipe, tmp_path: Path) -> None:
    told = plan(smallest, gpus=3)
    assert [problem.key for problem in told.problems] == ["stage.short.batch_tokens", "stage.long.batch_tokens"]
    assert told.stages[0].passes_per_step is None
    assert "3 x 4 x 16 = 192" in str(told.problems[0])
    mends = [re.search(r"-o (\S+batch_tokens=\d+)", problem.mend) for problem in told.problems]
    mended = recipe_with(tmp_path, *(mend[1] for mend in mends if mend))
    assert plan(mended, gpus=3).problems == ()
    assert plan(smallest, gpus=4).stages[0].passes_per_step == 1


def test_float32_is_not_timed_by_the_bfloat16_peak_in_silence(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, "train.precision=float32")
    assert [problem.key for problem in plan(recipe, gpu="h100-80gb").problems] == ["train.precision"]
    assert plan(recipe, gpu="h100-80gb", tokens_per_second=9).problems == ()


@pytest.mark.parametrize(
    ("asked", "key", "said"),
    [
        ({"gpu": "h100"}, "--gpu", "Did you mean h100-80gb? Known: b200, "),
        ({"gpu": "abacus"}, "--gpu", "rtx-4090"),
        ({"gpus": 0}, "--gpus", "1 or more"),
        ({"gpu": "l4", "mfu": 40}, "--mfu", "0.4"),
        ({"mfu": 0.4}, "--mfu", "--gpu"),
        ({"gpu": "l4", "mfu": 0.4, "tokens_per_second": 5}, "--mfu", "Give one"),
        ({"tokens_per_second": 0}, "--tokens-per-second", "above 0"),
        ({"tokens_per_second": float("nan")}, "--tokens-per-second", "above 0"),
    ],
)
def test_senseless_figures_are_refused(smallest: Recipe, asked: dict[str, object], key: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        plan(smallest, **asked)  # type: ignore[arg-type]
    assert refused.value.problems[0].key == key
    assert said in str(refused.value)


def test_a_gpu_is_found_however_it_is_written(smallest: Recipe) -> None:
    assert plan(smallest, gpu="H100 80GB").gpu is GPUS["h100-80gb"]


def test_as_dict_is_json_and_holds_the_sums(fox_1: Recipe) -> None:
    told = plan(fox_1, gpus=64, gpu="h100-80gb")
    page = json.loads(json.dumps(told.as_dict(), allow_nan=False))
    assert page["parameters"]["total"] == 1_665_271_808
    assert page["days"] == pytest.approx(told.days)
    assert page["stages"][1]["chunk_length"] == {"web": 4096, "long_web": 8192}
    assert page["stages"][0]["memory"]["total"] == told.stages[0].memory.total
    assert page["model"]["num_hidden_layers"] == 32
    assert page["problems"] == []


@pytest.mark.parametrize("asked", [{}, {"gpus": 6, "gpu": "rtx-4090"}, {"tokens_per_second": 1e6}], ids=str)
def test_the_page_fits_80_columns(fox_1: Recipe, tmp_path: Path, asked: dict[str, object]) -> None:
    long_name = SMALLEST.replace("stage.short", "stage.a-name-longer-than-any-table-has-room-for")
    (tmp_path / "long.toml").write_text(long_name, encoding="utf-8")
    for recipe in (fox_1, load_recipe(tmp_path / "long.toml").recipe):
        page = describe(plan(recipe, **asked))  # type: ignore[arg-type]
        assert [line for line in page.splitlines() if len(line) > 80] == []


def test_the_page_tells_the_sums(fox_1: Recipe) -> None:
    page = describe(plan(fox_1, gpus=64, gpu="h100-80gb"))
    for figure in (
        "1,665,271,808",
        "1,140,981,760",
        "64 KiB a token",
        "2,000",
        "It fits.",
        "Problems: none found.",
        "on a GPU yet",
    ):
        assert figure in page


def test_planning_needs_no_torch() -> None:
    code = "import sys, fox.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
