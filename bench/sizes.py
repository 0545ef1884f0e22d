"""How much of everything: the default run fits 25 minutes of two cores, the quick one two."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Counts and bounds of the workloads. Loads end by count or by time, whichever comes first."""

    runs: int
    runs_alone: int  # of the workloads that need a system of their own
    steps: tuple[int, ...] = (0, 1, 10, 100)
    clients: tuple[int, ...] = (1, 10, 50, 200, 1000)
    warm_seconds: float = 0.5
    serial: int = 400
    serial_min: int = 10
    serial_seconds: float = 1.5
    throughput_seconds: float = 0.5
    fans: int = 5
    fan_seconds: float = 1.0
    payloads: int = 20
    payload_seconds: float = 0.4
    crowd: int = 10_000
    fill_seconds: float = 10.0
    settle_seconds: float = 2.0
    growth: tuple[int, ...] = (1_000, 100_000)
    growth_seconds: float = 1.0
    floor: int = 200

    def crowd_seconds(self, clients: int) -> float:
        """How long so many clients ask: a crowd needs a while until it no longer acts as one."""
        return self.throughput_seconds * (1 if clients < 200 else 2 if clients < 1000 else 3)


FULL = Sizes(runs=5, runs_alone=3)
QUICK = Sizes(
    runs=1,
    runs_alone=1,
    clients=(1, 50, 200),
    warm_seconds=0.2,
    serial=60,
    serial_min=3,
    serial_seconds=0.4,
    throughput_seconds=0.3,
    fans=2,
    payloads=5,
    crowd=500,
    fill_seconds=1.5,
    settle_seconds=1.5,
    growth=(500, 2_000),
    growth_seconds=0.3,
    floor=50,
)
