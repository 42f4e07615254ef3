"""Per-input execution on CIFAR-10.

`python -m experiments.runtime --config experiments/configs/runtime_cifar10.py \
    --config.data_dir DIR --config.backbone runs/WORKDIR --config.system lc`
"""

from ml_collections import ConfigDict

from experiments import runtime_config


def get_config() -> ConfigDict:
    settings = runtime_config.defaults()
    settings.name = "runtime_cifar10"
    settings.backbone = "runs/cifar10_resnet20-dense-seed0"
    settings.crop = 4
    settings.flip = True
    settings.block = 100
    return settings
