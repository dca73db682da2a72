"""The MariaDB that measurements use: the tests' own, with room as in production."""

from tests.services import MariaDb


class GrownMariaDb(MariaDb):
    """Durable, with a redo log of the usual size: for the small one of the tests it stops for seconds to tidy."""

    layout = ("--innodb-log-file-size=96M",)

    def __init__(self) -> None:
        super().__init__(durable=True)

    def command(self) -> list[str]:
        return [*super().command(), "--innodb-buffer-pool-size=512M"]
