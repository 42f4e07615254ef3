"""Per-input execution: the network stays whole, and each image runs as much of it as it needs."""

from dce_jax.runtime import (
    chain,
    choice,
    costs,
    execute,
    fbs,
    forward,
    lcnet,
    links,
    nesting,
    predict,
    rnp,
    store,
    systems,
    tiles,
)
from dce_jax.runtime.chain import Chain
from dce_jax.runtime.choice import Choice
from dce_jax.runtime.execute import MASKED, SWITCHED, Execution, chunked
from dce_jax.runtime.forward import Outcome, Policy, replay, run
from dce_jax.runtime.predict import predictor
from dce_jax.runtime.systems import System

__all__ = [
    "MASKED",
    "SWITCHED",
    "Chain",
    "Choice",
    "Execution",
    "Outcome",
    "Policy",
    "System",
    "chain",
    "choice",
    "chunked",
    "costs",
    "execute",
    "fbs",
    "forward",
    "lcnet",
    "links",
    "nesting",
    "predict",
    "predictor",
    "replay",
    "rnp",
    "run",
    "store",
    "systems",
    "tiles",
]
