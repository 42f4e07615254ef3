"""What a run ends with: the compact model, `result.json` and `layers.json`."""

from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from dce_jax import channels as maps
from dce_jax import compact, cost, forward, step, training
from dce_jax.types import PyTree
from experiments import (
    blocks,
    config,
    evaluate,
    journal,
    lengths,
    machine,
    plans,
    pretrained,
    redundancy,
    round_facts,
    scoring,
    watch,
)
from experiments.blocks import Exploring, Progress
from experiments.budgeting import allocation, forward_macs, macs_of, warnings
from experiments.placement import Placement
from experiments.programs import Programs
from experiments.records import read_lines
from experiments.rounds import Pruning
from experiments.setup import Run
from experiments.sources import augmentation

MODEL, RESULT, LAYERS = "compact", "result.json", "layers.json"
_STEADY = 20  # steps that a timed block must have


def finish(run: Run, programs: Programs, state: Progress, workdir: Path) -> dict[str, Any]:
    """Extracts, recalibrates, evaluates and stores the compact model and the result.

    Returns:
      What `result.json` holds.
    """
    full_accuracy = None
    if isinstance(state, Exploring):
        settled = step.settle(run.pieces, state.dce)
        variables = _collections(settled.loop)
        full_accuracy = evaluate.accuracy(
            run.module, _recalibrated(run, run.module, variables), run.data
        )
        state = blocks.commit(run._replace(placement=Placement()), Exploring(settled))
    trained = run.module if run.config.method == "dense" else run.thin
    raw = _collections(state.loop)
    final = _recalibrated(run, trained, raw)
    selection = _selection(run, state)
    compact.save(workdir / MODEL, trained, compact.Compact(final, run.budget, selection))
    compact.save(workdir / f"{MODEL}_raw", trained, compact.Compact(raw, run.budget, selection))
    result = {
        **_identity(run),
        "plans": plans.store(run),
        **({"rounds": round_facts.records(run)} if run.pace else {}),
        "test_accuracy": evaluate.accuracy(trained, final, run.data),
        "test_accuracy_raw": evaluate.accuracy(trained, raw, run.data),
        "test_accuracy_full": full_accuracy,
        **_costs(run),
        **({"pretrained": pretrained.facts(run.pretrained)} if run.pretrained else {}),
        "effective_rank": redundancy.shares(raw["params"], maps.producers(run.channels)),
        **_timings(programs, workdir, pretrained.train_seconds(run.pretrained)),
        **machine.facts(run.placement.devices),
        "notes": [*run.data.notes, *warnings(run.budget, run.config.dtype)],
        "command": config.command(run.config),
        "config": config.portable(run.config),
    }
    journal.write(workdir / LAYERS, _layers(run, selection))
    journal.write(workdir / RESULT, result)
    return result


def _collections(loop: training.LoopState) -> PyTree:
    return {"params": loop.params, **loop.model_state}


def _recalibrated(run: Run, module: Any, variables: PyTree) -> PyTree:
    inputs = evaluate.recalibration_inputs(
        run.data,
        augment=augmentation(run.config),
        examples=run.config.recalibration_examples,
        batch_size=run.config.batch_size,
    )
    return compact.recalibrate(module, variables, inputs)


def _selection(run: Run, state: blocks.Settled | Pruning) -> dict[str, np.ndarray]:
    if run.config.method == "scratch":
        # Cut out of nothing: its channels are its own.
        return {g: np.arange(k, dtype=np.int32) for g, k in run.budget.compact.items()}
    return compact.whole_selection(run.budget, state.selection)


def _identity(run: Run) -> dict[str, Any]:
    settings, budget = run.config, run.budget
    kept = sum(budget.compact.values()) / sum(budget.full.values())
    macs = macs_of(run.module, _example(run))
    if allocation(settings) != "uniform" or settings.macs is not None:
        kept = macs(budget.compact) / macs(budget.full)
    requested = settings.keep if settings.macs is None else settings.macs
    if allocation(settings) == "explicit":
        requested = kept
    return {
        "method": settings.method,
        "network": settings.network,
        "dataset": settings.dataset,
        "seed": settings.seed,
        "keep": kept,
        "keep_requested": 1.0 if settings.method == "dense" else requested,
        "allocation": allocation(settings),
        "widths": budget.compact,
        "select_every": settings.select_every,
        "commit_step": run.commit_step,
        "steps": run.steps,
    }


def _costs(run: Run) -> dict[str, Any]:
    batch, example = run.config.batch_size, _example(run)
    macs_full, macs_compact = (forward_macs(m, example) for m in (run.module, run.thin))
    shapes = maps.with_widths(run.module, run.budget.compact)
    recalibrated = max(
        1, min(run.config.recalibration_examples, run.data.train.num_images) // batch
    )
    nominal = lengths.run_length(run.config, run.data.train.num_images)
    return {
        "params_full": cost.parameters(run.shapes["params"]),
        "params_compact": cost.parameters(forward.shapes(shapes, example)["params"]),
        "macs_full": macs_full,
        "macs_compact": macs_compact,
        # Recalibration is one more forward pass.
        "train_macs": lengths.passes(run.config) * batch * plans.train_steps_macs(run)
        + recalibrated * batch * macs_compact
        + scoring.macs(run, macs_full)
        + scoring.reward_macs(run)
        + round_facts.extra_macs(run)
        + pretrained.train_macs(run.pretrained),
        # Of the steps that the config names: a run that explores wide takes fewer, for its MACs.
        "train_macs_dense": (3 * nominal + recalibrated) * batch * macs_full,
    }


def _timings(programs: Programs, workdir: Path, before: float | None = 0.0) -> dict[str, Any]:
    lines = read_lines(workdir / "metrics.jsonl")
    steady = [
        line
        for line in lines
        if line["steps"] >= _STEADY and line.get("compile_s") == 0.0 and not line.get("profiled")
    ]
    early = (blocks.EXPLORE, blocks.PRUNE)
    phases = {
        blocks.EXPLORE: [x for x in steady if x["phase"] in early],
        blocks.COMMIT: [x for x in steady if x["phase"] not in early],
    }
    peaks = [facts.peak_bytes for facts in programs.facts.values() if facts.peak_bytes is not None]

    def by_phase(key: str) -> dict[str, float | None]:
        return {phase: watch.median(some, key) for phase, some in phases.items()}

    return {
        "step_ms_median": by_phase("ms_per_step"),
        "host_ms_median": by_phase("host_ms"),
        "data_wait_ms_median": by_phase("data_wait_ms"),
        "between_ms_median": by_phase("between_ms"),
        "train_s": None if before is None else before + watch.train_seconds(lines),
        "compile_s": sum(facts.seconds for facts in programs.facts.values()),
        "peak_bytes": max(peaks, default=None),
        "compilations": dict(sorted(programs.counts.items())),
    }


def _layers(run: Run, selection: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    wide, thin = (_per_module(m, run) for m in (run.module, run.thin))
    scratch, found = run.config.method == "scratch", []
    for group, paths in maps.producers(run.channels).items():
        names = ["/".join(path[:-1]) for path in paths]
        chosen = selection[group]
        full, kept = run.budget.full[group], run.budget.compact[group]
        found.append(
            {
                "group": group,
                "width": full,
                "budget": kept,
                **{f"{k}_full": sum(wide[n][k] for n in names) for k in ("macs", "params")},
                **{f"{k}_compact": sum(thin[n][k] for n in names) for k in ("macs", "params")},
                "chosen": chosen.tolist() if kept < full and not scratch else None,
            }
        )
    return found


def _per_module(module: Any, run: Run) -> dict[str, dict[str, int]]:
    shapes = flax.linen.unbox(forward.shapes(module, _example(run)))
    layers = cost.layers(lambda v, x: module.apply(v, x), shapes, _example(run))
    macs = {layer.name: layer.macs for layer in layers}
    params: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes["params"]):
        name = "/".join(maps.path_names(path)[:-1])
        params[name] = params.get(name, 0) + int(np.prod(leaf.shape))
    return {name: {"macs": macs.get(name, 0), "params": count} for name, count in params.items()}


def _example(run: Run) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *run.data.image_shape), np.float32)
