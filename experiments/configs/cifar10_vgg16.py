"""CIFAR-10, VGG-16 at keep 0.5, the standard recipe (160 epochs; set `--config.epochs`).

`python -m experiments.train --config experiments/configs/cifar10_vgg16.py --config.data_dir DIR`
"""

from ml_collections import ConfigDict

from experiments import config


def get_config() -> ConfigDict:
    settings = config.defaults()
    settings.name = "cifar10_vgg16"
    settings.dataset = "cifar10"
    settings.network = "vgg16"
    settings.epochs = 160
    settings.batch_size = 64
    settings.learning_rate = 0.05
    settings.crop = 4
    settings.flip = True
    settings.block = 100
    settings.checkpoint_blocks = 5
    return settings
