"""L1 filter pruning (Li et al. 2017) of the bundled digits' network, on a CPU."""

from ml_collections import ConfigDict

from experiments import config


def get_config() -> ConfigDict:
    settings = config.defaults()
    settings.name = "prune_l1"
    settings.method = "l1"
    settings.rate_over = "macs"
    return settings
