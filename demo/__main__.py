"""`python -m sightline.demo` is `sightline demo`."""

import sys

from sightline.cli import app

if __name__ == "__main__":
    app(["demo", *sys.argv[1:]], prog_name="python -m sightline")
