"""Does the input pipeline keep up, and does memory stay flat; writes `input.json`.

    python experiments/speed/input.py [--rounds 5] [--steps 2100]

First a model is trained, and the peak of resident memory (VmHWM of Linux) is noted as it goes on. Then each round
measures updates and batches a second one after the other, so that a slow minute of the machine slows both.
"""

import argparse
import pathlib
import re
import statistics
import tempfile

import jaxwm
from experiments import record
from jaxwm import bench, data
from jaxwm.training import Event, train

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "configs/rssm_bounce.yaml"
EVERY = 100
"""Steps between two looks at the memory."""


def peak_memory() -> float:
    """The most that this process has held, in MB."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def main(rounds: int = 5, steps: int = 2100) -> dict:
    """Ratios and memory; prints what it adds to `input.json`."""
    with tempfile.TemporaryDirectory() as folder:
        options = [f"data.path={folder}/bounce", f"training.video_every={EVERY}", f"stages.train.steps={steps}"]
        config = jaxwm.load_config(ROOT / CONFIG, options)
        data.ensure_dataset(config.data, log=print)
        memory: dict[int, float] = {}

        def note(event: Event) -> None:
            memory[event.step] = peak_memory()

        train(config, f"{folder}/run", callbacks=[note])
        pairs = []
        for _ in range(rounds):
            *_, update, batches = bench.measure(config, seconds=3.0).measurements
            pairs.append({"updates_per_second": update.rate, "batches_per_second": batches.rate})
            print(f"{update.name}: {update.rate:.1f}; {batches.name}: {batches.rate:.0f}", flush=True)
    ratios = [pair["batches_per_second"] / pair["updates_per_second"] for pair in pairs]
    results = {
        **record.head(f"python experiments/speed/input.py --rounds {rounds} --steps {steps}", config=CONFIG, seed=0),
        "pairs": pairs,
        "ratio": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "peak_memory_mb": memory,
    }
    record.write(pathlib.Path(__file__).parent / "input.json", results)
    print(f"ratio {results['ratio']:.1f} ({min(ratios):.1f} to {max(ratios):.1f}); peak memory in MB: {memory}")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2100)
    main(**vars(parser.parse_args()))
