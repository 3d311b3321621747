"""The two ways a run ends early that the user is told about in one message, without a traceback."""

INTERRUPTED = 130  # exit code after Ctrl-C or SIGTERM


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
