"""Who does the tasks: this machine's processes, Slurm or Ray, by datatrove's executors. Each task is done once, and marked when it is.

What datatrove's own local and Ray executors lack is here: both wait for ever for a process that was killed (multiprocessing's pools never
tell), and neither says how far it is. A task whose process is killed is begun again; one that fails ends the step with its reason.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import Stats
from loguru import logger
from rich.console import Console

from fox.artifacts import write_atomically
from fox.errors import Failure, FoxError
from fox.progress import meter
from fox.recipe.schema import Executor

ATTEMPTS = 3
"""How often a task may lose its process: by then it is the task's own doing, such as its memory."""

LOOK_EVERY_S = 0.5
SLURM_EVERY_S = 5.0


class Round(NamedTuple):
    """Tasks of one kind, which need nothing of each other."""

    name: str
    blocks: Sequence[PipelineStep]
    labels: Sequence[str]
    """What each task is about, for messages."""
    folder: Path
    """For its marks, logs and statistics."""


OnLook = Callable[[set[int]], None]
"""Called now and then with the numbers of the tasks that are done."""


def do_round(settings: Executor, work: Round, on_look: OnLook) -> None:
    """Do all tasks of a round that are not done. Raises Failure where one can't be."""
    executors = {"local": _LocalProcesses, "ray": _RayTasks, "slurm": _SlurmJobs}
    executor = executors[settings.kind](settings, work)
    if executor.get_incomplete_ranks():
        executor.do(on_look)
    on_look(set(range(len(work.labels))))
    if missing := executor.get_incomplete_ranks():
        raise Failure(_lost(work, missing[0], "was not done, and nobody says why"))


def do_shown_round(settings: Executor, work: Round, console: Console) -> None:
    """`do_round`, with a bar of its tasks."""
    with meter(work.name, len(work.labels), "tasks", console=console) as shown:
        do_round(settings, work, lambda done: shown.advance_to(len(done)))


class _Tasks(PipelineExecutor):
    """What datatrove keeps for every executor: which tasks are done, and how one is."""

    def __init__(self, settings: Executor, work: Round) -> None:
        super().__init__(list(work.blocks), logging_dir=str(work.folder))
        self.settings, self.work = settings, work

    @property
    def world_size(self) -> int:
        return len(self.work.labels)

    def get_distributed_env(self, node_rank: int = -1) -> Any:
        names = ("node_ips", "cpus_per_task", "mem_per_cpu", "gpus_on_node", "executor")
        return {f"datatrove_{name}": "" for name in names}

    def run(self) -> None:
        self.do(lambda done: None)

    @abstractmethod
    def do(self, on_look: OnLook) -> None:
        """All tasks that are not done. Raises Failure."""

    def do_one(self, rank: int) -> str:
        """Do a task in this process; what went wrong, or nothing. Its log has the whole of it."""
        for step in self.pipeline:
            step.stats = Stats(str(step))
        with open(os.devnull, "w", encoding="utf-8") as nothing:  # noqa: PTH123  # what datatrove says there is in the log, too
            stderr, sys.stderr = sys.stderr, nothing
            try:
                self._run_for_rank(rank, local_rank=1)
            except Exception as error:
                return _told(error)
            finally:
                sys.stderr = stderr
        return ""

    def done(self) -> set[int]:
        return set(range(self.world_size)) - set(self.get_incomplete_ranks())


class _LocalProcesses(_Tasks):
    """Processes of this machine, as many as there are cores, each of which does one task after another."""

    def do(self, on_look: OnLook) -> None:
        waiting, lost = deque(self.get_incomplete_ranks()), Counter[int]()
        done = set(range(self.world_size)) - set(waiting)
        most = min(self.settings.workers or len(os.sched_getaffinity(0)), len(waiting))
        idle: list[_Worker] = []
        at_work: dict[Connection, tuple[int, _Worker]] = {}
        try:
            while waiting or at_work:
                while waiting and len(at_work) < most:
                    worker = idle.pop() if idle else _Worker(self)
                    try:
                        worker.pipe.send(waiting[0])
                    except OSError:  # it was killed while it had nothing to do
                        worker.end()
                        continue
                    at_work[worker.pipe] = waiting.popleft(), worker
                for pipe in wait(list(at_work), timeout=LOOK_EVERY_S):
                    assert isinstance(pipe, Connection)
                    rank, worker = at_work.pop(pipe)
                    try:
                        reason = pipe.recv()
                    except (EOFError, OSError):
                        lost[rank] += 1
                        if lost[rank] == ATTEMPTS:
                            how = f"lost its process {ATTEMPTS} times, {worker.how_it_ended()}"
                            raise Failure(_lost(self.work, rank, how)) from None
                        waiting.appendleft(rank)
                        continue
                    if reason:
                        raise Failure(_lost(self.work, rank, reason))
                    done.add(rank)
                    idle.append(worker)
                on_look(done)
        finally:
            for worker in [*idle, *(worker for _, worker in at_work.values())]:
                worker.end()


class _Worker:
    """A process that does the tasks whose numbers it is sent, and answers each with what went wrong, or nothing."""

    def __init__(self, executor: _Tasks) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["fox.data.corpus.duplicates", "pyarrow.parquet"])
        self.pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_do_tasks, args=(executor, theirs))
        self._process.start()
        theirs.close()

    def how_it_ended(self) -> str:
        self._process.join()
        code = self._process.exitcode or 0
        out_of_memory = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"by {signal.Signals(-code).name}{out_of_memory}" if code < 0 else f"with exit code {code}"

    def end(self) -> None:
        self.pipe.close()
        self._process.kill()
        self._process.join()


def _do_tasks(executor: _Tasks, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started us ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError):  # there is no more to do
        while True:
            pipe.send(executor.do_one(pipe.recv()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    wait([parent.sentinel])
    os._exit(1)


class _RayTasks(_Tasks):
    """A task of a Ray cluster for each: Ray begins one again whose process or machine is lost."""

    def do(self, on_look: OnLook) -> None:
        try:
            import ray
        except ImportError:
            raise Failure("data.executor.kind = 'ray' needs ray. Do this: pip install 'foxlm[scale]'") from None
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to others unasked
        most = self.settings.workers
        cores = {} if self.settings.address else {"num_cpus": most or len(os.sched_getaffinity(0))}
        ray.init(
            address=self.settings.address or None,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            **cores,
        )
        try:
            task = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(_do_for_ray)
            executor = ray.put(self)
            most = most or 2 * int(ray.cluster_resources().get("CPU", 1))
            waiting = deque(self.get_incomplete_ranks())
            done = set(range(self.world_size)) - set(waiting)
            running: dict[Any, int] = {}
            while waiting or running:
                while waiting and len(running) < most:
                    rank = waiting.popleft()
                    running[task.remote(executor, rank)] = rank
                ended, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_EVERY_S)
                for reference in ended:
                    rank = running.pop(reference)
                    try:
                        reason = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        reason = f"lost its process {ATTEMPTS} times ({type(error).__name__})"
                    if reason:
                        raise Failure(_lost(self.work, rank, reason))
                    done.add(rank)
                on_look(done)
        finally:
            ray.shutdown()


def _do_for_ray(executor: _Tasks, rank: int) -> str:
    return executor.do_one(rank)


class _SlurmJobs(_Tasks):
    """datatrove's array of Slurm jobs, waited for. What a job has not done is submitted again. Ctrl-C leaves jobs at work: the same command goes
    on waiting."""

    def do(self, on_look: OnLook) -> None:
        note = self.work.folder / "slurm-job"
        job = note.read_text(encoding="utf-8") if note.exists() else ""
        submitted = 0
        while missing := self.get_incomplete_ranks():
            on_look(self.done())
            if _is_known(job):
                time.sleep(SLURM_EVERY_S)
            elif submitted and not self.get_incomplete_ranks():
                return  # the last ones were done between the two looks
            elif submitted == ATTEMPTS:
                raise Failure(
                    _lost(self.work, missing[0], f"was not done by {ATTEMPTS} jobs of Slurm's, the last one is {job}")
                )
            else:
                job = self._submit()
                write_atomically(note, job)
                submitted += 1

    def _submit(self) -> str:
        """The number of the job; of several, of the last one, which begins when the others have ended."""
        logger.disable(SlurmPipelineExecutor.__module__)  # what it tells is in the folder, too
        jobs = _Array(
            self.pipeline,
            tasks=self.world_size,
            time=self.settings.time,
            partition=self.settings.partition,
            mem_per_cpu_gb=self.settings.memory_gb,
            workers=self.settings.workers or -1,
            job_name=f"fox-{self.work.name}",
            env_command=self.settings.setup or None,
            qos="",
            logging_dir=str(self.work.folder),
        )
        try:
            jobs.run()
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise Failure(
                f"sbatch does not take the tasks ({_told(error)}). Is this a machine that submits to Slurm?"
            ) from None
        return str(jobs.job_id)


class _Array(SlurmPipelineExecutor):
    def launch_merge_stats(self) -> None:
        """Nothing: a further job, which waits for ever where one of the others has failed."""


def _is_known(job: str) -> bool:
    """Whether some of a job's tasks wait or run still."""
    if not job:
        return False
    asked = ["squeue", "--noheader", "--jobs", job]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        # a controller that does not answer has not forgotten the job: submitted again, it would be done twice at once
        return bool(answer.stdout.strip()) or (answer.returncode != 0 and "Invalid job id" not in answer.stderr)
    except FileNotFoundError:
        raise Failure("squeue is not there. Is this a machine that submits to Slurm?") from None


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, FoxError) else f"{type(error).__name__}: {error}"[:500]


def _lost(work: Round, rank: int, reason: str) -> str:
    log = work.folder / f"logs/task_{rank:05}.log"
    return f"{work.name}, task {rank} ({work.labels[rank]}): {reason}. Its log is {log}. What is done stays done: the same command goes on."
