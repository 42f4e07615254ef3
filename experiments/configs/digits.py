"""Bundled 8x8 digits on a CPU, in under two minutes: `python -m experiments.train`."""

from ml_collections import ConfigDict

from experiments import config


def get_config() -> ConfigDict:
    return config.defaults()
