"""Layer-compensated pruning (Chin et al. 2018) of the bundled digits' network, on a CPU.

The search is smaller than the published one (400 evaluations, a population of 64): at equal
training cost, that would take more than a run of 20 epochs of 1,437 images may spend.
"""

from ml_collections import ConfigDict

from experiments import config


def get_config() -> ConfigDict:
    settings = config.defaults()
    settings.name = "prune_compensated"
    settings.method = "compensated"
    settings.rate_over = "macs"
    settings.search_evaluations = 100
    settings.search_population = 16
    settings.search_examples = 64
    return settings
