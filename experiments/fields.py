"""Which fields of a config a run reads: what it never reads cannot set two runs apart."""

SELECTING = ("random", "dce")
"""Methods that choose channels while they train."""
SELECTING_ONLY = frozenset(
    {
        *("alpha", "alpha_end", "discount", "signal", "select_every", "commit", "commit_step"),
        *("allocation", "plans", "scale", "per_cost", "idle", "target", "floor"),
        *("explore_keep", "scoring", "contest", "final", "quiet", "grow", "rate_over", "restart"),
        "lookup",
    }
)
_LEARNING_ONLY = frozenset({"plans", "scale", "per_cost", "target", "floor"})  # learned budgets
# Slimming selects once.
_SLIMMING = frozenset(
    {
        *("commit", "commit_step", "select_every", "sparsity", "allocation"),
        *("rate_over", "restart"),
    }
)


def idle_fields(method: str, allocation: str) -> frozenset[str]:
    """Fields of a config that a run never reads, whatever their values."""
    learning: frozenset[str] = frozenset() if allocation == "global" else _LEARNING_ONLY
    if method in SELECTING:
        return learning | {"sparsity"}
    if method == "slimming":
        return (learning | SELECTING_ONLY) - (_SLIMMING | {"target", "floor"} - learning)
    return SELECTING_ONLY | _SLIMMING
