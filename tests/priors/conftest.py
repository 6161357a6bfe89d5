"""Tiny folders in Stable Diffusion's format, created once per session."""

from __future__ import annotations

import pytest

from tests.tiny_sd import make_tiny_sd


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return make_tiny_sd(tmp_path_factory.mktemp("epsilon"))


@pytest.fixture(scope="session")
def v_folder(tmp_path_factory):
    return make_tiny_sd(tmp_path_factory.mktemp("v"), prediction_type="v_prediction")
