"""Speed against the seed's PyTorch listings, in interleaved pairs; writes `results.json` beside itself.

    python experiments/speed/run.py --document SEED_DOCUMENT [--only rssm_imagine] [--rounds 7]

Needs the extra ``peers`` (PyTorch). Without the document the listings are left out and only this library is timed.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
HORIZON = 15
CASES = [("matmul", 0)]
CASES += [("rssm_imagine", batch) for batch in (16, 256, 1024, 4096)]
CASES += [("simple_train_exact", 64), ("simple_train_exact", 256), ("simple_train", 64), ("simple_train", 256)]
CASES += [("simple_imagine_exact", 64), ("simple_imagine", 64)]
TARGETS = {
    ("rssm_imagine", 16): 1.5, ("rssm_imagine", 256): 1.2, ("rssm_imagine", 1024): 1.2, ("rssm_imagine", 4096): 1.2,
    ("simple_train_exact", 64): 1.0, ("simple_train_exact", 256): 0.8, ("simple_train", 64): 1.7,
    ("simple_train", 256): 1.7, ("simple_imagine_exact", 64): 1.2,
}  # fmt: skip
# Products of the listing's rollout: GRU on [stoch, action] and deter, prior to 256 and to 2 x 32.
ROLLOUT_FLOPS = 2 * (36 * 768 + 256 * 768 + 256 * 256 + 256 * 64)
# Large temporaries stay mapped instead of being faulted in anew on every call; both sides get it.
MEMORY = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8000000000:"
    "glibc.malloc.top_pad=268435456:glibc.malloc.arena_max=1"
)


class Worker:
    """A process that times one case on request."""

    def __init__(self, framework: str, case: str, batch: int, document: str | None):
        environment = {
            **os.environ, "GLIBC_TUNABLES": MEMORY, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "2",
            "PYTHONPATH": str(HERE.parents[1]),
        }  # fmt: skip
        command = [sys.executable, str(HERE / "worker.py"), framework, case, str(batch)]
        if document:
            command += ["--document", document]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE.parents[1]
        )
        self.ready = self._read()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker {self.process.args} ended with status {self.process.wait()}")
        return json.loads(line)

    def measure(self) -> float:
        """Seconds a call."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._read()["seconds"]

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def compare(case: str, batch: int, document: str | None, rounds: int) -> dict:
    """Medians of both sides and of the ratio listing / jaxwm, pair by pair."""
    ours = Worker("jax", case, batch, None)
    listing = Worker("torch", case, batch, document) if document else None
    times: list[tuple[float, float | None]] = []
    for _ in range(rounds):
        times.append((ours.measure(), listing.measure() if listing else None))
    for worker in (ours, listing):
        if worker:
            worker.close()
    result = {
        "jaxwm_ms": 1e3 * statistics.median(t for t, _ in times),
        "jaxwm_first_call_s": ours.ready["first_call"],
    }
    if listing:
        ratios = sorted(theirs / mine for mine, theirs in times)
        result |= {
            "listing_ms": 1e3 * statistics.median(t for _, t in times),
            "ratio": statistics.median(ratios),
            "ratio_range": [ratios[0], ratios[-1]],
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--document", help="the seed document that holds the listings")
    parser.add_argument("--only", help="only the cases that begin so")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    results: dict = {}
    for case, batch in CASES:
        if case != "matmul" and arguments.only and not case.startswith(arguments.only):
            continue
        name = f"{case}/{batch}" if batch else case
        result = compare(case, batch, arguments.document, arguments.rounds)
        if case == "matmul":
            result["jaxwm_gflops"] = 2 * 2048**3 / result["jaxwm_ms"] / 1e6
            if "listing_ms" in result:
                result["listing_gflops"] = 2 * 2048**3 / result["listing_ms"] / 1e6
        if case == "rssm_imagine":
            flops = ROLLOUT_FLOPS * batch * HORIZON
            peak = results["matmul"]["jaxwm_gflops"]
            result["jaxwm_steps_per_second"] = batch * HORIZON / result["jaxwm_ms"] * 1e3
            result["share_of_matmul_peak"] = flops / result["jaxwm_ms"] / 1e6 / peak
        if (case, batch) in TARGETS:
            result["target_ratio"] = TARGETS[case, batch]
        results[name] = result
        print(name, json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}), flush=True)
    cores = os.cpu_count()
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": cores,
        "date": time.strftime("%Y-%m-%d"),
    }
    arguments.out.write_text(json.dumps({"machine": machine, "rounds": arguments.rounds, "cases": results}, indent=1))


if __name__ == "__main__":
    main()
