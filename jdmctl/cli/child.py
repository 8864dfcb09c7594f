"""`python -m jdmctl.cli.child COMMAND ...`: a command that ends with the process that started it, killed or not.

Its input is a pipe whose other end that process holds, and which the system closes with it.
"""

from __future__ import annotations

import os
import signal
import threading


def end_with_parent() -> None:
    """From now on, the end of the input is a SIGTERM: a training saves its state and ends."""
    threading.Thread(target=_wait_for_its_end, daemon=True).start()


def _wait_for_its_end() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    from jdmctl.cli.app import main

    end_with_parent()
    main()
