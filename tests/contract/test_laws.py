"""Every registered family keeps the laws; a new family is tested by an entry in `families.TINY`."""

import pytest

from jaxwm import models
from jaxwm.testing import check_world_model
from tests.contract.families import TINY


def test_every_registered_family_has_a_tiny_instance():
    shipped = {family for family in models.FAMILIES.values() if family.__module__.startswith("jaxwm.")}
    assert {type(model) for model in TINY.values()} == shipped


@pytest.mark.parametrize("name", TINY)
def test_laws(name):
    check_world_model(TINY[name], TINY[name].spec)
