"""A config of per-input execution, turned into checked pieces."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from dce_jax.runtime import chain as chains
from dce_jax.runtime import nesting, systems
from dce_jax.runtime.systems import RNP, L, System
from dce_jax.types import PyTree
from experiments import optimizers, sources, subject
from experiments.dataset import Split
from experiments.pipeline import Source
from experiments.subject import Subject

_PARTS = {RNP: 4, L: 1}
_MOST = 8
_TURNS = 4  # of which the last is the network's

RANDOM, DECIDE, NETWORK, BOTH = "random", "decide", "network", "both"
"""What a step trains: the network under random decisions; what decides; the network; both."""


class Job(NamedTuple):
    """Everything that a run of per-input execution is made of.

    Attributes:
      config: of the run.
      subject: the trained network and its data.
      variables: the network's, its channels in the order in which they run.
      system: what decides.
      source: of the batches.
      steps: of the run.
      network: its optimizer.
      deciding: the optimizer of what decides.
    """

    config: ConfigDict
    subject: Subject
    variables: PyTree
    system: System
    source: Source
    steps: int
    network: optax.GradientTransformation
    deciding: optax.GradientTransformation


def build(config: ConfigDict) -> Job:
    """The pieces of a run.

    Raises:
      FileNotFoundError: no finished run at ``backbone``, or no data.
      ValueError: a network, system or number that does not fit.
    """
    asked = subject.read(Path(config.backbone), config.data_dir)
    in_memory(asked)
    scene = asked.scene
    chain = chains.chain(scene.module, scene.channels)
    variables = {"params": scene.params, **scene.model_state}
    variables = nesting.reordered(chain.channels, variables, nesting.by_norm(chain, variables))
    system = systems.build(
        config.system,
        chain,
        variables,
        jax.ShapeDtypeStruct((1, *asked.data.image_shape), jnp.float32),
        parts=_parts(config, min(map(chain.width, chain.sites))),
        span=None if config.cheapest is None else (config.cheapest, config.dearest),
    )
    steps = config.steps or round(
        config.epochs * (asked.data.train.num_images // config.batch_size)
    )
    source = sources.open_source(config, asked.data, steps, start_step=0)
    phases = [phase(config, steps, step) for step in range(steps)]
    # An optimizer counts its own steps alone.
    rate = optimizers.schedule(config, max(1, sum(each != DECIDE for each in phases)))
    own = max(1, sum(each in (DECIDE, BOTH) for each in phases))
    slow = optax.cosine_decay_schedule(_deciding_rate(config), own)
    return Job(
        config,
        asked,
        variables,
        system,
        source,
        steps,
        optimizers.build(config, rate),
        optax.adamw(lambda count: slow(jnp.asarray(count, jnp.float32)), weight_decay=1e-4),
    )


def in_memory(asked: Subject) -> Split:
    """Test images in memory, which decisions of other images are replayed on.

    Raises:
      ValueError: a data set that is decoded as it is read.
    """
    if not isinstance(asked.data.test, Split):
        raise ValueError(
            f"{asked.data.name} is decoded as it is read, and per-input execution is evaluated on "
            "arrays: prepare it as a .npz file or choose a data set of small images"
        )
    return asked.data.test


def source(job: Job, done: int) -> Source:
    """The batches of a run that goes on after some steps."""
    return sources.open_source(job.config, job.subject.data, job.steps, start_step=done)


def _parts(config: ConfigDict, narrowest: int) -> int:
    if config.parts is not None:
        return int(config.parts)
    return _PARTS.get(config.system, min(_MOST, narrowest))


def _deciding_rate(config: ConfigDict) -> float:
    if config.deciding_rate is not None:
        return float(config.deciding_rate)
    return 1e-2 if config.system == RNP else 1e-3


def phase(config: ConfigDict, steps: int, step: int) -> str:
    """What a step trains, by its index.

    Runtime neural pruning first trains the network under random decisions, then what decides and
    the network in turns (Lin et al. 2017 alternate too; a step of what decides costs less than
    half of the network's, and gets three turns of four); the others train both at once.
    """
    if config.system != RNP:
        return BOTH
    first = round(config.random * steps)
    if step < first:
        return RANDOM
    return NETWORK if (step - first) // config.turn % _TURNS == _TURNS - 1 else DECIDE


def train_macs(job: Job) -> float:
    """Multiply-accumulates of a run's training: every step computes all channels, masked.

    Three forward passes a step; two where only what decides is trained (one of them decides
    nothing), whose own are counted three times then.
    """
    system, batch = job.system, job.config.batch_size
    per = {DECIDE: 2 * system.costs.full + 3 * system.deciding}
    whole = 3 * (system.costs.full + system.deciding)
    phases = (phase(job.config, job.steps, step) for step in range(job.steps))
    return float(batch * sum(per.get(each, whole) for each in phases))
