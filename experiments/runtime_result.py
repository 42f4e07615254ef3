"""What a run of per-input execution ends with: accuracy against work, and whether inputs matter."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from dce_jax.runtime import Choice, costs, store, systems
from experiments import (
    journal,
    machine,
    runtime_config,
    runtime_plots,
    runtime_seen,
    runtime_setup,
    subject,
)
from experiments.dataset import Split, take
from experiments.display import progress
from experiments.runtime_seen import Seen, Watcher
from experiments.runtime_setup import Job
from experiments.runtime_steps import State

RESULT, IMAGES, MODEL = "result.json", "images.npz", "model"
_CANDIDATES, _JUDGED = 12, 2000
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def finish(job: Job, state: State, workdir: Path) -> dict[str, Any]:
    """Stores the model, evaluates it at every point of the knob and stores what was found.

    Returns:
      What `result.json` holds.
    """
    store.save(
        workdir / MODEL, job.system, job.subject.scene.module, state.variables, state.deciding
    )
    watcher, test = runtime_seen.watcher(job), runtime_setup.in_memory(job.subject)
    before, hardness = runtime_seen.whole(watcher, job.variables, test)
    after, _ = runtime_seen.whole(watcher, state.variables, test)
    knobs = [
        float(systems.at(job.system, place)) for place in np.linspace(-1, 1, job.config.points)
    ]
    points, everything = [], []
    with progress("evaluating", len(knobs), facts="compiling") as display:
        for done, knob in enumerate(knobs, 1):
            seen = runtime_seen.decided(watcher, state.variables, state.deciding, test, knob)
            points.append(_point(watcher, state, seen, knob, hardness))
            everything.append(seen)
            display.tell(done, f"accuracy {points[-1]['accuracy']:.1%}")
    _store_images(workdir, knobs, everything, hardness, test)
    found = {
        **_identity(job),
        "test_accuracy_backbone": float(before.mean()),
        "test_accuracy_whole": float(after.mean()),
        "points": points,
        "steps": job.steps,
        "macs_full": job.system.costs.full,
        "macs_always": job.system.costs.always,
        "macs_deciding": job.system.deciding,
        "train_macs": runtime_setup.train_macs(job),
        **machine.facts(),
        "command": runtime_config.command(job.config),
        "config": runtime_config.portable(job.config),
    }
    runtime_plots.write(workdir, found, np.asarray(test.images))
    # Last: where it stands, the run is finished.
    journal.write(workdir / RESULT, found)
    return found


def _identity(job: Job) -> dict[str, Any]:
    facts = subject.facts(job.subject)
    return {
        "system": job.system.name,
        "network": facts["network"],
        "dataset": facts["dataset"],
        "seed": job.config.seed,
        "image_shape": list(job.subject.data.image_shape),
        "class_names": list(job.subject.data.class_names),
        "knob": systems.KNOBS[job.system.name],
        "span": list(job.system.span),
        "sites": [link.name for link in job.system.chain.sites],
        "levels": [list(widths) for widths in job.system.levels],
        "backbone": facts,
    }


def _point(
    watcher: Watcher, state: State, seen: Seen, knob: float, hardness: np.ndarray
) -> dict[str, Any]:
    """One setting of the knob, with its controls."""
    job = watcher.job
    test = runtime_setup.in_memory(job.subject)
    order = np.random.default_rng(0).permutation(test.num_images)
    shuffled = jax.tree.map(lambda leaf: leaf[order], seen.choices)
    constant, share = _best_constant(watcher, state, knob, float(seen.share.mean()))
    labels = np.asarray(test.labels)
    return {
        "knob": knob,
        "accuracy": float(seen.right.mean()),
        "macs_share": float(seen.share.mean()),
        "macs_share_std": float(seen.share.std()),
        "macs_share_quantiles": [float(q) for q in np.quantile(seen.share, _QUANTILES)],
        "shuffled_accuracy": float(
            runtime_seen.followed(watcher, state.variables, test, shuffled).mean()
        ),
        "constant_accuracy": float(
            runtime_seen.followed(watcher, state.variables, test, constant).mean()
        ),
        "constant_macs_share": share,
        "rank_correlation": correlation(seen.share, hardness),
        "by_class": _means(seen, [labels == label for label in range(int(labels.max()) + 1)]),
        "by_hardness": _means(seen, _fifths(hardness)),
        "levels": _frequencies(job, seen, _fifths(hardness)),
    }


def correlation(share: np.ndarray, loss: np.ndarray) -> dict[str, float | None]:
    """Spearman's rank correlation of work and loss, with a 95 % interval.

    The interval is Fisher's, with Bonett and Wright's (2000) variance ``(1 + r^2 / 2) / (n - 3)``.
    None where all images take the same work.

    Args:
      share: float[N].
      loss: float[N].
    """
    if np.ptp(share) == 0.0:
        return {"rho": None, "low": None, "high": None}
    rho = float(stats.spearmanr(share, loss).statistic)
    bound = float(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    error = 1.96 * np.sqrt((1 + bound**2 / 2) / (len(share) - 3))
    low, high = np.tanh(np.arctanh(bound) + np.array([-error, error]))
    return {"rho": rho, "low": float(low), "high": float(high)}


def _best_constant(
    watcher: Watcher, state: State, knob: float, share: float
) -> tuple[tuple[Choice, ...], float]:
    """The best of a few decisions that all images could share, at about as much work.

    Those of the training images whose work is nearest to the mean's, and their average; the best
    on training images.
    """
    job = watcher.job
    images = take(job.subject.data.train, slice(min(_JUDGED, job.subject.data.train.num_images)))
    assert isinstance(images, Split)
    seen = runtime_seen.decided(watcher, state.variables, state.deciding, images, knob)
    near = np.argsort(np.abs(seen.share - share), kind="stable")[:_CANDIDATES]
    candidates = [
        jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], seen.choices) for row in near
    ]
    average = _average(job, seen.choices)
    if float(costs.share(job.system.costs, average, job.system.deciding)[0]) <= 1.02 * share:
        candidates.append(average)
    scores = [
        runtime_seen.followed(watcher, state.variables, images, each).mean() for each in candidates
    ]
    best = candidates[int(np.argmax(scores))]
    return best, float(costs.share(job.system.costs, best, job.system.deciding)[0])


def _average(job: Job, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
    """Per site the rounded mean level, and the channels and scales of the mean image."""
    found = []
    for choice, widths in zip(choices, job.system.levels, strict=True):
        level = np.rint(choice.level.mean(keepdims=True)).astype(np.int32)
        fields: dict[str, Any] = {"level": level}
        if choice.order is not None and choice.scale is not None:
            scale = np.asarray(choice.scale).mean(axis=0, keepdims=True)
            order = np.argsort(-scale, axis=-1, kind="stable").astype(np.int32)
            fields |= {"scale": scale, "order": order}
        if choice.share is not None:
            runs = choice.share > 0
            kept = choice.share[runs].mean() if runs.any() else 0.0
            fields["share"] = np.full(1, kept if widths[0] > 0 or level[0] > 0 else 0.0, np.float32)
        found.append(Choice(**jax.tree.map(jnp.asarray, fields)))
    return tuple(found)


def _fifths(hardness: np.ndarray) -> list[np.ndarray]:
    """Five masks of equal size, the images that the whole network finds easiest first."""
    rank = np.argsort(np.argsort(hardness, kind="stable"), kind="stable")
    return [rank * 5 // len(hardness) == fifth for fifth in range(5)]


def _means(seen: Seen, masks: list[np.ndarray]) -> list[dict[str, float]]:
    return [
        {"macs_share": float(seen.share[mask].mean()), "accuracy": float(seen.right[mask].mean())}
        for mask in masks
        if mask.any()
    ]


def _frequencies(job: Job, seen: Seen, fifths: list[np.ndarray]) -> dict[str, list[list[float]]]:
    """How often each site runs at each width: of all, the easiest and the hardest images."""
    groups = {"all": np.ones(len(seen.share), bool), "easiest": fifths[0], "hardest": fifths[-1]}
    return {
        name: [
            (np.bincount(choice.level[mask], minlength=len(widths)) / mask.sum()).tolist()
            for choice, widths in zip(seen.choices, job.system.levels, strict=True)
        ]
        for name, mask in groups.items()
    }


def _store_images(
    workdir: Path, knobs: list[float], seen: list[Seen], hardness: np.ndarray, test: Split
) -> None:
    """Stores what happened to every test image at every knob, for notebooks and other programs."""
    path = workdir / IMAGES
    partial = path.with_name(path.name + ".part.npz")
    np.savez_compressed(
        partial,
        knobs=np.asarray(knobs, np.float32),
        share=np.stack([each.share for each in seen]),
        right=np.stack([each.right for each in seen]),
        levels=np.stack([np.stack([c.level for c in each.choices], axis=1) for each in seen]),
        hardness=hardness,
        labels=np.asarray(test.labels),
    )
    partial.replace(path)


def show(found: dict[str, Any]) -> None:
    """Prints a result's points."""
    table = Table(
        title=f"{found['system']} on {found['network']}, {found['dataset']}, seed {found['seed']}",
        title_justify="left",
        caption=(
            f"backbone {found['test_accuracy_backbone']:.2%}; shuffled: decisions of other images; "
            "constant: one decision for all; harder: rank correlation of work with the loss"
        ),
        caption_justify="left",
    )
    for head in (found["knob"], "MACs", "accuracy", "shuffled", "constant (MACs)", "harder [95 %]"):
        table.add_column(head, justify="right")
    for point in found["points"]:
        rho = point["rank_correlation"]
        table.add_row(
            f"{point['knob']:.3g}",
            f"{point['macs_share']:.1%}",
            f"{point['accuracy']:.2%}",
            f"{point['shuffled_accuracy']:.2%}",
            f"{point['constant_accuracy']:.2%} ({point['constant_macs_share']:.1%})",
            "-"
            if rho["rho"] is None
            else f"{rho['rho']:.2f} [{rho['low']:.2f}, {rho['high']:.2f}]",
        )
    Console().print(table)
