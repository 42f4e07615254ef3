"""The search for layer latents in a pruning run: masked networks, judged on held-out images.

A candidate is worth the cross-entropy of the network that it leaves at the run's target, with no
step of training in between. All candidates run through one program of full width: which channels
are there is data (`dce_jax.masks`). Batch norms take the statistics of the batch, because the
running ones are those of the network before it lost channels (docs/pruning.md has the measurement).
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dce_jax import forward, masks
from dce_jax.pruning import Latents, costs, evolve, latents
from dce_jax.pruning.choose import Kept
from dce_jax.pruning.evolve import Search
from dce_jax.training import LoopState
from dce_jax.types import Array, LossFn, PyTree
from experiments import (
    checkpoint,
    config,
    holdout,
    journal,
    latent_files,
    machine,
    pacing,
    processes,
    pruners,
    rounds,
)
from experiments import placement as placing
from experiments.display import Display
from experiments.pipeline import eval_batches, normalise
from experiments.programs import Programs, call, recall
from experiments.setup import Run, searching

STATE = "search.jsonl"
"""A line per evaluation, so that a search that was killed goes on after its last one."""

PROGRAM = "search"

Saliencies = dict[str, np.ndarray]


def learn(
    programs: Programs,
    workdir: Path,
    display: Display,
    asked: Callable[[], bool],
    run: Run,
    loop: LoopState,
    saliencies: Saliencies,
) -> Latents | None:
    """The latents of a run: given, searched now, or searched before an earlier round.

    Args:
      programs: where the compiled program is kept.
      workdir: where evaluations are kept, and the latents written in the end.
      display: shows how far the search is.
      asked: whether a stop was asked for.
      run: by now.
      loop: the network.
      saliencies: group -> float64[C] of its channels.

    Raises:
      KeyboardInterrupt: a stop was asked for; nothing is lost.
    """
    if run.latents is not None or not rounds.pace_of(run).pruner.searches:
        return run.latents
    path = workdir / latent_files.LATENTS
    if not searching(run):
        return latent_files.read(path, run.budget.full)
    rules, spreads = pruners.rules(run.config), latents.spreads(saliencies)
    network = checkpoint.fingerprint((loop.params, loop.model_state))
    known = _known(workdir / STATE, network)
    losses = tuple(line["loss"] for line in known)
    if known:
        recall(programs, {PROGRAM: known[-1]["program"]})
    processes.wait("search")
    search = evolve.resumed(rules, spreads, losses)
    judge, last = fitness(run, programs, loop), rounds.pace_of(run).pruner.rounds
    with display.beside("search for layer latents", rules.evaluations) as move:
        while len(search.losses) < rules.evaluations:
            move(len(search.losses))
            if processes.any_of(asked()):
                raise KeyboardInterrupt
            tried = evolve.candidate(rules, spreads, search)
            kept = rounds.choose(run, tried, saliencies, last)
            search = evolve.told(search, tried, judge(kept))
            if processes.first():
                journal.append(workdir / STATE, _line(network, search, kept, programs))
    if processes.first():
        journal.write(path, record(run, search))
    display.say(
        f"latents after {rules.evaluations} evaluations: loss {min(search.losses):.4f}, "
        f"{identity_loss(search):.4f} without"
    )
    return evolve.best(search)


def fitness(run: Run, programs: Programs, loop: LoopState) -> Callable[[Kept], float]:
    """What a choice of channels is worth: the loss of the network that it leaves.

    Args:
      run: before its first round.
      programs: where the compiled program is kept.
      loop: the network at full width.

    Returns:
      Group -> int32[K] -> mean cross-entropy over the images that were held out.
    """
    size, data = run.config.batch_size, run.data
    _, held = holdout.for_search(data, examples=run.config.search_examples, batch_size=size)
    place = partial(placing.cut, run.placement)
    batches = [
        place({"image": normalise(b["image"], data.mean, data.std), "label": b["label"]})
        for b in eval_batches(held, size)
    ]
    loss = masks.loss(forward.classification_loss(run.module), run.channels)
    judge = partial(_loss, placing.loss(run.placement, loss))

    def worth(kept: Kept) -> float:
        seen = placing.put_whole(run.placement, masks.of(kept, run.budget.full))
        found = [call(programs, PROGRAM, judge, loop, {**b, "masks": seen}) for b in batches]
        return float(np.mean([placing.host(value) for value in found], dtype=np.float64))

    return worth


def _loss(loss: LossFn, loop: LoopState, batch: PyTree) -> Array:
    key = jax.random.fold_in(loop.key, loop.step)
    return loss(loop.params, loop.model_state, {}, batch, key)[0]


def record(run: Run, search: Search) -> dict[str, Any]:
    """What `latents.json` holds: the best candidate, what it was learned for, and how."""
    pace, best = rounds.pace_of(run), evolve.best(search)
    macs_full = costs.total(pace.macs, run.budget.full)
    return {
        "network": run.config.network,
        "dataset": run.config.dataset,
        "seed": run.config.seed,
        "widths": run.budget.full,
        "criterion": pace.pruner.criterion,
        "affine": run.config.affine,
        "target": {
            "cost": run.config.target,
            "limit": int(pacing.goal(pace, pace.pruner.rounds)),
            "of": costs.total(pace.counted, run.budget.full),
        },
        **best._asdict(),
        "loss": min(search.losses),
        "loss_identity": identity_loss(search),
        "losses": list(search.losses),
        "search_macs": pace.searches * run.config.batch_size * macs_full,
        **machine.facts(run.placement.devices),
        "command": config.command(run.config),
        "config": config.portable(run.config),
    }


def identity_loss(search: Search) -> float:
    """What the uncompensated ranking was worth."""
    none = latents.identity(search.tried[0].scale)
    return search.losses[search.tried.index(none)]


def _line(network: int, search: Search, kept: Kept, programs: Programs) -> dict[str, Any]:
    return {
        "step": len(search.losses),
        "loss": search.losses[-1],
        "widths": {group: len(each) for group, each in kept.items()},
        "network": network,
        "program": programs.facts[PROGRAM],
    }


def _known(path: Path, network: int) -> list[dict[str, Any]]:
    """Evaluations of an earlier process; none where it judged another network."""
    if not path.exists():
        return []
    if processes.first():
        journal.cut(path, sys.maxsize)  # a line that was not written to its end
    processes.wait("search was cut")
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    if all(line["network"] == network for line in lines):
        return lines
    processes.wait("search was read")
    if processes.first():
        path.unlink()
    return []
