"""Trains a toy in a process of its own, by the arguments of ``jaxwm train``."""

import sys

import toy_family  # noqa: F401  # registers it

from jaxwm.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
