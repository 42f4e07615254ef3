"""From a config to everything a run needs, checked before the first step."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from dce_jax import channels as maps
from dce_jax import forward, networks, probe, step
from dce_jax.budget import Budget
from dce_jax.channels import ChannelMap
from dce_jax.types import Array, LossFn, PyTree
from experiments import budgeting, lengths, optimizers, ranking, slimming
from experiments import placement as placing
from experiments.dataset import DataSet
from experiments.pipeline import Augment, Source, make_source
from experiments.placement import Placement


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
      plans: (first step, budget) of every budget so far; the last one is ``budget``.
      shapes: of the full-width collections, unboxed; a run holds no full-width arrays itself.
      placement: where its arrays lie.
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
    plans: tuple[tuple[int, Budget], ...]
    shapes: PyTree
    placement: Placement


def build(config: ConfigDict, data: DataSet) -> Run:
    """Checks a config against data and network, and builds the run.

    Args:
      config: of the run.
      data: the data set.

    Raises:
      ValueError: whatever does not fit, naming it.
    """
    module = networks.build(
        config.network,
        num_classes=data.num_classes,
        dtype=jnp.dtype(config.dtype),
        width=config.width,
    )
    if config.remat:
        module = module.clone(remat=True)
    example = jax.ShapeDtypeStruct((2, *data.image_shape), jnp.float32)
    channels = probe.channel_map(module, example)
    target = budgeting.make_budget(config, module, example)
    budget = budgeting.exploring(config, target)
    cost_ratio = budgeting.ratio(budgeting.macs_of(module, example), budget, target)
    steps, commit_step = lengths.lengths(config, data.train.num_images, cost_ratio)
    placement = placing.of(config)
    source = open_source(config, data, steps, start_step=0, placement=placement)
    thin = maps.with_widths(module, budget.compact)
    shapes = jax.eval_shape(lambda: initial_variables(module, data, config))
    clock = lengths.macs_clock(commit_step, cost_ratio) if config.rate_over == "macs" else None
    rate = optimizers.schedule(config, steps, clock)
    if config.restart:
        rate = optimizers.restarted(config, rate, steps, commit_step)
    tx = optimizers.build(config, rate)
    loss = placing.loss(placement, forward.classification_loss(thin))
    pieces = step.pieces(
        channels,
        budget,
        params=shapes["params"],
        model_state=model_state(shapes),
        tx=tx,
        loss=slimming.penalised(loss, module, config.sparsity)
        if config.method == "slimming"
        else loss,
        signal=ranking.make_signal(config.signal, module, channels, budget),
        gate_shapes=forward.gate_shapes(thin, example),
        score=ranking.make_score(config, commit_step),
        discount=config.discount,
        batch_fn=source.batch_fn,
        catch_up=optimizers.idle_rule(config, rate, steps, shapes["params"]),
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
        loss=placing.loss(placement, forward.classification_loss(module))
        if config.method == "dense"
        else loss,
        pieces=pieces,
        steps=steps,
        commit_step=commit_step,
        plans=((0, budget),),
        shapes=shapes,
        placement=placement,
    )


def open_source(
    config: ConfigDict,
    data: DataSet,
    steps: int,
    *,
    start_step: int,
    placement: Placement | None = None,
) -> Source:
    """The batches of a run."""
    return make_source(
        data.train,
        batch_size=config.batch_size,
        steps=steps,
        start_step=start_step,
        seed=config.seed,
        mean=data.mean,
        std=data.std,
        augment=augmentation(config),
        threads=config.threads,
        placement=placement or Placement(),
    )


def augmentation(config: ConfigDict) -> Augment:
    """Crop and flip of a config."""
    return Augment(config.crop, config.flip)


def starting_at(run: Run, done: int) -> Run:
    """The same run with its batches opened where a resumed one goes on; only streams care."""
    if run.source.resident or done in (0, run.steps):
        return run
    source = open_source(run.config, run.data, run.steps, start_step=done, placement=run.placement)
    return run._replace(source=source)


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


def init_key(seed: int) -> Array:
    """The key of a run's initialisation; the training key is another one."""
    return jax.random.fold_in(jax.random.key(seed), 0)


def train_key(seed: int) -> Array:
    """The key that a run's steps fold theirs from."""
    return jax.random.fold_in(jax.random.key(seed), 1)


def model_state(variables: PyTree) -> PyTree:
    """All collections but the parameters."""
    return {name: tree for name, tree in variables.items() if name != "params"}
