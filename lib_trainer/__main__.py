"""`python -m lib_trainer`: train a job, serve the page, list the options."""

import sys

from lib_trainer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
