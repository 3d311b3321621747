"""The Jobs API of a Ray cluster: submit a run, follow its events, stop it, list what ran."""

import asyncio
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from raysft.carriers import upload
from raysft.carriers.entrypoint import entrypoint
from raysft.config.schema import Config
from raysft.errors import INTERRUPTED, RunError, UserError
from raysft.runs import rundir
from raysft.runs.events import Emit, End, Event, from_wire

NAME, VERB = "raysft.name", "raysft.verb"  # in the metadata of a job: the run's
ANSWERS_WITHIN_S = 20.0
# A link that is cut is silent, as is a long step: then the log is asked for anew.
SILENCE_S = 30.0
AGAIN_S = 2.0
PATIENCE_S = 600.0  # for a head node that does not answer
# Between the SIGTERM and the SIGKILL of `raysft stop`: a step and its checkpoint. Ray's is 3 s.
STOP_S = 600
Say = Callable[[str], None]


class Client(JobSubmissionClient):  # type: ignore[misc]
    """Ray's, whose requests do not wait for ever."""

    def _do_request(self, *args: Any, **options: Any) -> Any:
        return super()._do_request(*args, **{"timeout": ANSWERS_WITHIN_S, **options})


class Ended(NamedTuple):
    code: int
    words: str  # the last lines of the log that are no events, and Ray's own word


def connect(address: str) -> Client:
    """Raises UserError: no dashboard answers there, or it wants a token that was not given."""
    if not address.startswith(("http://", "https://")):
        raise UserError(f"--address {address} is not that of a dashboard, such as http://HEAD:8265")
    token = find_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray would let them win
        os.environ.pop(variable, None)
    logging.disable(logging.WARNING)  # Ray tells of every connection
    try:
        return Client(address, headers=headers)
    except AuthenticationError:
        raise UserError(refused(address)) from None
    except (ConnectionError, requests.RequestException, ValueError):
        raise UserError(
            f"no Ray dashboard answers at {address}. Is the head node up, and its port reachable "
            "from here? It often takes a tunnel: ssh -L 8265:localhost:8265 HEAD, and --address "
            "http://localhost:8265"
        ) from None
    except RuntimeError as error:
        raise UserError(f"{address} is no Ray dashboard that takes jobs: {error}") from None


def find_token() -> str | None:
    """From Ray's places, in its order. Ray itself sends it only if RAY_AUTH_MODE asks for it."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return os.environ["RAY_AUTH_TOKEN"].strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    return path.read_text().strip() if path.is_file() else None


def refused(address: str) -> str:
    places = "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, ~/.ray/auth_token"
    if find_token():
        return (
            f"{address} refuses the token it was sent. Take that of the cluster (`ray "
            f"get-auth-token` on its head prints it); it is looked for in this order: {places}"
        )
    return (
        f"{address} wants a token, and there is none here. Take that of the cluster (`ray "
        f"get-auth-token` on its head prints it) into one of: {places}"
    )


def submit(client: Client, spec: Mapping[str, Any], config: Config, *, ship_code: bool) -> str:
    """Send run.json and what travels with it; the id of the job. Raises UserError."""
    now = datetime.now(UTC)
    name = str(config.run.name)
    with tempfile.TemporaryDirectory(prefix="raysft-") as folder:
        upload.pack(spec, config, Path(folder), code=ship_code)
        try:
            return str(
                client.submit_job(
                    entrypoint=entrypoint(Path(rundir.RUN)),
                    submission_id=f"{name}-{now:%Y%m%d-%H%M%S}",
                    runtime_env={
                        "working_dir": folder,
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)},
                    },
                    metadata={NAME: name, VERB: spec["verb"]},
                )
            )
        except (requests.RequestException, RuntimeError) as error:
            raise RunError(f"the cluster did not take the job: {error}") from None


def runs(client: Client) -> list[JobDetails]:
    """The jobs that are runs of raysft, oldest first."""
    found = [job for job in client.list_jobs() if NAME in (job.metadata or {})]
    return sorted(found, key=submitted)


def submitted(job: JobDetails) -> str:
    """When, in UTC, as run.json has it."""
    at = datetime.fromtimestamp((job.start_time or 0) / 1000, UTC)
    return at.isoformat(timespec="seconds")


def find(client: Client, name: str) -> JobDetails:
    """The job of this id, or the newest run of this name. Raises UserError."""
    listed = runs(client)
    for job in reversed(listed):
        if name in (job.submission_id, job.metadata[NAME]):
            return job
    names = ", ".join(dict.fromkeys(job.metadata[NAME] for job in listed)) or "none"
    raise UserError(f"no run {name!r} on this cluster; it knows {names}")


def follow(client: Client, job_id: str, on_event: Emit, say: Say) -> Ended:
    """Hand on the events of a job, from its first one, until it has ended.

    A connection that breaks is made again, and nothing is handed on twice. Raises RunError when the
    cluster has not answered for PATIENCE_S.
    """
    log = Log(on_event)
    while True:
        log.from_start()
        with suppress(aiohttp.ClientError, OSError, RuntimeError, TimeoutError):
            asyncio.run(tail(client, job_id, log.feed))
        info = patiently(lambda: client.get_job_info(job_id), say)
        if info.status.is_terminal():
            log.from_start()
            log.feed(patiently(lambda: client.get_job_logs(job_id), say))
            code = info.driver_exit_code
            words = [*log.others[-5:], *(info.message or "").splitlines()[:1]]
            return Ended(INTERRUPTED if code is None else code, "\n".join(words))
        time.sleep(AGAIN_S)


async def tail(client: Client, job_id: str, feed: Callable[[str], None]) -> None:
    """Feed the log, from its start and as it grows; ends with it, or when nothing comes."""
    chunks = client.tail_job_logs(job_id)
    with suppress(StopAsyncIteration):
        while True:
            feed(await asyncio.wait_for(anext(chunks), SILENCE_S))


def patiently(ask: Callable[[], Any], say: Say) -> Any:
    """The answer, also of a cluster that does not answer for a while."""
    lost_at: float | None = None
    while True:
        try:
            answer = ask()
        except AuthenticationError as error:
            raise UserError(f"the cluster does not take the token any more: {error}") from None
        except (requests.RequestException, RuntimeError, OSError) as error:
            if "status code 404" in str(error):
                raise RunError(
                    "the cluster does not know the job any more: its head was started again. The "
                    "run goes on from its newest checkpoint with the same command and --resume"
                ) from None
            if lost_at is None:
                lost_at = time.monotonic()
                say("connection lost: trying again; Ctrl-C leaves the run alone")
            if time.monotonic() - lost_at > PATIENCE_S:
                raise RunError(
                    f"the cluster has not answered for {PATIENCE_S / 60:.0f} minutes: {error}"
                ) from None
            time.sleep(AGAIN_S)
        else:
            if lost_at is not None:
                say(f"connected again after {time.monotonic() - lost_at:.0f} s")
            return answer


class Log:
    """A log that is read again from its start after each break, and handed on once."""

    def __init__(self, on_event: Emit) -> None:
        self.on_event = on_event
        self.taken = 0  # characters that were handed on, or are in `rest`
        self.to_skip = 0
        self.rest = ""  # a line whose end has not come
        self.others: list[str] = []  # lines that are no events

    def from_start(self) -> None:
        self.to_skip = self.taken

    def feed(self, text: str) -> None:
        new = text[self.to_skip :]
        self.to_skip = max(0, self.to_skip - len(text))
        self.taken += len(new)
        *lines, self.rest = (self.rest + new).split("\n")
        for line in lines:
            wire = as_wire(line)
            if wire is None and line.strip():
                self.others.append(line)
            elif wire is not None and (event := from_wire(wire)):
                self.on_event(event)


def as_wire(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "event" in value else None


def last_event(client: Client, job_id: str) -> End | None:
    """The one that a job ended with; None where it ended without one."""
    found: list[Event] = []
    Log(found.append).feed(client.get_job_logs(job_id))
    last = found[-1] if found else None
    return last if isinstance(last, End) else None
