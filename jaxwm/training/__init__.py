"""Training: stages, the compiled update, mesh and sharding, checkpoints, metrics and the loop."""

from jaxwm.training.checkpoints import CheckpointError
from jaxwm.training.interruption import Interrupted
from jaxwm.training.loop import Event, train
from jaxwm.training.metrics import read_metrics
from jaxwm.training.optimizers import adaptive_clip, make_optimizer, make_schedule, train_only
from jaxwm.training.run import Run, RunError, load_run, save_weights
from jaxwm.training.sharding import batch_sharding, make_mesh, put_batch, replicated, state_sharding
from jaxwm.training.update import NonFiniteError, TrainState, begin_stage, init_state, make_evaluate, make_update

__all__ = [
    "CheckpointError",
    "Event",
    "Interrupted",
    "NonFiniteError",
    "Run",
    "RunError",
    "TrainState",
    "adaptive_clip",
    "batch_sharding",
    "begin_stage",
    "init_state",
    "load_run",
    "make_evaluate",
    "make_mesh",
    "make_optimizer",
    "make_schedule",
    "make_update",
    "put_batch",
    "read_metrics",
    "replicated",
    "save_weights",
    "state_sharding",
    "train",
    "train_only",
]
