"""The lock of a run: one process at a time writes in a run directory.

The lock is a file there that is created exclusively, so that of several processes one succeeds, on
a shared file system too. It names its holder, and outlives one that is killed; it is then taken:

- Of a holder in this boot and pid namespace: at once where that process has ended. The start time
  of a process tells it from a later one with its pid.
- Of any other, which cannot be looked at: when nothing has touched the file for STALE_S, which
  whoever wants it waits for. A holder touches it every BEAT_S. What counts is whether the time
  stamp changes, not what it says: the clocks of two hosts differ.

A holder that finds the lock taken from it, because it was stopped for long, is told so and must
write no more. The command that starts a job holds the lock until the job takes it over, so there
is no moment in between. Light imports only.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from raysft.errors import UserError
from raysft.runs.processes import pid_space, start_of

FILE = "lock.json"
BEAT_S = 5.0
STALE_S = 60.0
LOOK_S = 1.0
CLAIM_LOOK_S = 0.01
CLAIM_S = 10.0  # how long another process may take between claiming a free lock and having it
Say = Callable[[str], None]


@dataclass(frozen=True)
class Holder:
    host: str
    pid: int
    started: str  # see processes.start_of
    pid_space: str  # where the pid means this process
    since: str  # UTC
    id: str  # of this lock alone

    @property
    def has_ended(self) -> bool:
        """Of one in our own pid space."""
        now = start_of(self.pid)
        return now is None or bool(now and self.started and now != self.started)


def ignore(_message: str) -> None:
    pass


@contextmanager
def held(run_dir: Path, say: Say, *, lost: Say = ignore, inherits: bool = False) -> Iterator[None]:
    """Hold the lock of this folder, which is made.

    say: is told what there is to wait for. lost: is told, in another thread, that somebody else has
    taken the lock. inherits: takes it from the parent process. Raises UserError: another process
    holds it, or the folder cannot be written.
    """
    file = run_dir / FILE
    try:
        mine = take(file, say, os.getppid() if inherits else None)
    except OSError as error:
        raise UserError(f"run.storage: {run_dir} cannot be written: {error.strerror}") from None
    ended = threading.Event()
    threading.Thread(target=beat, args=(file, mine, ended, lost), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        with suppress(OSError):
            if read(file) == mine:  # else a job has taken it over
                file.unlink()


def take(file: Path, say: Say, giver: int | None = None) -> str:
    """The content of the lock, once it is ours. Raises UserError and OSError.

    giver: the pid of a process of this pid space that leaves it to us.
    """
    mine = json.dumps(asdict(this_process()))
    while True:
        found = read(file)
        if found == mine:
            return mine
        if found is None:
            create(file, mine)
        elif is_free(file, found, say, giver):
            replace(file, found, mine)
        elif read(file) == found:
            raise UserError(refusal(file, found))


def this_process() -> Holder:
    return Holder(
        host=os.uname().nodename,
        pid=os.getpid(),
        started=start_of(os.getpid()) or "",
        pid_space=pid_space(),
        since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        id=uuid.uuid4().hex,
    )


def read(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace")
    except FileNotFoundError:
        return None


def parse(content: str) -> Holder | None:
    """None of a lock that is being written, or never was for want of disk space."""
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


def create(file: Path, mine: str) -> None:
    """Unless there is a lock already. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        created = file.open("x")
    except FileExistsError:
        return
    try:
        with created:
            created.write(mine)
    except OSError:
        file.unlink(missing_ok=True)
        raise


def replace(file: Path, found: str, mine: str) -> None:
    """Put ours in the place of a lock that is free, unless another process was faster.

    Whoever creates the file named after the old lock has the right to replace that one, so it
    cannot be another's new lock that goes. Raises UserError where that process has died right then.
    """
    claim = file.with_name(f"{file.name}.{sha256(found.encode()).hexdigest()[:16]}")
    try:
        with claim.open("x") as created:
            created.write(mine)
    except FileExistsError:
        until = time.monotonic() + CLAIM_S
        while claim.exists():
            if time.monotonic() > until:
                raise UserError(
                    f"{claim} is in the way: a process has died while it took the lock of "
                    f"{file.parent}. Remove that file, and start again"
                ) from None
            time.sleep(CLAIM_LOOK_S)
        return
    if read(file) == found:
        claim.replace(file)
    else:
        claim.unlink()


def is_free(file: Path, found: str, say: Say, giver: int | None) -> bool:
    """Whether its holder has ended, as far as can be told, or is the giver."""
    holder = parse(found)
    if holder is not None and holder.pid_space == pid_space():
        return holder.has_ended or holder.pid == giver
    say(
        f"{file.parent} is held {words(holder)}, which cannot be looked at from here: waiting up "
        f"to {STALE_S:.0f} s for a sign of life"
    )
    before, until = state(file), time.monotonic() + STALE_S
    while time.monotonic() < until:
        time.sleep(LOOK_S)
        if state(file) != before:
            return False
    return True


def state(file: Path) -> tuple[str, int] | None:
    """Content and time stamp. By way of opening it, which makes NFS ask its server."""
    try:
        with file.open(errors="replace") as opened:
            return opened.read(), os.fstat(opened.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def beat(file: Path, mine: str, ended: threading.Event, lost: Say) -> None:
    """Touch the lock until `ended`, or until it is another's."""
    while not ended.wait(BEAT_S):
        with suppress(OSError):  # the file system may be back at the next beat
            found = file.read_text(errors="replace")
            if found != mine:
                lost(f"{file.parent} is now held {words(parse(found))}: this run ends")
                return
            os.utime(file)


def words(holder: Holder | None) -> str:
    if holder is None:
        return "by a process that has left no name"
    return f"by process {holder.pid} on {holder.host} since {holder.since}"


def refusal(file: Path, found: str) -> str:
    holder = parse(found)
    is_here = holder is not None and holder.pid_space == pid_space()
    here = f"Ctrl-C, or `kill -INT {holder.pid}`" if holder and is_here else "Ctrl-C there"
    return (
        f"{file.parent} is being written: it is held {words(holder)}. Wait for the end of that run "
        f"or stop it ({here}; `raysft stop` on a cluster), or choose another --name"
    )
