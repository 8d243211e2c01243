"""Faults at random times, again and again, and not a bit of the run may differ in the end.

    python bench/soak.py [--quick] [--faults 50] [--seed N] [--only KIND] [--json FILE]

A tiny recipe is trained through the command line, in processes of its own, while faults are injected at times that --seed
draws: SIGKILL at any moment and inside a save, SIGTERM, SIGKILL of one of two ranks under torchrun's elastic restart, a full
disk, a damaged shard, a truncated checkpoint. A fault that missed (the process had ended, the save was over) does not count
and is injected anew. A run that has come to its end is compared with one that nothing disturbed, and the next one begins.

Shown at the end: no run was lost, steps that were done again gave the same row of metrics.jsonl, each step has one row, and
losses and weights are those of the undisturbed run, bit for bit. --quick injects one fault of each kind. Exit code 1 where
anything is lost, or where fewer faults hit than were asked for, or fewer than 30 % of them inside a save.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from results import record
from soak_faults import KINDS, Fault, Lost, Missed
from soak_runs import Reference, Trainee, make_world

SHARE = {
    "SIGKILL in a save": 0.34,
    "SIGKILL": 0.22,
    "SIGTERM": 0.12,
    "truncated checkpoint": 0.10,
    "damaged shard": 0.08,
    "full disk": 0.08,
    "a rank of two killed": 0.06,
}
SAVES_GOAL = 0.3
TRIES = 8


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--faults", type=int, default=50)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", choices=SHARE)
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    draw = random.Random(given.seed)
    wanted = plan(given.faults, given.quick, given.only, draw)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(Path(folder), draw, two_ranks="a rank of two killed" in wanted)
        for kind in wanted:
            soak.inject(kind)
        soak.finish()
    minutes = (time.monotonic() - began) / 60
    saves = sum(fault.in_save for fault in soak.faults)
    show(soak)
    if given.json:
        told = {"faults": [vars(fault) for fault in soak.faults], "lost": soak.lost, "minutes": round(minutes, 1)}
        given.json.write_text(json.dumps({**told, "seed": given.seed, "compared": vars(soak.counts)}, indent=2) + "\n")
    line = f"{len(soak.faults)} faults, {saves} inside a save, {len(soak.lost)} lost"
    if not (given.quick or given.only):
        result = {"faults": len(soak.faults), "inside a save": saves, "lost": len(soak.lost), "runs": soak.counts.runs}
        again = {"rows done again, bit for bit": soak.counts.rows_again}
        kinds = Counter(fault.kind for fault in soak.faults)
        record("soak", {**result, **kinds, **again, "seed": given.seed, "minutes": round(minutes, 1)})
    print(f"soak: {line}")
    few_saves = not given.quick and not given.only and saves < SAVES_GOAL * len(wanted)
    return int(bool(soak.lost) or len(soak.faults) < len(wanted) or few_saves)


def plan(faults: int, quick: bool, only: str | None, draw: random.Random) -> list[str]:
    """The kinds of all faults, in the order of their injection."""
    if quick:
        return [only] if only else list(SHARE)
    if only:
        return [only] * faults
    exact = {kind: share * faults for kind, share in SHARE.items()}
    count = {kind: int(number) for kind, number in exact.items()}
    for kind in sorted(exact, key=lambda kind: count[kind] - exact[kind])[: faults - sum(count.values())]:
        count[kind] += 1
    kinds = [kind for kind, number in count.items() for _ in range(number)]
    draw.shuffle(kinds)
    return kinds


class Soak:
    """The run that is under way on one rank, that on two, and all that has been injected so far."""

    def __init__(self, folder: Path, draw: random.Random, two_ranks: bool) -> None:
        world = make_world(folder)
        print("training undisturbed" + (", on one rank and on two" if two_ranks else ""), flush=True)
        self.references = {ranks: Reference(world, ranks) for ranks in ((1, 2) if two_ranks else (1,))}
        self.world, self.draw = world, draw
        self.faults: list[Fault] = []
        self.missed: Counter[str] = Counter()
        self.lost: list[str] = []
        self.counts = Counts()
        self._trainees: dict[int, Trainee] = {}

    def inject(self, kind: str) -> None:
        """One fault that has hit, after as many tries as it takes."""
        ranks = 2 if kind == "a rank of two killed" else 1
        for _ in range(TRIES):
            if ranks not in self._trainees:
                self._trainees[ranks] = Trainee(self.world, ranks)
            trainee = self._trainees[ranks]
            try:
                fault = KINDS[kind](trainee, self.draw)
            except Missed as missed:
                self.missed[kind] += 1
                print(f"   missed: {kind} ({missed})", flush=True)
                if trainee.is_done():
                    self._compare(ranks)
                continue
            except Lost as lost:
                print(f"   LOST: {kind}: {lost}", flush=True)
                self.lost.append(f"{kind}: {lost}")
                del self._trainees[ranks]
                return
            self.faults.append(fault)
            print(f"{len(self.faults):4} {kind}: {trainee.folder.name}, {fault.told}", flush=True)
            trainee.keep_rows()
            if trainee.is_done():
                self._compare(ranks)
            return
        self.lost.append(f"{kind}: missed {TRIES} times")

    def finish(self) -> None:
        """Let every run that is under way come to its end."""
        for ranks in list(self._trainees):
            try:
                self._trainees[ranks].finish()
            except Lost as lost:
                self.lost.append(f"the end of {self._trainees[ranks].folder.name}: {lost}")
                continue
            self._compare(ranks)

    def _compare(self, ranks: int) -> None:
        trainee = self._trainees.pop(ranks)
        differences = self.references[ranks].differences(trainee)
        self.lost += [f"{trainee.folder.name}: {difference}" for difference in differences]
        self.counts.runs += 1
        self.counts.rows_again += trainee.rows_again
        state = "DIFFERS: " + "; ".join(differences) if differences else "is the undisturbed one, bit for bit"
        print(f"   {trainee.folder.name} is done and {state}; {trainee.rows_again} rows were done again", flush=True)


class Counts:
    """What was compared."""

    def __init__(self) -> None:
        self.runs = self.rows_again = 0


def show(soak: Soak) -> None:
    """A table by kind."""
    print(f"\n{'kind':<22}{'hit':>5}{'in a save':>11}{'missed, injected anew':>23}")
    for kind in SHARE:
        of_kind = [fault for fault in soak.faults if fault.kind == kind]
        if of_kind or soak.missed[kind]:
            saves = sum(fault.in_save for fault in of_kind)
            print(f"{kind:<22}{len(of_kind):>5}{saves:>11}{soak.missed[kind]:>23}")
    print(f"{soak.counts.runs} disturbed runs compared; {soak.counts.rows_again} rows done again and compared")
    for lost in soak.lost:
        print(f"lost: {lost}")


if __name__ == "__main__":
    sys.exit(main())
