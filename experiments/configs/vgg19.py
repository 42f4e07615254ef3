"""VGG-19 at paper scale: 160 epochs, batch 64, crops and flips, cosine schedule.

`python -m experiments.train --config experiments/configs/vgg19.py --config.data_dir DIR`

For another data set add `--config.dataset cifar100`, or `svhn_cropped` with `--config.flip=False`
(a mirrored digit is no digit) and `--config.epochs 20`. Meant for one GPU; not run there yet, so
its time is unknown: dense training takes 9.6e15 multiply-accumulates (three forward passes' worth
for each image), half of the channels 2.4e15, and the device's rate at them decides; a step needs
0.42 and 0.16 GiB, as XLA plans it for a CPU. Published accuracy of the dense network on CIFAR-10,
CIFAR-100 and SVHN, in per cent: 93.66, 73.26 and 97.83 (Liu et al. 2017, network slimming, table
1, from its test errors), under the papers' own step schedules and a weight decay of 1e-4; SVHN's
with its 531,131 extra images, which are not read here: `svhn_cropped` trains on 73,257.

Those are of `--config.method=dense`. Of the command above, `dce` at half of the channels, no
accuracy is known, published or measured; `--config.keep=0.33` leaves a ninth of MACs and
parameters.
"""

from ml_collections import ConfigDict

from experiments.configs import cifar10_vgg16


def get_config() -> ConfigDict:
    settings = cifar10_vgg16.get_config()
    settings.name = "vgg19"
    settings.network = "vgg19"
    settings.learning_rate = 0.1
    settings.weight_decay = 5e-4
    return settings
