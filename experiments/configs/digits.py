"""Bundled 8x8 digits on a CPU, in under two minutes: `python -m experiments.train`.

It explores longer than is best for accuracy (see `experiments/results/exploration.md`), so that its
report has something to show.
"""

from ml_collections import ConfigDict

from experiments import config


def get_config() -> ConfigDict:
    settings = config.defaults()
    settings.commit = 0.1
    return settings
