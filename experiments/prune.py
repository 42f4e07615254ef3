r"""Pruning while training: train dense, then rounds of scoring, removing and fine-tuning.

  python -m experiments.prune
      Taylor pruning on the bundled digits, about a minute on a CPU, most of it compiling
  python -m experiments.prune --config experiments/configs/prune_fisher.py --config.keep=0.25
      another method, a smaller target; any config field can be set this way
  python -m experiments.prune --config experiments/configs/cifar10_small.py \
      --config.method=taylor --config.data_dir DIR
      any config of the main job with a pruning method

Methods: taylor (Molchanov et al. 2017), fisher (Theis et al. 2018), l1 (Li et al. 2017), slimming
(Liu et al. 2017), mean_replacement (Evci et al. 2018), compensated (Chin et al. 2018;
--config.affine=True: LeGR), whose latents.json serves other targets as --config.latents=FILE. The
target is what `scratch` has at the same keep (or macs, or widths): its MACs, or with
--config.target=params its parameters. Training costs what `scratch` costs: the steps of the final
fine-tuning are what the rounds leave. Tensors shrink at every round, moments and statistics stay
with their channels. Killed and started again with the same --workdir, a run goes on.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from absl import app, flags

from experiments import pruners, train

CONFIG = Path(__file__).parent / "configs" / "prune_taylor.py"

flags.adopt_module_key_flags(train)


def main(argv: Sequence[str]) -> int:
    """Command line: one pruning run, its result printed."""
    settings = flags.FLAGS.config
    if not pruners.prunes(settings):
        known = ", ".join(pruners.METHODS)
        print(
            f"error: method {settings.method!r} prunes nothing: choose --config.method of {known}, "
            "or run experiments.train",
            file=sys.stderr,
        )
        return train.WRONG_INPUT
    return train.main(argv)


if __name__ == "__main__":
    app.run(main, flags_parser=partial(train.parse, default=CONFIG))
