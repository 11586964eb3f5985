"""`python -m mmmo` is the console script `mmmo`."""

from mmmo.cli import main

if __name__ == "__main__":
    main()
