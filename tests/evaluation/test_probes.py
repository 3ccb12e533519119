"""Probes: what they find in made-up features, and in a run."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxwm.evaluation import probes
from jaxwm.evaluation.probes import Reading, fit_linear, fit_mlp, probe_run


def episodes(truth_of, features_of, count=25, length=40, seed=0):
    """Frames of made-up episodes: half of them held out."""
    random = np.random.default_rng(seed)
    truth = [truth_of(random, length) for _ in range(count)]
    features = [features_of(random, part) for part in truth]
    half = 4 * count // 5
    return Reading(features[:half], truth[:half], features[half:], truth[half:])


def test_a_linear_probe_finds_what_is_there_and_knows_how_much():
    mixing = np.random.default_rng(1).normal(size=(2, 6))
    exact = episodes(lambda r, n: 3 + r.normal(size=(n, 2)), lambda r, y: y @ mixing)
    assert fit_linear(exact) > 0.999
    # Half of the variance of the truth is in what the features show.
    half = episodes(lambda r, n: r.normal(size=(n, 1)), lambda r, y: y + r.normal(size=y.shape), count=50)
    assert fit_linear(half) == pytest.approx(0.5, abs=0.06)
    nothing = episodes(lambda r, n: r.normal(size=(n, 1)), lambda r, y: r.normal(size=(len(y), 6)))
    assert -0.1 < fit_linear(nothing) < 0.05


def test_an_mlp_reads_what_a_line_cannot():
    bent = episodes(lambda r, n: r.uniform(-3, 3, (n, 1)), lambda r, y: np.concatenate([np.sin(y), np.cos(y)], -1))
    assert fit_linear(bent) < 0.8
    assert fit_mlp(bent) > 0.95


def test_episodes_are_not_torn_apart():
    # Each episode has a number of its own in truth and features: a probe that saw other frames of it would know.
    def numbered(random, length):
        return np.repeat(random.normal(size=(1, 1)), length, axis=0)

    tags = {}

    def tag(random, truth):
        return np.repeat(tags.setdefault(float(truth[0, 0]), random.normal(size=(1, 12))), len(truth), axis=0)

    assert fit_mlp(episodes(numbered, tag, count=40)) < 0.3


def test_what_never_varies_is_no_quantity():
    still = episodes(lambda r, n: np.ones((n, 1)), lambda r, y: r.normal(size=(len(y), 3)))
    assert np.isnan(fit_linear(still)) and np.isnan(fit_mlp(still))
    partly = episodes(lambda r, n: np.stack([np.ones(n), r.normal(size=n)], -1), lambda r, y: y[:, 1:])
    assert fit_linear(partly) > 0.999, "the number that varies is scored, the other left out"


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
