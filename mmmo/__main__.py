"""`python -m mmmo` is the console script `mmmo`."""

import sys

from mmmo.errors import EXIT_INTERRUPTED


def main() -> None:
    """Run a verb; Ctrl-C is one line, too, while what reads the verbs is still imported."""
    try:
        from mmmo.cli import main as run

        run()
    except KeyboardInterrupt:
        print("mmmo: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
