"""The algebra of signals: its names, and every signal against a slow, literal reference."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import signal_nets
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from nets import x64
from signal_nets import Stack, flat, scene

from dce_jax import signals
from dce_jax.signals import algebra


def check_reference(found, slow, *, rtol, atol):
    for formula, values in found.items():
        for group, value in values.items():
            expected = slow[str(formula)][group]
            size = np.max(np.abs(expected))
            np.testing.assert_allclose(
                value, expected, rtol=rtol, atol=atol * size, err_msg=f"{formula} of {group}"
            )


QUICK = {"deadline": None, "derandomize": True, "database": None, "phases": [Phase.generate]}


@settings(max_examples=3, **QUICK)
@given(
    st.sampled_from([nn.tanh, nn.relu, nn.swish]),
    st.integers(1, 4),
    st.integers(2, 5),
    st.sampled_from([1, 3]),
    st.booleans(),
    st.integers(0, 99),
)
def test_every_signal_is_its_literal_reference(activation, a, b, size, bias, seed):
    module = Stack(activation=activation, size=size, bias=bias, dtype=jnp.float64)
    with x64():
        small = scene(module, active={"a": a, "b": b}, seed=seed)
        slow = signal_nets.reference(small)
        found = signals.values(signals.combinations(), small, second=signals.exact())
        assert len(found) == 420
        check_reference(found, slow, rtol=1e-9, atol=1e-12)
