"""A thread that computes beside the training rests between short pieces of its work."""

from orchestrator.training.saving.breather import REST_SECONDS, WORK_SECONDS, Breather


class Clock:
    """A clock that work and sleep advance."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def work(breather: Breather, clock: Clock, pieces: int) -> None:
    for _ in range(pieces):
        clock.now += WORK_SECONDS / 10
        breather.breathe()


def test_rests_follow_each_other_at_the_length_of_a_piece_of_work() -> None:
    """After each WORK_SECONDS there is one rest, however small the pieces are."""
    clock = Clock()
    breather = Breather(clock.time, clock.sleep)
    work(breather, clock, 205)
    assert 18 <= len(clock.slept) <= 21
    assert set(clock.slept) == {REST_SECONDS}


def test_hurried_work_does_not_rest() -> None:
    """Once the training waits for the work, nothing delays it."""
    clock = Clock()
    breather = Breather(clock.time, clock.sleep)
    work(breather, clock, 50)
    rests = len(clock.slept)
    breather.is_hurried = True
    work(breather, clock, 50)
    assert len(clock.slept) == rests
