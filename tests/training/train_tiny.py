"""Trains the tiny model, in a process of its own: python train_tiny.py DATA RUN SECONDS_A_STEP [override ...]."""

import sys
import time

from tiny_model import tiny_config

from jaxwm.training import train

if __name__ == "__main__":
    data, run_dir, seconds, *overrides = sys.argv[1:]
    config = tiny_config(data, "training.video_every=1", *overrides)
    train(config, run_dir, [lambda event: time.sleep(float(seconds))])
