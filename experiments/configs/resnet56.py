"""ResNet-56 at paper scale: 160 epochs, batch 64, crops and flips, cosine schedule.

`python -m experiments.train --config experiments/configs/resnet56.py --config.data_dir DIR`

For another data set add `--config.dataset cifar100`, or `svhn_cropped` with `--config.flip=False`
(a mirrored digit is no digit) and `--config.epochs 20`. Meant for one GPU; not run there yet, so
its time is unknown: dense training takes 3.0e15 multiply-accumulates (three forward passes' worth
for each image), half of the channels 7.6e14, and the device's rate at them decides; a step needs
0.40 and 0.20 GiB, as XLA plans it for a CPU. Published accuracy of the dense network on CIFAR-10,
in per cent: 93.03 (He et al. 2016, table 6, from its test error), under the papers' own step
schedules; none was found for the other two sets.

That is of `--config.method=dense`. Of the command above, `dce` at half of the channels, no
accuracy is known, published or measured. Its default reward leaves out what a shortcut without
parameters writes into a later stage (docs/findings.md): `--config.signal=batch_gate_taylor` has
it, and `--config.network=resnet56-projection` has no such shortcut.
"""

from ml_collections import ConfigDict

from experiments.configs import cifar10_vgg16


def get_config() -> ConfigDict:
    settings = cifar10_vgg16.get_config()
    settings.name = "resnet56"
    settings.network = "resnet56"
    settings.learning_rate = 0.1
    settings.weight_decay = 1e-4
    return settings
