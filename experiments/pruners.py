"""Pruning methods: what each of them does in the loop that all of them share."""

from typing import NamedTuple

from ml_collections import ConfigDict

from dce_jax.pruning.evolve import Rules


class Pruner(NamedTuple):
    """Settings of a pruning method; a config may give others.

    Attributes:
      criterion: signal that says what a channel is worth.
      allocation: ``global``: all groups are ranked together; ``uniform``: each keeps its share.
      rounds: how often channels go.
      scoring: batches on which a round scores the network as it is by then.
      watch: or: training steps before a round over which the signal is averaged.
      penalty: what a channel's saliency falls by for the cost that goes with it.
      unit: the cost that a penalty is for: ``network``, all of the dense one, or ``channel``, the
        dense one's over the number of its channels.
      per_cost: whether saliencies are divided by that cost instead.
      fold: whether the means of removed channels go into their consumers' biases.
      searches: whether layer latents are searched before the first round.
    """

    criterion: str
    allocation: str
    rounds: int
    scoring: int = 0
    watch: int = 0
    penalty: float = 0.0
    unit: str = "network"
    per_cost: bool = False
    fold: bool = False
    searches: bool = False


FREE = ("weight_l1", "weight_l2", "weight_sqr", "norm_scale")
"""Criteria that are read off the parameters alone."""

METHODS: dict[str, Pruner] = {
    # Molchanov et al. 2017. Their penalty is 1e-3 per MFLOP of a filter, on a VGG-16 of 30.96
    # GFLOP and 4,224 filters: 7.3e-3 for the average one. Counted so it fits networks of any size.
    "taylor": Pruner(
        "molchanov_taylor", "global", rounds=5, scoring=10, penalty=7.3e-3, unit="channel"
    ),
    # Theis et al. 2018. What their beta counts cost in is not known, so its value is ours.
    "fisher": Pruner("fisher", "global", rounds=5, watch=50, penalty=0.1),
    # Li et al. 2017: each layer loses a share of its filters, once.
    "l1": Pruner("weight_l1", "uniform", rounds=1),
    # Liu et al. 2017: one threshold for the scales of all layers.
    "slimming": Pruner("norm_scale", "global", rounds=1),
    # Evci et al. 2018: what a unit gave on average stays behind when it goes.
    "mean_replacement": Pruner("evci_mean_replacement", "global", rounds=5, scoring=10, fold=True),
    # Chin et al. 2018: squared norms plus a number per layer, found by evolution.
    "compensated": Pruner("weight_sqr", "global", rounds=1, searches=True),
}

_FOLDING = 10
"""Batches over which means are taken by a method that scores none."""


def prunes(config: ConfigDict) -> bool:
    """Whether a config's method prunes while it trains."""
    return config.method in METHODS


def of(config: ConfigDict) -> Pruner:
    """The method of a config, with what the config sets otherwise."""
    own = METHODS[config.method]
    fields = {
        "criterion": config.criterion,
        "allocation": "explicit" if config.widths else config.prune_allocation,
        "rounds": config.rounds,
        "scoring": config.scoring or None,
        "watch": config.watch,
        "penalty": config.penalty,
        "per_cost": config.per_cost or None,
        "fold": config.fold,
    }
    own = own._replace(searches=own.searches and not config.latents)
    own = own._replace(**{name: value for name, value in fields.items() if value is not None})
    if own.criterion in FREE:
        return own._replace(scoring=0, watch=0)
    # Batches of their own where a config asks for them, and where a method that watches nothing
    # is given a signal.
    return own._replace(watch=0) if config.scoring else own


def fold_batches(pruner: Pruner) -> int:
    """Batches over which a round takes the means that it folds, 0 where it folds none."""
    return (pruner.scoring or _FOLDING) if pruner.fold else 0


def rules(config: ConfigDict) -> Rules:
    """How a config searches layer latents; the tournament keeps its published share."""
    return Rules(
        population=config.search_population,
        tournament=max(1, config.search_population // 4),
        evaluations=config.search_evaluations,
        affine=config.affine,
        seed=config.seed,
    )


def search_passes(config: ConfigDict) -> int:
    """Forward passes of a batch that a config's search takes, 0 where it searches nothing."""
    if not of(config).searches:
        return 0
    return config.search_evaluations * (config.search_examples // config.batch_size)
