"""Open-loop prediction and its metrics, against loops in numpy."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from jaxwm.evaluation import video

CONTEXT, HORIZON = 3, 4
KEY = jax.random.key(0)


def roll_out(model, variables, trajectory, temperature=0.0):
    return video.predict(model, variables, KEY, trajectory, CONTEXT, HORIZON, temperature)


def test_the_context_is_observed_and_the_rest_imagined_with_the_actions_that_were_done(
    model, variables, episodes, spec
):
    trajectory = episodes(spec, batch=3, length=9)
    rollout = roll_out(model, variables, trajectory)
    assert rollout.context == CONTEXT
    truth = trajectory.observation["image"][:, : CONTEXT + HORIZON]
    np.testing.assert_array_equal(rollout.observation["image"], truth)
    # This model is perfect on these episodes only if the actions are aligned: the vector is their running sum.
    np.testing.assert_allclose(rollout.prediction.observation["image"], truth / 255, atol=1e-6)
    np.testing.assert_allclose(
        rollout.prediction.observation["vector"], trajectory.observation["vector"][:, : CONTEXT + HORIZON], atol=1e-5
    )
    np.testing.assert_array_equal(rollout.reward[:, 1:], trajectory.reward[:, : CONTEXT + HORIZON - 1])


def test_a_future_frame_changes_no_prediction(model, variables, episodes, spec):
    trajectory = episodes(spec, batch=3, length=CONTEXT + HORIZON)
    images = trajectory.observation["image"].copy()
    images[:, CONTEXT:] = 0
    changed = trajectory.replace(observation={**trajectory.observation, "image": images})
    before, after = roll_out(model, variables, trajectory), roll_out(model, variables, changed)
    np.testing.assert_array_equal(before.prediction.observation["image"], after.prediction.observation["image"])


def test_temperature_reaches_the_model(model, variables, episodes, spec):
    trajectory = episodes(spec, batch=3, length=CONTEXT + HORIZON)
    mode, sample = roll_out(model, variables, trajectory), roll_out(model, variables, trajectory, 1.0)
    assert (
        np.abs(np.asarray(mode.prediction.observation["vector"] - sample.prediction.observation["vector"])).max() > 0.1
    )


def test_a_trajectory_that_is_too_short_is_refused(model, variables, episodes, spec):
    with pytest.raises(ValueError, match=r"has 6 steps, expected context \+ horizon = 3 \+ 4 = 7"):
        video.open_loop(model, variables, KEY, episodes(spec, batch=1, length=6), CONTEXT, HORIZON)
    with pytest.raises(ValueError, match="context is 0"):
        video.open_loop(model, variables, KEY, episodes(spec, batch=1, length=6), 0, 3)


def ssim_by_hand(a, b):
    """Wang et al. 2004 with a 2-D Gaussian window and scipy's convolution, averaged over channels."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    blur = lambda x: scipy.signal.convolve2d(x, window, mode="valid")  # noqa: E731
    maps = []
    for x, y in zip(np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0), strict=True):
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        maps.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return np.mean(maps, axis=0)


def test_ssim_equals_an_independent_computation(rng):
    a, b = rng.random((2, 20, 16, 3)), rng.random((2, 20, 16, 3))
    b = 0.7 * a + 0.3 * b
    got = video.structural_similarity(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    assert got.shape == (2, 10, 6)
    for i in range(2):
        np.testing.assert_allclose(got[i], ssim_by_hand(a[i], b[i]), atol=2e-4)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(scope="module")
def ragged(model, variables, episodes, spec):
    """Pictures that move by two pixels (the model says one); episode 1 ends after 5 frames, row 2 is padding."""
    trajectory = episodes(spec, batch=3, length=CONTEXT + HORIZON, speed=2)
    images = trajectory.observation["image"].copy()
    images[:, :, : images.shape[2] // 2] = 40  # the upper half never changes
    valid = trajectory.valid.copy()
    valid[1, 5:] = False
    valid[2] = False
    trajectory = trajectory.replace(observation={**trajectory.observation, "image": images}, valid=valid)
    return trajectory, video.predict(model, variables, KEY, trajectory, CONTEXT, HORIZON, 0.0)


@pytest.mark.parametrize("predictor", video.PREDICTORS)
@pytest.mark.parametrize("given_mean", [False, True])
def test_scores_equal_loops_in_numpy(ragged, predictor, given_mean, rng):
    trajectory, rollout = ragged
    mean = {"image": rng.random((16, 16, 3)), "vector": np.array([0.5, -1.0])} if given_mean else None
    scores = video.score(rollout, mean, threshold=0.1)
    truth = trajectory.observation["image"].astype(np.float64) / 255
    for h in range(1, HORIZON + 1):
        squares, changed_squares, similarities, changed_similarities, vector_squares = [], [], [], [], []
        for row in range(3):
            if not trajectory.valid[row, : CONTEXT + h].all():
                continue
            now, last = truth[row, CONTEXT + h - 1], truth[row, CONTEXT - 1]
            vectors = trajectory.observation["vector"][row]
            guess = {
                "model": np.roll(last, h, axis=1),
                "copy": last,
                "mean": mean["image"] if mean else truth[row, :CONTEXT].mean(0),
            }[predictor]
            vector_guess = {
                "model": vectors[CONTEXT + h - 1],
                "copy": vectors[CONTEXT - 1],
                "mean": mean["vector"] if mean else vectors[:CONTEXT].mean(0),
            }[predictor]
            squares.append((now - guess) ** 2)
            vector_squares.append((vectors[CONTEXT + h - 1] - vector_guess) ** 2)
            similarity = ssim_by_hand(now, guess)
            similarities.append(similarity.mean())
            for y in range(16):
                for x in range(16):
                    if max(abs(now[y, x] - last[y, x])) > 0.1:
                        changed_squares.append((now[y, x] - guess[y, x]) ** 2)
                        if 5 <= y < 11 and 5 <= x < 11:
                            changed_similarities.append(similarity[y - 5, x - 5])
        at = lambda name, h=h: scores.at(name, h, predictor)  # noqa: E731
        assert scores.count[h - 1] == len(squares) == (2 if h <= 2 else 1)
        np.testing.assert_allclose(at("image/mse"), np.mean(squares), rtol=1e-4)
        np.testing.assert_allclose(at("image/psnr"), 10 * np.log10(1 / np.mean(squares)), atol=1e-3)
        np.testing.assert_allclose(at("image/mse_changed"), np.mean(changed_squares), rtol=1e-4)
        np.testing.assert_allclose(at("image/psnr_changed"), 10 * np.log10(1 / np.mean(changed_squares)), atol=1e-3)
        np.testing.assert_allclose(at("image/ssim"), np.mean(similarities), atol=2e-4)
        np.testing.assert_allclose(at("image/ssim_changed"), np.mean(changed_similarities), atol=3e-4)
        np.testing.assert_allclose(at("vector/rmse"), np.sqrt(np.mean(vector_squares)), atol=1e-5)
    assert scores.episodes == 2


def test_rewards_and_continuations_are_scored(ragged):
    trajectory, rollout = ragged
    scores = video.score(rollout)
    rows = [0, 1]
    h = 2
    reward = trajectory.reward[rows, CONTEXT + h - 2]
    guess = trajectory.observation["vector"][rows, CONTEXT + h - 1, 0]
    np.testing.assert_allclose(scores.at("reward/rmse", h), np.sqrt(np.mean((reward - guess) ** 2)), rtol=1e-5)
    np.testing.assert_allclose(scores.at("continuation/rmse", h), 0.25, rtol=1e-5)
    assert scores.at("continuation/rmse", h, "copy") == 0
    seen = trajectory.reward[rows, CONTEXT - 2]
    np.testing.assert_allclose(scores.at("reward/rmse", h, "copy"), np.sqrt(np.mean((reward - seen) ** 2)), rtol=1e-5)


def test_an_unchanged_picture_has_no_changed_pixels_and_a_perfect_copy(model, variables, episodes, spec):
    rollout = roll_out(model, variables, episodes(spec, batch=3, length=CONTEXT + HORIZON, speed=0))
    scores = video.score(rollout)
    assert np.isnan(scores.at("image/psnr_changed", 1, "copy"))
    assert scores.at("image/psnr", 1, "copy") == 100


def test_a_window_over_two_episodes_counts_only_the_first(model, variables, episodes, spec):
    trajectory = episodes(spec, batch=3, length=CONTEXT + HORIZON)
    is_first = trajectory.is_first.copy()
    is_first[0, CONTEXT + 1] = True
    scores = video.score(roll_out(model, variables, trajectory.replace(is_first=is_first)))
    assert scores.count == (3, 2, 2, 2)


def split(trajectory, sizes):
    starts = np.cumsum([0, *sizes])
    return [jax.tree.map(lambda x, a=a, b=b: x[a:b], trajectory) for a, b in itertools.pairwise(starts)]


def test_batches_of_any_size_give_the_scores_of_one(model, variables, episodes, spec):
    trajectory = episodes(spec, batch=5, length=CONTEXT + HORIZON, speed=2)
    run = lambda sizes, **options: video.evaluate(  # noqa: E731
        model, variables, split(trajectory, sizes), CONTEXT, HORIZON, key=KEY, **options
    )
    whole, parts = run([5]), run([3, 2])
    assert whole.episodes == parts.episodes == 5
    assert whole.count == parts.count
    for predictor, metrics in whole.metrics.items():
        for name, values in metrics.items():
            np.testing.assert_allclose(parts.metrics[predictor][name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_mean_of_samples_is_nearer_than_a_sample(model, variables, episodes, spec):
    batches = [episodes(spec, batch=3, length=CONTEXT + HORIZON)]
    run = lambda **options: video.evaluate(model, variables, batches, CONTEXT, HORIZON, key=KEY, **options)  # noqa: E731
    sample, mean = run(estimate="sample", samples=8), run(estimate="mean", samples=8)
    assert sample.count == mean.count == (3,) * HORIZON
    # The noise of h steps has variance h, that of a mean of 8 samples h/8.
    assert 0.5 < sample.at("vector/rmse", 1) < 2
    assert mean.at("vector/rmse", 4) < 0.7 * sample.at("vector/rmse", 4)
    with pytest.raises(ValueError, match="a mode is one"):
        run(samples=2)
    with pytest.raises(ValueError, match="estimate is 'median'"):
        run(estimate="median")


def test_no_episode_long_enough_is_an_error(model, variables, episodes, spec):
    trajectory = episodes(spec, batch=3, length=CONTEXT + HORIZON)
    short = trajectory.replace(valid=trajectory.valid & (np.arange(CONTEXT + HORIZON) < 2))
    with pytest.raises(ValueError, match="no episode is longer than context = 3"):
        video.evaluate(model, variables, [short], CONTEXT, HORIZON, key=KEY)


def test_mean_observation_skips_padding(episodes, spec):
    trajectory = episodes(spec, batch=2, length=4)
    valid = trajectory.valid.copy()
    valid[1, 2:] = False
    mean = video.mean_observation(split(trajectory.replace(valid=valid), [1, 1]))
    steps = np.concatenate([trajectory.observation["image"][0], trajectory.observation["image"][1, :2]]) / 255
    np.testing.assert_allclose(mean["image"], steps.mean(0), rtol=1e-5)
    rewards = [*trajectory.reward[0, :3], trajectory.reward[1, 0]]
    np.testing.assert_allclose(mean["reward"], np.mean(rewards), rtol=1e-5)


def test_further_measures_are_added(model, variables, episodes, spec):
    def extra(rollout, observations):
        assert set(observations) == set(video.PREDICTORS)
        assert observations["copy"]["image"].shape == (3, HORIZON, 16, 16, 3)
        return {"model": {"ball/within_radius": (np.full(HORIZON, 1.0), np.full(HORIZON, 2.0))}}

    batches = [episodes(spec, batch=3, length=CONTEXT + HORIZON)] * 2
    scores = video.evaluate(model, variables, batches, CONTEXT, HORIZON, key=KEY, extra=extra)
    assert scores.metrics["model"]["ball/within_radius"] == (0.5,) * HORIZON
    assert "ball/within_radius" not in scores.metrics["copy"]
