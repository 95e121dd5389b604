"""`python -m lib_trainer`: train a job, serve the page, list the options."""

import os
import sys

from lib_trainer.cli import main

if __name__ == "__main__":
    # Read when torch loads OpenMP. Threads that spin while they wait for one another make a step on a CPU take several
    # times as long as soon as another program wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
