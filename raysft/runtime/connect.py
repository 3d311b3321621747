"""The Ray cluster this process works on: the one it was submitted to, or one embedded in it."""

import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

from raysft.config.schema import Config
from raysft.errors import RunError, UserError
from raysft.runtime.reach import ADVICE, require_cluster

T = TypeVar("T")
# What Ray Train logs every second where there is no dashboard to ask for its controller.
NOISE = "Failed to query Ray Train Controller actor state"
# What Ray says of a node after 30 s, in an exception without a class of its own.
STARTS_TOO_SLOWLY = "timed out during startup"


class WithoutNoise:
    """A stream that leaves out lines of `NOISE`; whatever else is asked of it the stream does."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.dropped = False

    def write(self, text: str) -> int:
        if NOISE in text or (self.dropped and text == "\n"):
            self.dropped = not text.endswith("\n")
            return len(text)
        self.dropped = False
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


EMBEDDED = not os.environ.get("RAY_ADDRESS")  # `ray job submit` sets it for the jobs of a cluster


def local_resources(config: Config) -> dict[str, float]:
    """What an embedded Ray will offer, known without starting it."""
    resources = {"CPU": float(len(os.sched_getaffinity(0))), "GPU": 0.0}
    if config.on_gpu:
        import torch

        resources["GPU"] = torch.cuda.device_count()
    return resources


def worker_environment(config: Config) -> dict[str, str]:
    """Set before a worker starts, because these are read when a library is loaded."""
    if config.on_gpu:
        return {}
    environment = {
        "DS_ACCELERATOR": "cpu",
        # One heap for all threads: one for each costs gigabytes with large models, and glibc lets
        # only the first grow without limit. See memory.keep_freed_memory(). Tensors of 1 MiB and
        # more get a heap of their own, where nothing small that stays keeps their holes from
        # joining.
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_CONF": "narenas:1,oversize_threshold:1048576,lg_extent_max_active_fit:30",
        # oneDNN keeps some 0.5 MiB of compiled code for each shape of a product, 1,024 of them by
        # default, and packs bring new shapes at every step. A layer needs about 20.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    }
    jemalloc = ray_jemalloc()
    if jemalloc.exists() and "LD_PRELOAD" not in os.environ:
        environment["LD_PRELOAD"] = str(jemalloc)
    return environment


def ray_jemalloc() -> Path:
    """The allocator that comes with Ray. glibc cannot reuse the holes that tensors leave in it."""
    import ray

    return Path(ray.__file__).parent / "core" / "libjemalloc.so"


def missing_environment(config: Config) -> dict[str, str]:
    """What Ray must set for the workers: nothing where they inherit it from this process.

    Workers with an environment of their own cannot use the processes that Ray has ready.
    """
    wanted = worker_environment(config)
    inherited = EMBEDDED and all(os.environ.get(name) == value for name, value in wanted.items())
    return {} if inherited else wanted


def start_ray(config: Config) -> None:
    """Join the cluster this job was submitted to, or start one inside this process, once.

    Raises UserError where there is no cluster to join, and RunError where this machine has too much
    to do to start one.
    """
    import ray

    if ray.is_initialized():
        return
    if not EMBEDDED:
        require_cluster(os.environ["RAY_ADDRESS"])
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    if EMBEDDED:
        os.environ.update(worker_environment(config))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
            # Ray wants a token, and would write one for others to read into the home folder.
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        options |= {
            "address": "local",
            "_temp_dir": tempfile.gettempdir(),  # the job's own, so that nothing of Ray's is left
            # Eleven processes that nobody looks at: a second of start-up and 0.2 GiB.
            "include_dashboard": False,
            "num_cpus": int(local_resources(config)["CPU"]),
        }
        if config.on_gpu:  # as torch counts them: Ray would ask NVML, which may not be there
            options["num_gpus"] = int(local_resources(config)["GPU"])
        sys.stdout = cast(TextIO, WithoutNoise(sys.stdout))
        sys.stderr = cast(TextIO, WithoutNoise(sys.stderr))
    init_ray(options)


def init_ray(options: Mapping[str, Any]) -> None:
    """Raises as `start_ray` does."""
    import ray

    try:
        ray.init(**options)
    except ConnectionError as error:
        if EMBEDDED:
            raise
        raise UserError(f"RAY_ADDRESS is {os.environ['RAY_ADDRESS']}: {error} {ADVICE}") from None
    except Exception as error:
        if STARTS_TOO_SLOWLY not in str(error):
            raise
        wanted, cpus = os.getloadavg()[0], os.cpu_count()
        raise RunError(
            f"Ray did not start within half a minute on this machine, where {wanted:.0f} processes "
            f"wanted {cpus} CPUs: try again when less runs beside it"
        ) from error


def start_ray_beside(config: Config, work: Callable[[Callable[[], None]], T]) -> T:
    """Start Ray while `work` imports and reads in a thread; the result of `work`.

    `work` gets a function that waits until Ray is there. In this order, because Ray's processes
    end with the thread that starts them. Raises UserError where there is no cluster to join.
    """
    if not EMBEDDED:  # before any work, which would have to end first
        require_cluster(os.environ["RAY_ADDRESS"])
    there: Future[None] = Future()
    with ThreadPoolExecutor(max_workers=1) as pool:
        working = pool.submit(work, there.result)
        try:
            start_ray(config)
            there.set_result(None)
        except BaseException as error:
            there.set_exception(error)
            raise
        return working.result()


def shut_down_ray() -> None:
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
