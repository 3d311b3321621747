"""How far a study is, and how long the rest of it will take."""

import time

from raysft.runs.events import Points


class Pace:
    """How long the points that are left will take, by those that have ended since it was made."""

    def __init__(self, before: int, left: int, at_once: int) -> None:
        self.before, self.left, self.at_once = before, left, min(at_once, left)
        self.ended, self.since = 0, time.monotonic()

    def after(self, more: int) -> Points:
        """More have ended. The first of those that started together tells nothing yet: the others
        may end at the next moment, or be far from it."""
        self.ended += more
        seconds_left = None
        if self.ended >= max(1, self.at_once):
            each = (time.monotonic() - self.since) / self.ended
            seconds_left = each * (self.left - self.ended)
        total = self.before + self.left
        return Points(total, self.before + self.ended, self.at_once, seconds_left)
