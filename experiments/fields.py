"""Which fields of a config a run reads: what it never reads cannot set two runs apart."""

from experiments import pruners

SELECTING = ("random", "dce")
"""Methods that choose channels while they train."""
SELECTING_ONLY = frozenset(
    {
        *("alpha", "alpha_end", "discount", "signal", "select_every", "commit", "commit_step"),
        *("allocation", "plans", "scale", "per_cost", "idle", "target", "floor"),
        *("explore_keep", "scoring", "contest", "final", "quiet", "grow", "rate_over", "restart"),
        *("lookup", "latents", "rewards"),
    }
)
_LEARNING_ONLY = frozenset(  # learned budgets
    {"plans", "scale", "per_cost", "target", "floor", "latents"}
)
_SEARCHING_ONLY = frozenset(
    {"affine", "search_evaluations", "search_population", "search_examples"}
)
_PRUNING_ONLY = frozenset(
    {
        *("prune_until", "prune_dense", "rounds", "criterion", "prune_allocation", "penalty"),
        *("watch", "distill", "fold"),
        *_SEARCHING_ONLY,
    }
)
_PRUNING = _PRUNING_ONLY | {"allocation", "commit_step", "scoring", "rate_over", "restart"}


def idle_fields(method: str, allocation: str) -> frozenset[str]:
    """Fields of a config that a run never reads, whatever their values."""
    learning: frozenset[str] = frozenset() if allocation == "global" else _LEARNING_ONLY
    if method in SELECTING:
        return learning | _PRUNING_ONLY | {"sparsity"}
    if method in pruners.METHODS:
        ranking: frozenset[str] = frozenset()
        if allocation == "global":
            ranking = frozenset({"per_cost", "target", "floor"})
        slimming = frozenset() if method == "slimming" else frozenset({"sparsity"})
        searching = frozenset({"latents"}) if method == "compensated" else frozenset()
        idle = (SELECTING_ONLY - _PRUNING - ranking - searching) | slimming
        return idle if searching else idle | _SEARCHING_ONLY
    return SELECTING_ONLY | _PRUNING_ONLY | {"sparsity"}
