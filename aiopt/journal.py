"""A log that is being written, the fold of it, and whoever wants to hear of each event."""

from collections.abc import Callable

from aiopt.events import Event, Recorded
from aiopt.log import Log
from aiopt.replay import CampaignState, LogState, step

__all__ = ["Journal", "Observer"]

Observer = Callable[[Recorded], None]
"""Called for each event after it is on disk."""


class Journal:
    """The only way in which a campaign changes its state: on disk first,
    then in the fold, then told to the observer.
    """

    def __init__(self, log: Log, state: LogState, observer: Observer | None = None) -> None:
        self.stream = ""
        """The campaign's own stream."""
        self._log, self._state, self._observer = log, state, observer

    @property
    def log_state(self) -> LogState:
        return self._state

    @property
    def campaign(self) -> CampaignState:
        """The fold of what this campaign has logged so far."""
        return self._state.campaigns[self.stream]

    def new_stream(self, kind: str) -> str:
        return self._log.new_stream(kind)

    def append(self, *items: tuple[str, Event]) -> None:
        """One transaction: all of these events or none."""
        for recorded in self._log.append(items):
            self._state = step(self._state, recorded)
            if self._observer is not None:
                self._observer(recorded)

    def emit(self, stream: str, *events: Event) -> None:
        """One transaction in one stream."""
        self.append(*((stream, event) for event in events))
