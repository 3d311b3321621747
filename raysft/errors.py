"""The two ways a run ends early that the user is told about in one message, without a traceback."""

import re

INTERRUPTED = 130  # exit code after Ctrl-C or SIGTERM
# How the others meet the end of a worker, sooner than Ray tells of it: Gloo's words, and NCCL's.
CONNECTION_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "remote process exited",
)
# Ray's memory monitor, CUDA, and torch's allocator on a CPU.
ALLOCATION_FAILED = (
    "OutOfMemory",
    "low on memory",
    "out of memory",
    "can't allocate memory",
    "not enough memory",
)
# What Ray's memory monitor says of a node, and of the processes that use most there.
MEMORY_OF_NODE = re.compile(r"\(IP: ([^,)]+).*?\) was ([\d.]+)GB used / ([\d.]+)GB limit")
MEMORY_USER = re.compile(r"^\d+\t([\d.]+)\t(.+)$", re.MULTILINE)


class UserError(Exception):
    """The input is wrong: config, data or path. Says what, where and what to do. Exit code 2."""

    exit_code = 2


class RunError(Exception):
    """The run failed for a reason outside the user's input, such as a full disk. Exit code 1."""

    exit_code = 1


class OutOfMemory(RunError):
    """A worker asked for more memory than there is."""


class NotFinite(RunError):
    """The loss has left the numbers, or what a model is good for: no restart would mend it."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message, step)  # both, or it would not come back from another process
        self.step = step

    def __str__(self) -> str:
        return str(self.args[0])


def is_cut_off(error: BaseException) -> bool:
    """Whether a worker failed because it lost the connection to another."""
    return any(words in str(error) for words in CONNECTION_LOST)


def is_out_of_memory(error: BaseException) -> bool:
    """By message: Ray wraps its own class in those of the actor that died of it."""
    text = f"{type(error).__name__} {error}"
    return any(words in text for words in ALLOCATION_FAILED)


def memory_users(error: BaseException) -> str:
    """Who used the memory, as Ray's message lists it: a sentence, or "" where it says nothing."""
    text = str(error)
    node = MEMORY_OF_NODE.search(text)
    users = [f"{name.strip()[:60]} {size} GB" for size, name in MEMORY_USER.findall(text)[:4]]
    if node is None or not users:
        return ""
    return f"On {node[1]}, {node[2]} of {node[3]} GB were in use, most by {', '.join(users)}"
