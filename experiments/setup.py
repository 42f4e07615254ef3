"""From a config to everything a run needs, checked before the first step."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from dce_jax import budget as budgets
from dce_jax import channels as maps
from dce_jax import forward, networks, probe, step
from dce_jax.budget import Budget
from dce_jax.channels import ChannelMap
from dce_jax.pruning import Latents, costs, distilled, folding
from dce_jax.types import Array, LossFn, PyTree
from experiments import (
    budgeting,
    choices,
    latent_files,
    lengths,
    optimizers,
    pacing,
    pretrained,
    pruners,
    ranking,
    slimming,
)
from experiments import placement as placing
from experiments.dataset import DataSet
from experiments.pacing import Pace
from experiments.pipeline import Source
from experiments.placement import Placement
from experiments.sources import open_source
from experiments.summary import Result


class Run(NamedTuple):
    """What the loop of a run closes over.

    Attributes:
      config: the run's config.
      data: the data set.
      source: batches.
      module: the network at full width.
      thin: the same class at the budget's widths.
      channels: the proved channel map.
      budget: K per group, as it is by now.
      target: the budget that was asked for; a learned one costs no more.
      tx: the optimizer.
      rate: its learning rate.
      loss: of the network that trains: ``module`` for dense, else ``thin``.
      pieces: of the dynamic step.
      steps: length of the run.
      commit_step: step after which only the narrow network's ordinary step is left.
      ends: steps after which a pruning run's channels go, the last one at ``commit_step``.
      plans: (first step, budget) of every budget so far; the last one is ``budget``.
      shapes: of the full-width collections, unboxed; a run holds no full-width arrays itself.
      placement: where its arrays lie.
      pace: of a pruning run, else None.
      latents: that compensate a global ranking of layers; None: nothing does, or not yet.
      pretrained: ``result.json`` of the trained network that it begins with, or None.
    """

    config: ConfigDict
    data: DataSet
    source: Source
    module: nn.Module
    thin: nn.Module
    channels: ChannelMap
    budget: Budget
    target: Budget
    tx: optax.GradientTransformation
    rate: optimizers.Rate
    loss: LossFn
    pieces: step.Pieces
    steps: int
    commit_step: int
    ends: tuple[int, ...]
    plans: tuple[tuple[int, Budget], ...]
    shapes: PyTree
    placement: Placement
    pace: Pace | None
    latents: Latents | None
    pretrained: Result | None


def build(config: ConfigDict, data: DataSet) -> Run:
    """Checks a config against data and network, and builds the run.

    Args:
      config: of the run.
      data: the data set.

    Raises:
      ValueError: whatever does not fit, naming it.
    """
    module = _network(config, data)
    example = jax.ShapeDtypeStruct((2, *data.image_shape), jnp.float32)
    # What costs nothing to refuse comes before the proof of the channel map.
    lengths.run_length(config, data.train.num_images)
    target = budgeting.make_budget(config, module, example)
    budget = budgeting.exploring(config, target)
    channels = probe.channel_map(module, example)
    placement = placing.of(config)
    thin = maps.with_widths(module, budget.compact)
    pace = _pace(config, channels, target, module, example) if pruners.prunes(config) else None
    if pace is None:
        ratio = budgeting.ratio(budgeting.macs_of(module, example), budget, target)
        length = lengths.length(config, data.train.num_images, ratio)
    else:
        length = pacing.length(pace, config, data.train.num_images, [budget.compact])
    criterion = pace.pruner.criterion if pace else config.signal
    source = open_source(
        config,
        data,
        length.steps,
        start_step=0,
        placement=placement,
        searching=pace is not None and pace.pruner.searches,
    )
    shapes = jax.eval_shape(lambda: initial_variables(module, data, config))
    rate = optimizers.over(config, length)
    tx = optimizers.build(config, rate)
    loss = placing.loss(placement, loss_of(config, thin, 0, pace))
    pieces = step.pieces(
        channels,
        budget,
        params=shapes["params"],
        model_state=model_state(shapes),
        tx=tx,
        loss=loss,
        signal=ranking.make_signal(criterion, module, channels, budget),
        gate_shapes=forward.gate_shapes(thin, example),
        unit=choices.REWARDS[config.rewards],
        score=ranking.make_score(config, length.commit_step),
        discount=config.discount,
        batch_fn=source.batch_fn,
        catch_up=optimizers.idle_rule(config, rate, length.steps, shapes["params"]),
        forget=config.idle == "forget",
        quiet=config.quiet,
        lookup=config.lookup,
    )
    return Run(
        config=config,
        data=data,
        source=source,
        module=module,
        thin=thin,
        channels=channels,
        budget=budget,
        target=target,
        tx=tx,
        rate=rate,
        loss=loss,
        pieces=pieces,
        steps=length.steps,
        commit_step=length.commit_step,
        ends=length.ends,
        plans=((0, budget),),
        shapes=shapes,
        placement=placement,
        pace=pace,
        latents=latent_files.given(config, criterion, channels),
        pretrained=pretrained.given(config, module, shapes),
    )


def _network(config: ConfigDict, data: DataSet) -> nn.Module:
    module = networks.build(
        config.network,
        num_classes=data.num_classes,
        dtype=jnp.dtype(config.dtype),
        width=config.width,
    )
    return module.clone(remat=True) if config.remat else module


def _pace(
    config: ConfigDict, channels: ChannelMap, target: Budget, module: nn.Module, example: Any
) -> Pace:
    """How a pruning run is paced, its criterion tried on shapes."""
    full = budgets.full(target.full)
    pruner = pruners.of(config)
    criterion = ranking.make_signal(pruner.criterion, module, channels, full)
    if pruner.per_cost and criterion.signed:
        raise ValueError(
            f"per_cost divides saliencies by what channels cost, but {pruner.criterion} may be "
            "negative, where the cheaper channel would go first: use an unsigned criterion "
            "(abs_sum or sqr_sum instead of sum), or a penalty"
        )
    if pruner.fold:
        folding.routes(module, channels, example, full.full)
    macs = costs.macs(module, channels, example)
    scored = ranking.scored_macs(criterion, module, example, config.batch_size)
    if pruner.watch and not criterion.own_pass:
        scored = 0  # the steps that are watched give it away
    per_pass = scored / (config.batch_size * costs.total(macs, full.compact))
    return pacing.build(config, macs, costs.parameters(channels), target, per_pass)


def loss_of(config: ConfigDict, thin: nn.Module, stage: int, pace: Pace | None) -> LossFn:
    """What a network trains on.

    Args:
      config: of the run.
      thin: the network as it trains.
      stage: rounds of pruning so far.
      pace: of a pruning run, else None.
    """
    if pace is None:
        return forward.classification_loss(thin)
    teaching = config.distill and stage
    loss = distilled(thin, config.distill) if teaching else forward.classification_loss(thin)
    if config.method == "slimming" and stage < pace.pruner.rounds:
        return slimming.penalised(loss, thin, config.sparsity)
    return loss


def starting_at(run: Run, done: int) -> Run:
    """The same run with its batches opened where a resumed one goes on; only streams care."""
    if run.source.resident or done in (0, run.steps):
        return run
    source = open_source(
        run.config,
        run.data,
        run.steps,
        start_step=done,
        placement=run.placement,
        searching=searching(run),
    )
    return run._replace(source=source)


def searching(run: Run) -> bool:
    """Whether layer latents are still to be searched, before the first channels go."""
    return run.pace is not None and run.pace.pruner.searches and len(run.plans) == 1


def initial_variables(module: nn.Module, data: DataSet, config: ConfigDict) -> PyTree:
    """Initial collections of a network, unboxed; one seed gives one network at any width."""
    example = jnp.zeros((1, *data.image_shape), jnp.float32)

    def init(key: Array) -> PyTree:
        variables = nn.unbox(forward.initial(module, key, example))
        params = jax.tree.map(
            lambda p: p * jnp.asarray(config.init_scale, p.dtype) if p.ndim > 1 else p,
            variables["params"],
        )
        return {**variables, "params": params}

    return jax.jit(init)(init_key(config.seed))


def beginning(run: Run) -> PyTree:
    """Collections that a run begins with: at full width, but for ``scratch``."""
    if run.pretrained is not None:
        return pretrained.variables(run.config, run.module)
    module = run.thin if run.config.method == "scratch" else run.module
    return initial_variables(module, run.data, run.config)


def init_key(seed: int) -> Array:
    """The key of a run's initialisation; the training key is another one."""
    return jax.random.fold_in(jax.random.key(seed), 0)


def train_key(seed: int) -> Array:
    """The key that a run's steps fold theirs from."""
    return jax.random.fold_in(jax.random.key(seed), 1)


def model_state(variables: PyTree) -> PyTree:
    """All collections but the parameters."""
    return {name: tree for name, tree in variables.items() if name != "params"}
