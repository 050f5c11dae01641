"""One run at a time in a folder: a lock that ends with its holder, however that ends."""

import datetime
import errno
import os
import platform
import time
from pathlib import Path
from typing import IO

from sightline.messages import LONGEST, clipped

NAME = "run.lock"
PATIENCE = 3.0  # seconds in which the processes of a killed run end
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Lock:
    """The lock of a run's folder, which all processes of the run hold.

    The system frees it when its last holder ends, also by a kill. The file stays, and names the
    latest holder; it locks nothing by itself.

    Args:
        out: The run's folder.
    """

    def __init__(self, out: Path):
        self.out = out
        self.file: IO[str] | None = None

    def take(self, shared: bool = False) -> str:
        """Takes the lock, once the folder exists; again, it changes its kind.

        Args:
            shared: Among the processes of one run.

        Returns:
            Why the folder cannot be locked; empty where it is.

        Raises:
            ValueError: Another run holds it.
        """
        try:
            import fcntl
        except ImportError:
            return self._unsupported("this system has no flock")
        if self.file is None:
            self.file = (self.out / NAME).open("a+", encoding="utf-8", errors="replace")
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(self.file, kind | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in UNSUPPORTED:
                    return self._unsupported(str(error.strerror))
                if time.monotonic() > until:
                    raise ValueError(self._refusal()) from None
                time.sleep(0.1)
        if not shared:
            self._sign()
        return ""

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def _sign(self) -> None:
        assert self.file is not None
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {platform.node()}, which began at {now}\n")
        self.file.flush()

    def _refusal(self) -> str:
        assert self.file is not None
        self.file.seek(0)
        holder = " ".join(self.file.read(1000).split()) or "another process"
        return (
            f"{self.out} is being written by {clipped(holder, 2 * LONGEST)}: wait until it has "
            "ended, or end it and continue with --resume"
        )

    def _unsupported(self, reason: str) -> str:
        return (
            f"{self.out} cannot be locked ({reason}): start no second run in it while this one "
            "works"
        )
