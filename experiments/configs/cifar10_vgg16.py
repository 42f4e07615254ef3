"""CIFAR-10, VGG-16 at keep 0.5, the standard recipe (160 epochs; set `--config.epochs`).

`python -m experiments.train --config experiments/configs/cifar10_vgg16.py --config.data_dir DIR`

Meant for one GPU; not run there yet. Dense training takes 7.5e15 multiply-accumulates (three
forward passes' worth for each image), half of the channels 1.9e15; on one core of a CPU a step of
the half takes more than a second (README), and there are 125,000. Published accuracy of the dense
network: 93.25 per cent (Li et al. 2017, table 1, from its test error), with another recipe; of
`dce` none is known.
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
