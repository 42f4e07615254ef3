"""Mean replacement pruning (Evci et al. 2018) of the bundled digits' network, on a CPU."""

from ml_collections import ConfigDict

from experiments import config


def get_config() -> ConfigDict:
    settings = config.defaults()
    settings.name = "prune_mean_replacement"
    settings.method = "mean_replacement"
    settings.rate_over = "macs"
    return settings
