"""`python -m tuner.engines.simulator`."""

import sys

from tuner.engines.simulator.launch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
