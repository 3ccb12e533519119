"""Open-loop prediction of held-out episodes by an RSSM; adds what it measured to `results.json` beside itself.

    python experiments/open_loop/run.py bounce --run runs/open_loop_bounce
    jaxwm data record ALE/Breakout-v5 --out data/breakout --train 400 --test 24 --max-length 400
    python experiments/open_loop/run.py breakout --run runs/open_loop_breakout

Training resumes where the run in that folder stopped, so an interrupted experiment is started again the same way.
"""

import argparse
import pathlib

import jax

import jaxwm
from experiments.record import head, read, write
from jaxwm.evaluation import VideoCallback, evaluate_run

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
CLAIMS = {
    "bounce": (
        "rssm_bounce.yaml",
        [
            "data.path=data/bounce_2000", "data.generate.train=2000", "data.length=32", "stages.train.steps=16000",
            "model.embed=128", "model.depth=16",
            "training.evaluate_every=2000", "training.video_every=8000", "training.checkpoint_every=1000",
        ],
        (1, 5, 10, 15, 20, 30, 40),
    ),
    "breakout": ("rssm_breakout.yaml", [], tuple(range(1, 16))),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claim", choices=CLAIMS)
    parser.add_argument("--run", type=pathlib.Path, required=True, help="the run folder, outside the work tree")
    parser.add_argument("overrides", nargs="*", help="as for jaxwm train")
    arguments = parser.parse_intermixed_args()
    name, overrides, horizons = CLAIMS[arguments.claim]
    overrides = [*overrides, *arguments.overrides]
    config = jaxwm.load_config(CONFIGS / name, overrides)
    run = jaxwm.train(config, arguments.run, [VideoCallback()])
    mode = evaluate_run(run, horizon=horizons[-1])
    mean = evaluate_run(run, horizon=horizons[-1], estimate="mean", samples=16)
    predictors = {**mode.metrics, "model_mean": mean.metrics["model"]}
    table = {
        predictor: {metric: [round(values[h - 1], 5) for h in horizons] for metric, values in metrics.items()}
        for predictor, metrics in predictors.items()
    }
    result = head(
        f"python experiments/open_loop/run.py {arguments.claim}",
        configuration=name,
        overrides=overrides,
        seed=config.seed,
        steps=run.step,
        parameters=sum(x.size for x in jax.tree.leaves(run.variables["params"])),
        scored={"model": mode.describe(), "model_mean": mean.describe()},
        horizons=horizons,
        scores=table,
    )
    path = HERE / "results.json"
    write(path, {**read(path), arguments.claim: result})
    for metric in mode.shown:
        for predictor, metrics in table.items():
            if metric in metrics:
                print(f"{metric:24s} {predictor:10s}", *[f"{value:9.4f}" for value in metrics[metric]])


if __name__ == "__main__":
    main()
