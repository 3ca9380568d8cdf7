"""Work that goes on beside the network."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Beside:
    """Does one piece of work after the other in a thread of its own. Whoever brings the next one waits until the one
    before is done, so no more than one piece of data is kept. What was begun is ended before the process ends.

    Attributes:
        is_on: whoever looks at the errors sets it; until then work is done at once, by who brings it.
    """

    def __init__(self) -> None:
        self.is_on = False
        self._pool: ThreadPoolExecutor | None = None
        self._last: tuple[str, Future[None]] | None = None
        self._errors: dict[str, BaseException] = {}

    def do(self, name: str, work: Callable[[], None]) -> None:
        """Begin a piece of work; its name tells it from others."""
        if not self.is_on:
            work()
            return
        self._wait()
        self._pool = self._pool or ThreadPoolExecutor(1)
        self._last = name, self._pool.submit(work)

    def errors(self, *, wait: bool) -> dict[str, BaseException]:
        """What has failed since this was asked last, by name; with `wait`, also what is not done yet."""
        if wait or (self._last is not None and self._last[1].done()):
            self._wait()
        found, self._errors = self._errors, {}
        return found

    def _wait(self) -> None:
        if self._last is not None:
            name, future = self._last
            self._last = None
            if (error := future.exception()) is not None:
                self._errors[name] = error
