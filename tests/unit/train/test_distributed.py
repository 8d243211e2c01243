"""What torch leaves to us on many ranks: whole matrices for Muon, and the gradients of norms that all heads share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from fox.train.team import ALONE
from tests.unit.train.five_steps import WAYS, rows_of, train

_ROOT = Path(__file__).parents[3]
_OF_DAMAGED = {"muon-of-parts": "muon", "normed-heads-unsummed": "normed-heads"}


@pytest.fixture(scope="module")
def by_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every way, by two gloo ranks that torchrun has started once."""
    folder = tmp_path_factory.mktemp("two")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, "-m", "tests.unit.train.five_steps", str(folder), *WAYS]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    for way in _OF_DAMAGED.values():
        train(folder, way, ALONE)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", _OF_DAMAGED.values())
def test_two_ranks_take_the_steps_that_one_process_takes(by_two_ranks: Path, by_one: Path, way: str) -> None:
    assert_same(by_two_ranks / way, by_one / way)


@pytest.mark.slow
@pytest.mark.parametrize(("damaged", "way"), _OF_DAMAGED.items())
def test_the_comparison_notices(by_two_ranks: Path, by_one: Path, damaged: str, way: str) -> None:
    with pytest.raises(AssertionError):
        assert_same(by_two_ranks / damaged, by_one / way)


def assert_same(made: Path, whole: Path) -> None:
    """The same numbers but for the order in which gradients are added: of weights of about 0.02, 1e-6."""
    mine, theirs = rows_of(made), rows_of(whole)
    assert len(mine) == len(theirs) == 5
    for key in ("loss", "gradient_norm"):
        assert [row[key] for row in mine] == pytest.approx([row[key] for row in theirs], rel=1e-5)
    weights = load_file(whole / "weights.safetensors")
    assert_close(load_file(made / "weights.safetensors"), weights, atol=1e-6, rtol=0)
