"""`python -m app.launch [--config FILE] [--section.key value …]`."""

import sys

from app.launch.launcher import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
