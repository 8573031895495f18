"""A clock that tests set."""


class Clock:
    """A monotonic clock: seconds, as the test says; to sleep is to set it."""

    now_s = 0.0

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds
