r"""ResNet-50 on ImageNet: 90 epochs, batch 256, random windows, flips, cosine schedule, bfloat16.

  python -m experiments.data prepare imagenet2012 --data_dir DIR
  python -m experiments.train --config experiments/configs/resnet50_imagenet.py \
      --config.data_dir DIR

ImageNet must be fetched by hand: before the first command put `ILSVRC2012_img_train.tar` and
`ILSVRC2012_img_val.tar` (some 145 GB) into `DIR/downloads/manual`; the prepared set takes about as
much again. Its images stay encoded there and are decoded by the host's processors a little ahead
of the steps, so that their number decides the speed as much as the device. To try the recipe on
fewer images add `--config.examples 128000`.

Meant for one GPU of 40 GB or more beside 16 processors or more; not run there yet, so its time and
its memory are unknown: dense training takes 1.4e18 multiply-accumulates (three forward passes'
worth for each image), half of the channels 3.6e17. Evaluated on the 50,000 validation images: the
test split's labels are not public. Published accuracy of the dense network: 76.13 per cent top-1
(torchvision's `ResNet50_Weights.IMAGENET1K_V1`, the same network with its stride in the 3x3
convolutions; its recipe is its own). Of the command above, `dce` at half of the channels, none is
known.
"""

from ml_collections import ConfigDict

from experiments import config


def get_config() -> ConfigDict:
    settings = config.defaults()
    settings.name = "resnet50_imagenet"
    settings.dataset = "imagenet2012"
    settings.image_size = 224
    settings.network = "resnet50"
    settings.dtype = "bfloat16"
    settings.epochs = 90
    settings.batch_size = 256
    settings.learning_rate = 0.1
    settings.weight_decay = 1e-4
    settings.flip = True
    settings.recalibration_examples = 8192
    settings.block = 100
    settings.checkpoint_blocks = 10
    return settings
