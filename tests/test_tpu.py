"""Readiness for TPUs, proved without one: what the step programs are lowered to for them."""

import functools
import re

import jax
import optax
import pytest
from flax.core import FrozenDict
from nets import IMAGES, batch, split, variables

from dce_jax import budget, channels, forward, networks, saliency, step, training
from dce_jax.networks.densenet import densenet_widths
from dce_jax.networks.mobilenet import mobilenet_widths
from dce_jax.networks.stages import group_widths
from dce_jax.parts import norm_parts

CLASSES, EXAMPLES = 3, 4
SMALL = {
    "vgg": networks.VGG((1, 1), FrozenDict({"conv0": 4, "conv1": 6}), CLASSES),
    "resnet": networks.ResNet((1, 1), group_widths((1, 1), (4, 6)), CLASSES),
    "resnet-padding": networks.ResNet(
        (1, 1), group_widths((1, 1), (4, 8)), CLASSES, shortcut="padding"
    ),
    "densenet": networks.DenseNet((1, 1), densenet_widths((1, 1), stem=5, growth=4), CLASSES),
    "mobilenet": networks.MobileNetV2(
        (1,), (1, 1), mobilenet_widths((1,), (4,), stem=6, last=7, expansion=2), CLASSES
    ),
}


@functools.cache
def pieces_and_state(name):
    """Pieces of a step at half of the channels, and the shapes of a dynamic run's state."""
    module = SMALL[name]
    found = channels.build(module, forward.shapes(module, IMAGES))
    half = budget.from_fraction(found.full, 0.5)
    params, model_state = split(variables(module, IMAGES))
    tx = optax.sgd(0.1, momentum=0.9)
    pieces = step.pieces(
        found,
        half,
        params=params,
        model_state=model_state,
        tx=tx,
        loss=forward.classification_loss(channels.with_widths(module, half.compact)),
        signal=saliency.norm_taylor(module.reward_norms(), norm_parts(found, half.compact)),
    )
    return pieces, step.start_dce(
        pieces, training.start(params, model_state, tx, jax.random.key(0))
    )


@functools.cache
def traced(name):
    """Every step program of a small network, traced: name -> `jax.stages.Traced`."""
    pieces, state = pieces_and_state(name)
    data = batch(size=EXAMPLES)
    inside = jax.eval_shape(functools.partial(step.enter, pieces), state)
    plain = functools.partial(training.plain, pieces.tx, pieces.loss, pieces.batch_fn)
    fused = functools.partial(step.fused, pieces)
    return {
        "enter": jax.jit(functools.partial(step.enter, pieces)).trace(state),
        "commit": jax.jit(functools.partial(step.commit, pieces)).trace(state),
        "leave": jax.jit(functools.partial(step.leave, pieces)).trace(state, inside),
        "observe": jax.jit(functools.partial(step.observe, pieces)).trace(inside, data),
        "plain": jax.jit(plain).trace(inside.loop, data),
        "fused": jax.jit(fused).trace(state, data),
        "scan": jax.jit(training.repeat(fused, 3)).trace(state, data),
    }


def equations(jaxpr):
    """All equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from equations(getattr(inner, "jaxpr", inner))


def _is_jaxpr(value):
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def lookups_of(program):
    """Gathers and scatters of a program: (operand's shape, indices' shape, whether batched)."""
    for equation in equations(program.jaxpr.jaxpr):
        if re.match(r"gather|scatter", equation.primitive.name):
            operand, indices = (v.aval.shape for v in equation.invars[:2])
            batched = equation.params["dimension_numbers"].operand_batching_dims
            yield operand, indices, bool(batched) or len(indices) > 2


@pytest.mark.parametrize("name", SMALL)
def test_every_step_program_lowers_for_tpus(name):
    for program, found in traced(name).items():
        text = found.lower(lowering_platforms=("tpu",)).as_text()
        assert "stablehlo." in text
        for word in ("callback", "infeed", "outfeed", "custom_call", "send", "recv"):
            assert not re.search(rf"stablehlo\.{word}|@{word}", text), (program, word)
        # A size that is known only at run time is a question mark among a tensor's sizes.
        assert not re.search(r"tensor<[^>]*\?", text), program
        assert ("stablehlo.while" in text) == (program == "scan")


@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_gathered_under_vmap_but_the_labels_of_the_loss(name):
    for program, found in traced(name).items():
        shapes = list(lookups_of(found))
        batched = [operand for operand, _, under_vmap in shapes if under_vmap]
        labels = (EXAMPLES, CLASSES)
        # Read, and its gradient written; 12 numbers, where a slab has millions.
        assert batched == ([] if program in ("enter", "commit", "leave") else [labels] * 2)
        assert len(shapes) > len(batched) or program in ("observe", "plain")


def test_one_hot_slabs_are_products_and_no_kernel_is_gathered():
    pieces, state = pieces_and_state("resnet")
    pieces = pieces._replace(lookup="one_hot")
    enter, leave = (functools.partial(f, pieces) for f in (step.enter, step.leave))
    inside = jax.eval_shape(enter, state)
    for found in (jax.jit(enter).trace(state), jax.jit(leave).trace(state, inside)):
        names = [equation.primitive.name for equation in equations(found.jaxpr.jaxpr)]
        assert "dot_general" in names
        # What is left is the bandit's account, one number a channel.
        assert all(len(operand) == 1 for operand, _, _ in lookups_of(found))
        found.lower(lowering_platforms=("tpu",))
