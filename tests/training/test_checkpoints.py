import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_model import assert_same

from jaxwm.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    Progress,
    best_step,
    list_steps,
    read_variables,
    write_variables,
)
from jaxwm.training.update import TrainState


def state_at(step, width=3, targets=True, average=True):
    """A state whose arrays are all different, and different at each step."""
    params = {"dense": {"kernel": jnp.full((2, width), step + 0.25), "bias": jnp.full(width, -step, jnp.bfloat16)}}
    adam = optax.ScaleByAdamState(jnp.int32(step), jax.tree.map(jnp.ones_like, params), jax.tree.map(jnp.copy, params))
    return TrainState(
        step=jnp.int32(step),
        variables={"params": params, "targets": {"codes": jnp.arange(4) + step} if targets else {}},
        optimizer=(adam, optax.EmptyState(), optax.MaskedNode()),
        average=jax.tree.map(lambda leaf: leaf + 100, params) if average else None,
        healthy=jnp.array(True),
    )


def abstract(progress, **options):
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)  # noqa: E731
    return jax.tree.map(place, state_at(0, **options))


def write(path, steps, keep=9, losses=None, **options):
    store = Checkpoints(path, keep, print)
    for step in steps:
        store.save(state_at(step, **options), Progress(step, "joint", loss=(losses or {}).get(step)))
    store.close()


@pytest.fixture(scope="session")
def three(tmp_path_factory):
    """A folder with the checkpoints 1, 2 and 3."""
    path = tmp_path_factory.mktemp("three") / "checkpoints"
    write(path, (1, 2, 3))
    return path


def restore(path, **options):
    lines = []
    store = Checkpoints(path, 9, lines.append)
    try:
        restored = store.restore(lambda progress: abstract(progress, **options))
    finally:
        store.close()
    return restored, lines


@pytest.mark.parametrize("options", [{}, {"targets": False, "average": False}])
def test_round_trip(tmp_path, options):
    write(tmp_path, [7], **options)
    (state, progress, experience), lines = restore(tmp_path, **options)
    assert progress == Progress(7, "joint")
    assert_same(state, state_at(7, **options))
    assert experience is None
    assert lines == []


def test_nothing_to_restore(tmp_path):
    assert restore(tmp_path / "new")[0] is None


def test_variables_alone(three, tmp_path):
    expected = state_at(3)
    assert_same(read_variables(three, 3), {**expected.variables, "params": expected.average})
    bare = {"params": expected.variables["params"], "targets": {}}
    write_variables(tmp_path, Progress(3), bare)
    assert_same(read_variables(tmp_path, 3), bare)
    with pytest.raises(CheckpointError, match=r"3 has no optimiser state: start from it with training.init_from"):
        restore(tmp_path)


def test_the_last_and_the_best_are_kept(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 5: 1.5, 6: float("nan")}
    write(tmp_path, range(1, 7), keep=2, losses=losses)
    assert list_steps(tmp_path) == [2, 5, 6]
    assert best_step(tmp_path) == 2
    # What is best is known after a restart as well.
    store = Checkpoints(tmp_path, 2, print)
    assert not store.is_best(Progress(7, "joint", loss=1.2))
    assert store.is_best(Progress(7, "joint", loss=0.9))
    store.save(state_at(7), Progress(7, "joint", loss=0.9))
    store.close()
    assert list_steps(tmp_path) == [6, 7]


def test_the_best_is_of_the_last_stage():
    earlier = Progress(5, "first", 0, 0, 0, loss=0.1)
    later = Progress(9, "second", 1, 5, 0, loss=7.0)
    assert later.rank > earlier.rank
    assert Progress(10, "second", 1, 5, 0, loss=6.0).rank > later.rank > Progress(10, "second", 1, 5, 0).rank


def test_saving_copies_before_the_state_is_given_away(tmp_path):
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state = state_at(4).replace(average=None, healthy=jnp.int32(1))
    store = Checkpoints(tmp_path, 2, print)
    store.save(state, Progress(4, "joint"))
    for _ in range(20):
        state = step(state)
    store.close()
    assert_same(read_variables(tmp_path, 4), state_at(4).variables)


def damage_data(folder):
    for file in folder.glob("params/d/*"):
        os.truncate(file, file.stat().st_size // 2)


def remove_everything(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def remove_optimizer(folder):
    shutil.rmtree(folder / "optimizer")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax leaves its other reads behind
@pytest.mark.parametrize("damage", [damage_data, remove_everything, remove_optimizer])
def test_a_damaged_checkpoint_is_skipped_and_set_aside(three, tmp_path, damage):
    path = tmp_path / "checkpoints"
    shutil.copytree(three, path)
    damage(path / "3")
    (state, progress, _), lines = restore(path)
    assert progress.step == 2
    assert_same(state, state_at(2))
    assert len(lines) == 1
    assert f"{path / '3'} cannot be read and is skipped" in lines[0]
    assert sorted(entry.name for entry in path.iterdir()) == ["1", "2", "3.damaged"]
    write(path, [3])  # its place is free
    assert list_steps(path) == [1, 2, 3]


def test_half_written_checkpoints_are_removed(three, tmp_path):
    path = tmp_path / "checkpoints"
    shutil.copytree(three, path)
    os.rename(path / "3", path / "3.orbax-checkpoint-tmp")
    assert restore(path)[0][1].step == 2
    assert sorted(entry.name for entry in path.iterdir()) == ["1", "2"]


def test_all_damaged(three, tmp_path):
    path = tmp_path / "checkpoints"
    shutil.copytree(three, path)
    for step in (1, 2, 3):
        remove_everything(path / str(step))
    with pytest.raises(CheckpointError, match="none of 3 checkpoints can be read"):
        restore(path)
    assert list_steps(path) == [1, 2, 3]


def test_another_model_is_no_damage(three):
    with pytest.raises(CheckpointError) as caught:
        restore(three, width=5)
    assert "does not fit the model" in str(caught.value)
    assert "params/dense/kernel: there [2, 3], here [2, 5]" in str(caught.value)
    assert list_steps(three) == [1, 2, 3]


def test_a_step_is_saved_once(three, tmp_path):
    path = tmp_path / "checkpoints"
    shutil.copytree(three, path)
    store = Checkpoints(path, 9, print)
    store.save(state_at(50), Progress(3, "joint"))
    assert store.latest == 3
    store.close()
    np.testing.assert_array_equal(read_variables(path, 3)["targets"]["codes"], np.arange(4) + 3)
