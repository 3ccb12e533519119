"""`python -m jaxwm` is the command `jaxwm`."""

import sys

from jaxwm.cli import main

if __name__ == "__main__":
    sys.exit(main())
