"""What predictions cost: milliseconds of a device and joules, by model and stream. No clock, no sensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class Usage:
    """What a model's predictions for a stream took so far.

    Attributes:
        predictions: answered.
        device_s: seconds that devices were busy with them.
        energy_j: joules, where the device has a sensor; None where no measured device took part.
    """

    predictions: int = 0
    device_s: float = 0.0
    energy_j: float | None = None

    @property
    def ms_per_prediction(self) -> float | None:
        """Device milliseconds of a prediction; None before the first."""
        return 1e3 * self.device_s / self.predictions if self.predictions else None

    @property
    def joules_per_prediction(self) -> float | None:
        """Joules of a prediction; None before the first, or without a sensor."""
        if self.energy_j is None or not self.predictions:
            return None
        return self.energy_j / self.predictions


class EnergyLedger:
    """Shares the time and the energy of devices among models and streams.

    The seconds of a batch are shared by its rows. The energy that a device drew between two samples of its
    sensor is shared by the seconds of the work of that time, idle power included: that is what an answer
    costs there. What it drew without any work is `idle_j`. Not for several threads.

    Example:
        >>> ledger = EnergyLedger()
        >>> ledger.add("gpu0", "pump-v3", 0.004, {"yard": 3, "door": 1})
        >>> ledger.sample("gpu0", watts=100.0, over_s=0.5)
        >>> usage = ledger.usage["pump-v3", "yard"]
        >>> usage.ms_per_prediction, usage.joules_per_prediction
        (1.0, 12.5)
    """

    def __init__(self) -> None:
        self.usage: dict[tuple[str, str], Usage] = {}
        self.idle_j: dict[str, float] = {}
        self._since: dict[str, dict[tuple[str, str], float]] = {}

    def add(self, device: str, model: str, seconds: float, rows: Mapping[str, int]) -> None:
        """A batch was answered.

        Args:
            device: that ran it.
            model: that was run, with its version.
            seconds: that the device was busy (Answer.seconds).
            rows: predictions by stream; filled-up rows of the batch belong to none, their time to all.
        """
        whole = sum(rows.values())
        since = self._since.setdefault(device, {})
        for stream, count in rows.items():
            if count:
                usage = self.usage.setdefault((model, stream), Usage())
                share_s = seconds * count / whole
                usage.predictions += count
                usage.device_s += share_s
                since[model, stream] = since.get((model, stream), 0.0) + share_s

    def sample(self, device: str, watts: float | None, over_s: float) -> None:
        """A device drew so much on average since its last sample; None where its sensor is silent."""
        since = self._since.pop(device, {})
        if watts is None:
            return
        joules, busy_s = watts * over_s, sum(since.values())
        if busy_s <= 0:
            self.idle_j[device] = self.idle_j.get(device, 0.0) + joules
            return
        for key, seconds in since.items():
            usage = self.usage[key]
            usage.energy_j = (usage.energy_j or 0.0) + joules * seconds / busy_s
