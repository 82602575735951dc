"""Engines: the same work for every picture, here or on a Ray cluster, with results in the order of the pictures."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from capriccio.collect.sources import Unit
from capriccio.errors import CapriccioError, nearest
from capriccio.training.hands import spread

Job = Callable[[str], Unit]
ENGINES = ("here", "ray")
_STORE = 128 * 2**20
"""Bytes of a local cluster's object store for each worker: a picture's quadruplets are a few megabytes."""


class Engine(Protocol):
    """Something that does a job for every source, and yields the results in their order."""

    def __call__(self, job: Job, sources: Sequence[str]) -> Iterator[Unit]:
        """Do the job, which must be picklable."""


def engine(name: str = "here", workers: int = 1, address: str | None = None, gpu: bool = False) -> Engine:
    """Return an engine by its name.

    Args:
        name: ``"here"``, in this process or in so many on this machine; or ``"ray"``, on Ray Data.
        workers: How many processes, or processors of a local Ray cluster.
        address: Of a Ray cluster that is there already; ``None`` starts a local one.
        gpu: Whether each task of Ray needs a GPU.

    Raises:
        CapriccioError: If there is no such engine, or no number of workers.
    """
    if name not in ENGINES:
        raise CapriccioError(f"There is no engine {name!r}; {nearest(name, ENGINES)}")
    if workers < 1:
        raise CapriccioError(f"The engine received {workers} workers; give 1 or more.")
    if name == "ray":
        return lambda job, sources: on_ray(job, sources, workers, address, gpu)
    if address is not None:
        raise CapriccioError(f"The address {address!r} is for Ray; add --engine ray.")
    return lambda job, sources: on_this_machine(job, sources, workers)


def on_this_machine(job: Job, sources: Sequence[str], workers: int = 1) -> Iterator[Unit]:
    """Do a job for every source in this process, or in so many.

    Raises:
        CapriccioError: If a process is lost; or what the job raised.
    """
    try:
        yield from spread(job, sources, workers)
    except BrokenProcessPool:
        raise CapriccioError(
            "A worker was ended from outside, perhaps for want of memory; what is finished is kept: "
            "run the same command with fewer --workers."
        ) from None


def on_ray(
    job: Job, sources: Sequence[str], workers: int = 1, address: str | None = None, gpu: bool = False
) -> Iterator[Unit]:
    """Do a job for every source on Ray Data.

    Ray ends the process that drives it when a cluster is lost, so that one is a child: whatever becomes of it, what
    it has delivered is safe, and the loss is one sentence.

    Args:
        job: What each source is given to; every machine of the cluster must be able to import it and see the pictures.
        sources: Paths of pictures.
        workers: Processors of a local cluster.
        address: Of a cluster that is there already; ``None`` starts a local one.
        gpu: Whether each task needs a GPU.

    Raises:
        CapriccioError: If Ray is not installed, cannot be reached or is lost; or what the job raised.
    """
    if not sources:
        return
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    driver = context.Process(target=_drive, args=(there, job, list(sources), workers, address, gpu))
    driver.start()
    there.close()
    try:
        for number in range(len(sources)):
            answer = _received(here, number, len(sources))
            if isinstance(answer, CapriccioError):
                raise answer
            yield answer
    finally:
        driver.kill()
        driver.join()
        here.close()


def _received(here: Connection, number: int, count: int) -> Any:
    try:
        return pickle.loads(here.recv_bytes())
    except (EOFError, OSError):
        return _lost(number, count, "its driver ended")


def _lost(number: int, count: int, why: str) -> CapriccioError:
    return CapriccioError(
        f"The Ray cluster went away after {number} of {count} pictures ({why}); what is finished is kept: "
        "start the cluster again, or leave out --engine ray, and run the same command."
    )


def _drive(there: Connection, job: Job, sources: list[str], workers: int, address: str | None, gpu: bool) -> None:
    """What the child does: send each result as it comes, or the reason why there are no more."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    done = 0
    try:
        for result in _results(job, sources, workers, address, gpu):
            there.send_bytes(result)
            done += 1
    except CapriccioError as error:
        there.send_bytes(pickle.dumps(error))
    except Exception as error:
        there.send_bytes(pickle.dumps(_lost(done, len(sources), _why(error))))


def _why(error: Exception) -> str:
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0]}" if words else type(error).__name__


def _end_with_parent() -> None:
    import os

    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _results(job: Job, sources: list[str], workers: int, address: str | None, gpu: bool) -> Iterator[bytes]:
    ray = _ray(workers, address)
    data = ray.data.DataContext.get_current()
    data.execution_options.preserve_order = True
    data.enable_progress_bars = False
    # Blocks small enough to share the work evenly and to lose little, and not so many that planning them takes long.
    blocks = min(len(sources), max(4 * workers, len(sources) // 16, 1))
    rows = ray.data.from_items([{"source": source} for source in sources], override_num_blocks=blocks)
    answers = rows.map(_Answer(job), num_gpus=1 if gpu else None)
    for row in answers.iter_rows():
        yield row["answer"]


class _Answer:
    """A job as Ray Data wants it, from row to row; a sentence for the person travels as a result."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        try:
            return {"answer": pickle.dumps(self.job(row["source"]))}
        except CapriccioError as error:
            return {"answer": pickle.dumps(error)}


def _ray(workers: int, address: str | None) -> Any:
    """Ray, connected; nothing it would tell of reaches the network or the terminal."""
    import logging
    import os

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError:
        raise CapriccioError(
            "The engine ray needs Ray Data, which is not installed; pip install 'capriccio[ray]', "
            "or leave out --engine ray."
        ) from None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    quiet: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    local: dict[str, Any] = {
        "num_cpus": workers,
        "include_dashboard": False,
        "object_store_memory": workers * _STORE,
    }
    try:
        ray.init(address=address or "local", **quiet, **({} if address else local))
    except Exception as error:
        where = f"at {address!r}" if address else "on this machine"
        raise CapriccioError(
            f"No Ray cluster {where} could be reached ({_why(error)}); check that it is up, or leave out --engine ray."
        ) from None
    return ray
