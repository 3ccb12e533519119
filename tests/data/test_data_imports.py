"""What is optional or heavy is imported when it is needed."""

import subprocess
import sys

HEAVY = ("tensorflow_datasets", "grain", "array_record", "gymnasium", "ale_py", "imageio", "h5py", "PIL", "matplotlib")


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, jaxwm.data, jaxwm.envs; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_everything_that_is_announced_is_there():
    from jaxwm import data, envs

    for package in (data, envs):
        assert len(set(package.__all__)) == len(package.__all__)
        assert all(hasattr(package, name) for name in package.__all__)
