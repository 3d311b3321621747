"""raysft: masked supervised fine-tuning of GPT-2-class models with DeepSpeed ZeRO-3 on Ray.

For notebooks: `raysft.train`, `raysft.estimate` and `raysft.load_run`, see `raysft.cli.api`.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

from raysft import estimate as _estimate
from raysft import train as _train

if TYPE_CHECKING:
    from raysft.cli.api import Run as Run
    from raysft.cli.api import estimate as estimate
    from raysft.cli.api import load_run as load_run
    from raysft.cli.api import train as train

__version__ = "0.1.0"


class _Called(ModuleType):
    """`raysft.train.step` is a module, and `raysft.train(...)` a call: a room that is both."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        from raysft.cli import api

        return getattr(api, self.__name__.rpartition(".")[2])(*arguments, **named)


_train.__class__ = _estimate.__class__ = _Called


def __getattr__(name: str) -> Any:
    """What only a notebook needs is imported when it is asked for: the command line starts fast."""
    if name in ("Run", "load_run"):
        from raysft.cli import api

        return getattr(api, name)
    raise AttributeError(f"module 'raysft' has no attribute {name!r}")
