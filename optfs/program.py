"""The program `optfs`: what its script and `python -m optfs` run. Loads nothing else by itself."""

import signal


def main() -> int:
    """Run optfs and return its exit code. While it is being loaded, ctrl-C ends it without a traceback."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    from optfs.cli import main as run  # noqa: PLC0415 - takes most of the time until it can say anything

    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, handler)
    return run()
