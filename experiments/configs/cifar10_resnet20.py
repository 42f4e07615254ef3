"""CIFAR-10, ResNet-20 small enough for a CPU (stages of 8, 16 and 32 channels), 15 epochs.

`python -m experiments.train --config experiments/configs/cifar10_resnet20.py --config.data_dir DIR`

Its shortcuts are projections: the published ones without parameters join only those channels of
two stages whose partners were both selected. `--config.network resnet20` has those. At the rate
that held-out images prefer (`--config.learning_rate 0.2`), on one core of a shared CPU: dense
84.4 % (three seeds, spread 0.4), 31 minutes; `dce` at half of the channels 77.0 % (five seeds,
spread 0.4), 18 minutes; `scratch` 77.2 (exploration.md, question 16).
"""

from ml_collections import ConfigDict

from experiments.configs import cifar10_small


def get_config() -> ConfigDict:
    settings = cifar10_small.get_config()
    settings.name = "cifar10_resnet20"
    settings.network = "resnet20-projection"
    settings.width = 0.5
    settings.weight_decay = 1e-4
    return settings
