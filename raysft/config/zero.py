"""DeepSpeed's own configuration as a pure function of ours: no file, environment or device is read."""

from typing import Any

from raysft.config.schema import Config

