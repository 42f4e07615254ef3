"""Pre-activation ResNet-164 at paper scale: 160 epochs, batch 64, crops and flips, cosine schedule.

`python -m experiments.train --config experiments/configs/resnet164.py --config.data_dir DIR`

For another data set add `--config.dataset cifar100`, or `svhn_cropped` with `--config.flip=False`
(a mirrored digit is no digit) and `--config.epochs 20`. Meant for one GPU; not run there yet, so
its time is unknown: dense training takes 5.9e15 multiply-accumulates (three forward passes' worth
for each image), half of the channels 1.5e15, and the device's rate at them decides; a step needs
2.3 and 1.1 GiB, as XLA plans it for a CPU. Published accuracy of the dense network on CIFAR-10,
CIFAR-100 and SVHN, in per cent: 94.58, 76.63 and 98.22 (Liu et al. 2017, network slimming, table
1, from its test errors), under the papers' own step schedules; SVHN's with its 531,131 extra
images, which are not read here: `svhn_cropped` trains on 73,257.

Those are of `--config.method=dense`. Of the command above, `dce` at half of the channels, no
accuracy is known, published or measured.
"""

from ml_collections import ConfigDict

from experiments.configs import cifar10_vgg16


def get_config() -> ConfigDict:
    settings = cifar10_vgg16.get_config()
    settings.name = "resnet164"
    settings.network = "resnet164"
    settings.learning_rate = 0.1
    settings.weight_decay = 1e-4
    return settings
