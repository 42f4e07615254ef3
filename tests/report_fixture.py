"""Run directories as the training loop writes them, small and made up, for tests of the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np

WIDTHS = {"conv1": 8, "conv2": 12}


def result(*, method: str = "dce", seed: int = 0, keep: float = 0.5, **changes: Any) -> dict:
    """A complete result of a run; `changes` replaces top-level keys."""
    widths = {group: round(width * keep) for group, width in WIDTHS.items()}
    config = {"method": method, "seed": seed, "keep": keep, "alpha": 0.1, "note": "a<b & c"}
    made = {
        "method": method,
        "network": "vgg-digits",
        "dataset": "digits",
        "seed": seed,
        "keep": keep,
        "keep_requested": keep,
        "allocation": "uniform",
        "widths": widths,
        "select_every": 1,
        "commit_step": 60 if method in ("dce", "random") else 0,
        "steps": 200,
        "test_accuracy": 0.96 + 0.01 * seed,
        "test_accuracy_raw": 0.95,
        "test_accuracy_full": None,
        "params_full": 120_000,
        "params_compact": 31_000,
        "macs_full": 2_000_000,
        "macs_compact": 520_000,
        "train_macs": 300_000_000,
        "train_macs_dense": 1_000_000_000,
        "step_ms_median": {"explore": 7.25, "commit": 6.5},
        "compile_s": 3.2,
        "peak_bytes": 20 * 2**20,
        "compilations": {"fused": 1, "inner": 1},
        "device": "cpu (2 cores)",
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "config": config,
    }
    return made | changes


def layers(widths: dict[str, int], *, keep: float, chosen: bool) -> list[dict]:
    """Rows of `layers.json` for a made-up chain of 3x3 convolutions."""
    rows, inputs, narrow_inputs = [], 3, 3
    for index, (group, width) in enumerate(widths.items()):
        budget = round(width * keep)
        pixels = max(1024 >> (2 * (index // 3)), 4)
        full, compact = 9 * inputs * width, 9 * narrow_inputs * budget
        rows.append(
            {
                "group": group,
                "width": width,
                "budget": budget,
                "macs_full": full * pixels,
                "macs_compact": compact * pixels,
                "params_full": full,
                "params_compact": compact,
                "chosen": list(range(0, 2 * budget, 2)) if chosen else None,
            }
        )
        inputs, narrow_inputs = width, budget
    return rows


def channel_blocks(
    rows: list[dict], *, blocks: int, steps_per_block: int, alpha: float = 0.1, seed: int = 0
) -> list[dict]:
    """Rows of `channels.jsonl`: a bandit on noisy rewards whose chosen arms are the better ones."""
    rng = np.random.default_rng(seed)
    state = {}
    for row in rows:
        truth = rng.beta(2, 6, row["width"])
        truth[row["chosen"] or []] += 0.25
        state[row["group"]] = (np.minimum(truth, 1), np.zeros(row["width"]), np.zeros(row["width"]))
    logged = []
    for step in range(1, blocks * steps_per_block + 1):
        for row in rows:
            truth, plays, sums = state[row["group"]]
            bonus = np.sqrt(3 * np.log(max(step, 2)) / (2 * np.maximum(plays, 1e-9)))
            index = sums / np.maximum(plays, 1) + alpha * bonus
            picked = np.argsort(-index - 1e-6 * rng.random(len(plays)))[: row["budget"]]
            plays[picked] += 1
            sums[picked] += np.clip(truth[picked] + 0.1 * rng.standard_normal(len(picked)), 0, 1)
        if step % steps_per_block == 0:
            logged.append(_channel_row(step, state, alpha))
    return logged


def _channel_row(step: int, state: dict, alpha: float) -> dict:
    plays = {group: s[1].tolist() for group, s in state.items()}
    means = {group: (s[2] / np.maximum(s[1], 1)).tolist() for group, s in state.items()}
    scale = 1.5 * np.log(step)
    radius = {
        group: [alpha * float(np.sqrt(scale / n)) if n else None for n in counts]
        for group, counts in plays.items()
    }
    return {"step": step, "plays": plays, "means": means, "radius": radius}


def metrics(*, steps: int, block: int, commit: int, seed: int = 0) -> list[dict]:
    """Rows of `metrics.jsonl` with curves like those of a real run."""
    rng = np.random.default_rng(seed)
    rows = []
    for step in range(block, steps + 1, block):
        explore = step <= commit
        decay = np.exp(-4 * step / steps) * (1.2 if explore else 1.0)
        rows.append(
            {
                "step": step,
                "steps": block,
                "phase": "explore" if explore else "commit",
                "loss": float(0.15 + 2.1 * decay + 0.04 * rng.standard_normal()),
                "accuracy": float(
                    np.clip(0.97 - 0.85 * decay + 0.01 * rng.standard_normal(), 0, 1)
                ),
                "learning_rate": 0.1 * (1 - step / steps),
                "ms_per_step": 7.0,
                "explored": min(1.0, 0.5 + step / max(commit, 1)) if explore else None,
                "bad_rewards": 0,
            }
        )
    return rows


def write_lines(path: Path, rows: list[dict]) -> None:
    """Writes one JSON line per row."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def workdir(path: Path, *, method: str = "dce", **changes: Any) -> Path:
    """A finished workdir of `method` on two small groups; `changes` goes to the result."""
    path.mkdir(parents=True, exist_ok=True)
    explores = method in ("dce", "random")
    rows = layers(WIDTHS, keep=1.0 if method == "dense" else 0.5, chosen=explores)
    write_lines(path / "metrics.jsonl", metrics(steps=200, block=20, commit=60 * explores))
    (path / "layers.json").write_text(json.dumps(rows))
    (path / "result.json").write_text(json.dumps(result(method=method, **changes)))
    if explores:
        write_lines(path / "channels.jsonl", channel_blocks(rows, blocks=3, steps_per_block=20))
    return path
