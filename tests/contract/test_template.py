"""The template is a family: it registers, it is configured, it keeps the laws."""

import pytest

import jaxwm
from jaxwm import models
from jaxwm.config import parse_config
from jaxwm.testing import check_world_model
from tests.contract.families import PICTURES, VECTORS
from tests.contract.template import ResidualModel


def test_the_template_keeps_the_laws():
    check_world_model(ResidualModel(VECTORS, latent=16), VECTORS)


def test_the_template_is_configured_by_its_fields(monkeypatch):
    monkeypatch.setattr(models, "FAMILIES", dict(models.FAMILIES))
    jaxwm.register("residual")(ResidualModel)
    values = {"model": {"family": "residual", "latent": 8}, "data": {"path": "x"}, "stages": {"train": {"steps": 1}}}
    assert jaxwm.build_model(parse_config(values).model, VECTORS) == ResidualModel(VECTORS, latent=8)
    with pytest.raises(jaxwm.ConfigError, match="latent=0"):
        parse_config(values, ["model.latent=0"])
    with pytest.raises(jaxwm.ConfigError, match="'image' is an image"):
        jaxwm.build_model(parse_config(values).model, PICTURES)


def test_a_name_is_given_once(monkeypatch):
    monkeypatch.setattr(models, "FAMILIES", dict(models.FAMILIES))
    with pytest.raises(ValueError, match="'rssm' is registered already"):
        jaxwm.register("rssm")(ResidualModel)
