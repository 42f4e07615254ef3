"""Dynamic channel execution in JAX: train compact networks directly, on smaller tensors.

A combinatorial bandit picks K of the C channels of every channel group; their parameters, optimizer
moments and statistics are gathered into small dense arrays; forward, backward and update run on
those alone (Spasov and Lio, BMVC 2019).
"""

from dce_jax import (
    allocate,
    bandit,
    budget,
    channels,
    compact,
    cost,
    forward,
    functional,
    hardware,
    idle,
    lookups,
    mesh,
    networks,
    parts,
    pruning,
    runtime,
    saliency,
    scores,
    signals,
    slab,
    step,
    types,
)
from dce_jax.bandit import BanditState
from dce_jax.budget import Budget
from dce_jax.channels import ChannelMap
from dce_jax.compact import Compact
from dce_jax.networks import gate
from dce_jax.probe import channel_map
from dce_jax.step import DceState, Pieces, SlabState, pieces
from dce_jax.training import LoopState
from dce_jax.types import Arms, Evidence, Selection, Signal

__version__ = "0.1.0"

__all__ = [
    "Arms",
    "BanditState",
    "Budget",
    "ChannelMap",
    "Compact",
    "DceState",
    "Evidence",
    "LoopState",
    "Pieces",
    "Selection",
    "Signal",
    "SlabState",
    "allocate",
    "bandit",
    "budget",
    "channel_map",
    "channels",
    "compact",
    "cost",
    "forward",
    "functional",
    "gate",
    "hardware",
    "idle",
    "lookups",
    "mesh",
    "networks",
    "parts",
    "pieces",
    "pruning",
    "runtime",
    "saliency",
    "scores",
    "signals",
    "slab",
    "step",
    "types",
]
