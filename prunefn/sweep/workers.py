"""Spawn worker processes, watch them, and stop them with the parent."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ..errors import PruneError

POLL_SECONDS = 1.0
"""Seconds between two checks of the workers."""
STOP_SECONDS = 30.0
"""Seconds that an interrupted worker may take to end."""
INTERRUPTED = 130


def run_workers(work: Callable[..., object], job: Any, n: int, show: Callable[[], object]) -> list[int]:
    """Run the same job in n processes, and wait for them.

    Args:
        work: called with (job, proceed=…); a function of a module.
        job: is pickled.
        show: called every second.

    Returns:
        Exit codes, in order; 0: success, negative: a signal.

    Raises:
        PruneError: the job cannot be pickled.
    """
    try:
        pickled = pickle.dumps((work, job))
    except Exception as error:
        raise PruneError(
            f"the trial cannot be pickled, which workers={n} needs ({error}); use a function of a module, not a lambda or one "
            "inside a function, or workers=1"
        ) from error
    threads = max(1, torch.get_num_threads() // n)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_worker, args=(pickled, threads, _gpu(i))) for i in range(n)]
    try:
        for p in processes:
            p.start()
        while any(p.exitcode is None for p in processes):
            wait([p.sentinel for p in processes if p.exitcode is None], timeout=POLL_SECONDS)
            show()
    finally:
        _stop([p for p in processes if p.pid is not None])
    return [p.exitcode or 0 for p in processes]


def _stop(processes: list[BaseProcess]) -> None:
    for p in processes:
        if p.is_alive() and p.pid is not None:
            os.kill(p.pid, signal.SIGINT)
    for p in processes:
        p.join(STOP_SECONDS)
        if p.is_alive():
            p.kill()
            p.join()


def _gpu(worker: int) -> str | None:
    """Return the GPU that a worker sees; None: all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = visible.split(",") if visible else [str(i) for i in range(count)]
    return names[worker % len(names)] if count > 1 else None


def _worker(pickled: bytes, threads: int, gpu: str | None) -> None:
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before anything asks for a GPU
    signal.signal(signal.SIGINT, _interrupt_once)
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None
    try:
        work, job = pickle.loads(pickled)
        work(job, proceed=parent.is_alive)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _interrupt_once(number: int, frame: object) -> None:
    """The terminal and the parent may both interrupt; the second time would break what the first one began to tidy."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
