"""What tests of the pace share."""


class Clock:
    """Nanoseconds that only the test moves on."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> int:
        return int(self.seconds * 1e9)
