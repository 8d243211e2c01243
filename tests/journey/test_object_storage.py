"""The programs of docs/cluster.md that take a run to an object store and back."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.journey.micro_run import ENVIRONMENT, fox, kill_when, num_rows
from tests.journey.test_torchrun import METRICS, RUN, rows

PAGE = Path(__file__).parents[2] / "docs/cluster.md"


def test_a_run_that_was_copied_while_it_trained_goes_on_from_the_copy(untrained: Path, finished: Path) -> None:
    there, back = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    kill_when(lambda: num_rows(untrained / METRICS) >= 8, untrained, "pretrain", "micro.toml")
    again = f"import shutil\nshutil.move({str(RUN)!r}, 'gone')\n"
    program = f"{there}\n{again}\n{back}".replace("runs/fox", str(RUN)).replace("s3://", "memory://")
    subprocess.run([sys.executable, "-c", program], cwd=untrained, env=ENVIRONMENT, check=True)
    shutil.rmtree(untrained / "gone")
    kept = [path.name for path in (untrained / RUN / "pretrain/checkpoints").glob("step-*")]
    assert kept == [(untrained / RUN / "pretrain/checkpoints/latest").read_text().strip()]
    fox(untrained, "pretrain", "micro.toml")
    losses = [[row["loss"] for row in rows(folder / RUN)] for folder in (untrained, finished)]
    assert losses[0] == losses[1]
