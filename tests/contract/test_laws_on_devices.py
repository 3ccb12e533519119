"""The laws about devices, on eight of them."""

import os
import pathlib
import subprocess
import sys


def test_laws_about_sharding_on_eight_devices():
    program = """
import jax
from jaxwm.testing import check_devices, check_sharding, moving_clips, BATCH, LENGTH
from tests.contract.families import TINY
assert jax.local_device_count() == 8
for name in ("simple", "rssm", "jepa"):
    model, key = TINY[name], jax.random.key(0)
    batch = moving_clips(model.spec, BATCH, LENGTH)
    variables = jax.jit(model.init)(key, batch)
    check_devices(model, variables, key, batch)
    check_sharding(model, variables, key)
print("kept")
"""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    root = pathlib.Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.stdout.strip() == "kept", result.stderr[-2000:]
