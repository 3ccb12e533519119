"""Probes: what they find in made-up features, and in a run."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxwm.evaluation import probes
from jaxwm.evaluation.probes import RIDGES, divide, fit_linear, fit_mlp, probe_run


def episodes(truth_of, features_of, count=25, length=40, seed=0):
    """Frames of made-up episodes, a fifth of them held out."""
    random = np.random.default_rng(seed)
    truth = [truth_of(random, length) for _ in range(count)]
    features = [features_of(random, part) for part in truth]
    parts = slice(4 * count // 5), slice(4 * count // 5, None)
    return divide(*((features[part], {"it": truth[part]}) for part in parts))


def test_a_linear_probe_finds_what_is_there_and_knows_how_much():
    mixing = np.random.default_rng(1).normal(size=(2, 6))
    exact = episodes(lambda r, n: 3 + r.normal(size=(n, 2)), lambda r, y: y @ mixing)
    assert fit_linear(exact)["it"] > 0.999
    # Half of the variance of the truth is in what the features show.
    half = episodes(lambda r, n: r.normal(size=(n, 1)), lambda r, y: y + r.normal(size=y.shape), count=50)
    assert fit_linear(half)["it"] == pytest.approx(0.5, abs=0.06)
    nothing = episodes(lambda r, n: r.normal(size=(n, 1)), lambda r, y: r.normal(size=(len(y), 6)))
    assert -0.1 < fit_linear(nothing)["it"] < 0.05


def test_the_linear_probe_is_ridge_regression_with_the_best_of_its_penalties():
    # More features than frames: without a penalty it would fit the noise.
    reading = episodes(lambda r, n: r.normal(size=(n, 1)), lambda r, y: y + 3 * r.normal(size=(len(y), 60)), 10, 6)
    x, y = reading.features, reading.truth["it"]
    scores, errors = [], []
    for ridge in RIDGES:
        weights = np.linalg.solve(
            x.fitting.T @ x.fitting + ridge * len(x.fitting) * np.eye(61), x.fitting.T @ y.fitting
        )
        errors.append(np.mean((x.choosing @ weights - y.choosing) ** 2))
        scores.append(reading.score("it", x.testing @ weights))
    assert fit_linear(reading)["it"] == pytest.approx(scores[np.argmin(errors)], abs=1e-3)
    assert max(scores) - min(scores) > 0.1, "the penalty matters here"


def test_an_mlp_reads_what_a_line_cannot():
    bent = episodes(lambda r, n: r.uniform(-3, 3, (n, 1)), lambda r, y: np.concatenate([np.sin(y), np.cos(y)], -1))
    assert fit_linear(bent)["it"] < 0.8
    assert fit_mlp(bent)["it"] > 0.95


def test_episodes_are_not_torn_apart():
    numbered = [np.full((7, 1), index, np.float32) for index in range(12)]
    reading = divide((numbered[:10], {"number": numbered[:10]}), (numbered[10:], {"number": numbered[10:]}))
    parts = [set(part[:, 0].tolist()) for part in reading.features]
    assert [len(part) for part in parts] == [8, 2, 2] and len(set().union(*parts)) == 12
    for features, truth in zip(reading.features, reading.truth["number"], strict=True):
        np.testing.assert_array_equal(features[:, :1], truth)


def test_what_never_varies_is_no_quantity():
    still = episodes(lambda r, n: np.ones((n, 1)), lambda r, y: r.normal(size=(len(y), 3)))
    assert fit_linear(still) == fit_mlp(still) == {}
    partly = episodes(lambda r, n: np.stack([np.ones(n), r.normal(size=n)], -1), lambda r, y: y[:, 1:])
    assert fit_linear(partly)["it"] > 0.999, "the number that varies is scored, the other left out"


def test_a_run_is_probed_with_its_control(toy_run, monkeypatch):
    monkeypatch.setattr(probes, "_ROUNDS", 2)

    class Seer(type(toy_run.model)):
        """Its features are the frame, as bright as its one parameter says, which is 0 before training."""

        def init(self, key, batch):
            return {"params": {"fade": jnp.zeros(())}, "targets": {}}

        def observe(self, variables, *rest):
            return variables["params"]["fade"] * super().observe(variables, *rest)

    seer = Seer(**{field.name: getattr(toy_run.model, field.name) for field in dataclasses.fields(toy_run.model)})
    run = dataclasses.replace(toy_run, model=seer)
    found = probe_run(run, episodes=24, context=2)
    assert set(found.trained) >= {"position", "velocity"}
    assert found.trained["position"]["linear"] > 0.3
    assert found.untrained["position"]["linear"] < 0.05
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(found.table())
    assert "position" in console.export_text() and '"untrained"' in found.to_json()
    with pytest.raises(ValueError, match="context is 500, but"):
        probe_run(run, episodes=4, context=500)
