"""Per-input execution on the bundled digits, of the compact model of `python -m experiments.train`.

`python -m experiments.runtime`
"""

from ml_collections import ConfigDict

from experiments import runtime_config


def get_config() -> ConfigDict:
    settings = runtime_config.defaults()
    settings.name = "runtime_digits"
    settings.epochs = 30.0
    settings.batch_size = 32
    settings.crop = 1
    return settings
