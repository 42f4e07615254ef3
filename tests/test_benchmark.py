"""The benchmark: its rows, its way of timing, the masked rival, and what it refuses."""

import json
import subprocess
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from dce_jax import budget, cost, forward, networks, slab
from dce_jax import channels as maps
from dce_jax.masks import loss as masked_loss
from experiments import (
    bench,
    benchmark,
    composed,
    cost_plot,
    cost_rows,
    device_memory,
    masking,
    records,
    summary,
    timing,
    variants,
)

SMALL = ["--network", "tiny", "--batch", "8", "--image_size", "16"]


def tiny(**_) -> networks.VGG:
    return networks.VGG(depths=(1, 1), widths=FrozenDict(conv0=4, conv1=6), num_classes=10)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "new" / "costs.json"
    words = [*SMALL, "--select_every", "1,3", "--pairs", "2", "--seconds", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NETWORKS, "tiny", tiny)
        assert benchmark.main([*words, "--json", str(path)]) == 0
    return path


def test_file_has_the_keys_and_rows_of_the_contract(written):
    result = json.loads(written.read_text())
    made = {"device", "processor", "versions", "tunables"}
    assert {*made, "rows", "command", "seconds"} == result.keys()
    assert list(result["versions"]) == ["python", "jax", "jaxlib", "flax", "optax", "numpy"]
    assert result["versions"]["jax"] == jax.__version__
    assert "cpu" in result["device"] and "--network tiny" in result["command"]
    assert records.gather([written]).benchmarks == (result,)
    rows = result["rows"]
    kinds = [(row["variant"], row["keep"], row["select_every"]) for row in rows]
    assert kinds == [
        *(("dense", 1.0, None), ("narrow", 0.5, None), ("slab", 0.5, 1), ("slab", 0.5, 3)),
        *(("committed", 0.5, None), ("masked", 0.5, None)),
    ]
    assert {(row["network"], row["batch"], row["rounds"]) for row in rows} == {("tiny", 8, 2)}
    assert written.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_ratios_fit_the_times(written):
    dense, narrow, *others = json.loads(written.read_text())["rows"]
    for name, base in (("dense", dense), ("narrow", narrow)):
        keys = [f"vs_{name}", f"vs_{name}_low", f"vs_{name}_high"]
        assert [base[key] for key in keys] == [1.0, 1.0, 1.0]
        for row in (dense, narrow, *others):
            assert 0 < row["ms_min"] <= row["ms_median"] <= row["ms_max"]
            assert row[keys[1]] <= row[keys[0]] <= row[keys[2]]
            assert row[keys[1]] >= row["ms_min"] / base["ms_max"] * (1 - 1e-9)
            assert row[keys[2]] <= row["ms_max"] / base["ms_min"] * (1 + 1e-9)


def test_memory_is_that_of_the_programs(written):
    dense, narrow, *slabs, committed, masked = json.loads(written.read_text())["rows"]
    assert narrow["temp_bytes"] == committed["temp_bytes"] < dense["temp_bytes"]
    assert narrow["peak_bytes"] == committed["peak_bytes"] < dense["peak_bytes"]
    assert dense["temp_bytes"] <= masked["temp_bytes"]
    # A slab's step is the narrow network's, and the full state waits besides.
    assert all(narrow["peak_bytes"] < slab["peak_bytes"] < dense["peak_bytes"] for slab in slabs)
    assert all(row["compile_s"] > 0 for row in (dense, narrow, *slabs, committed, masked))


def test_the_full_state_waits_while_inner_steps_run():
    def program(temporaries):
        memory = cost.Memory(100, 20, temporaries, 10)  # 110 besides the temporaries
        return timing.Program(len, 0.0, memory)

    cycle = [program(5), program(50), program(7)]
    assert composed.memory(cycle) == (50, 160)
    assert composed.memory(cycle, waiting=1000) == (50, 1160)
    assert composed.memory([*cycle[:2], timing.Program(len, 0.0, None)]) == (None, None)


def fake(name, seconds, clock, log, *, steps=1, loss=0.5):
    def run(state, data):
        clock[0] += seconds
        log.append(name)
        return state + data, {"loss": np.float32(loss)}

    return timing.Contender(name, run, int, 1, steps)


def interleave(contenders, clock, **options):
    given = {"least": 3, "until": 0.0, "report": lambda *_: None, "shortest": 0.0} | options
    return timing.interleave(contenders, clock=lambda: clock[0], **given)


def test_interleave_runs_each_once_a_round_and_divides_by_steps():
    clock, log = [0.0], []
    pair = [fake("a", 0.5, clock, log), fake("b", 2.0, clock, log, steps=4)]
    times_RV = interleave(pair, clock)
    np.testing.assert_allclose(times_RV, [[500.0, 500.0]] * 3)
    assert log == ["a", "b", "a", "b", "a", "b", "a", "b"]  # warm-up; 0 1; 1 0 backwards; 0 1


def test_interleave_repeats_short_runs():
    clock, log = [0.0], []
    pair = [fake("a", 0.125, clock, log), fake("b", 2.0, clock, log)]
    times_RV = interleave(pair, clock, least=1, shortest=0.5)
    np.testing.assert_allclose(times_RV, [[125.0, 2000.0]])
    assert log == ["a", "b", *"aaaa", "b"]


def test_interleave_goes_on_while_rounds_fit():
    clock, log, told = [0.0], [], []
    interleave(
        [fake("a", 1.0, clock, log)],
        clock,
        least=1,
        until=5.5,
        report=lambda *counts: told.append(counts),
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]  # the warm-up took the first second


def test_interleave_refuses_no_rounds_and_nan():
    clock = [0.0]
    with pytest.raises(ValueError, match="rounds is 0: at least 1"):
        interleave([fake("a", 1.0, clock, [])], clock, least=0)
    with pytest.raises(ValueError, match=r"slab at keep 0.5: the loss became nan.*learning_rate"):
        interleave([fake("slab at keep 0.5", 1.0, clock, [], loss=np.nan)], clock)


def test_order_gives_everyone_every_place_and_other_neighbours():
    turns = [timing.order(turn, 3) for turn in range(6)]
    assert all(sorted(turn) == [0, 1, 2] for turn in turns)
    assert all({turn[place] for turn in turns} == {0, 1, 2} for place in range(3))
    before_1 = {turn[turn.index(1) - 1] for turn in turns if turn[0] != 1}
    assert before_1 == {0, 2}


def test_ratio_is_paired():
    narrow = np.array([1.0, 10.0, 100.0])  # a machine that slows down a hundredfold
    found = timing.ratio(1.5 * narrow, narrow)
    assert found == timing.Ratio(1.5, 1.5, 1.5)
    noisy = timing.ratio(np.array([1.0, 2.0, 3.0, 4.0, 9.0]), np.ones(5))
    assert noisy.median == 3.0 and 1.0 <= noisy.low < 3.0 < noisy.high <= 9.0


def test_many_steps_per_dispatch_take_the_steps_they_say():
    shared = bench.prepare(tiny(), batch=4, image_size=8, learning_rate=0.01, dispatch=4)
    asked = variants.keys([0.5], [1, 2])
    assert [key.select_every for key in asked] == [None, None, 1, 2, None, None]
    for key, one in zip(asked[:4], variants.build(shared, asked[:4]), strict=True):
        *others, last = one.parts
        state, metrics = last.contender.run(last.contender.start(), last.contender.data)
        steps = 2 if key.select_every == 2 else 4  # one selection's worth, or one dispatch
        assert int(getattr(state, "loop", state).step) == last.contender.steps == steps
        assert np.all(np.isfinite(metrics["loss"]))
        assert [part.share for part in others] == ([0.5] if key.select_every == 2 else [])
        if key.select_every == 1:
            assert int(state.bandit.selections) == 4


def test_a_change_of_selection_trains_nothing():
    shared = bench.prepare(tiny(), batch=4, image_size=8, learning_rate=0.01, dispatch=1)
    (slab,) = variants.build(shared, [variants.Key("slab", 0.5, 3, "norm_taylor")])
    change, inner = (part.contender for part in slab.parts)
    assert [part.share for part in slab.parts] == [1 / 3, 1.0]
    before = jax.tree.map(np.asarray, change.start().loop.params)
    state, metrics = change.run(change.start(), change.data)
    assert metrics == {} and int(state.bandit.selections) == 1 and int(state.loop.step) == 0
    jax.tree.map(np.testing.assert_array_equal, state.loop.params, before)
    inside, metrics = inner.run(inner.start(), inner.data)
    assert int(inside.loop.step) == int(inside.taken) == 1 and np.isfinite(metrics["loss"])


def part(name, share):
    return composed.Part(timing.Contender(name, len, int, 0, 1), share)


def test_shared_contenders_are_timed_once_and_added_up():
    built = [variant("dense", 1.0), variant("slab", 0.5, 2), variant("slab", 0.5, 10)]
    parts = [(part("d", 1.0),), *((part("c", 1 / r), part("i", 1.0)) for r in (2, 10))]
    built = [one._replace(parts=mine) for one, mine in zip(built, parts, strict=True)]
    assert [one.name for one in composed.contenders(built)] == ["d", "c", "i"]
    times_RV = composed.combined(built, np.array([[9.0, 4.0, 1.0], [8.0, 2.0, 1.5]]))
    np.testing.assert_allclose(times_RV, [[9.0, 3.0, 1.4], [8.0, 2.5, 1.7]])


def test_signals_have_rows_and_lines_of_their_own():
    asked = variants.keys([0.5], [1, 10], ["norm_taylor", "gate_taylor"])
    assert len(asked) == len(set(asked)) == 1 + 3 + 4
    slabs = [(k.select_every, k.signal) for k in asked if k.variant == "slab"]
    names = ("norm_taylor", "gate_taylor")
    assert slabs == [(every, name) for name in names for every in (1, 10)]
    built = [variant(*key) for key in asked]
    rows = cost_rows.rows(built, np.ones((2, len(built))), network="net", batch=4)
    assert [row["images_per_s"] for row in rows] == [4000.0] * 8
    labels = {cost_rows.label(row, rows) for row in rows}
    assert {"slab, gate_taylor", "slab, norm_taylor", "narrow"} < labels
    assert {cost_rows.label(row, rows[:4]) for row in rows[:4]} == {"dense", "narrow", "slab"}
    bars = cost_plot.step_times(rows, device="cpu").axes[0].get_yticklabels()
    names = {"dense", "narrow", "masked", "slab, gate_taylor, a selection every 10 steps"}
    assert names <= {bar.get_text() for bar in bars}


def test_a_slabs_peak_is_compared_without_the_full_state():
    built = [variant("dense", 1.0), variant("narrow", 0.5), variant("slab", 0.5, 1)]
    bytes_held = [(1000, 0), (200, 0), (610, 400)]
    built = [
        one._replace(peak_bytes=peak, outside_bytes=outside, temp_bytes=50)
        for one, (peak, outside) in zip(built, bytes_held, strict=True)
    ]
    rows = cost_rows.rows(built, np.ones((2, 3)), network="net", batch=4)
    assert [row["peak_vs_narrow"] for row in rows] == [5.0, 1.0, 1.05]
    assert cost_rows.memory_text(rows[2]) == "0 (1.05x)"
    assert summary.interval(rows[2], "vs_narrow") == "1.00 [1.00, 1.00]"
    assert summary.interval({"vs_narrow": 1.234}, "vs_narrow") == "1.23"


def test_the_device_tells_the_peak_of_one_variant():
    shared = bench.prepare(tiny(), batch=4, image_size=8, learning_rate=0.01, dispatch=1)
    (slab,) = variants.build(shared, [variants.Key("slab", 0.5, 3, "norm_taylor")])
    assert device_memory.peak(slab, stats=lambda: None) is None
    assert device_memory.peak(slab, stats=lambda: {"peak_bytes_in_use": 7, "limit": 9}) == 7


def test_device_memory_is_asked_for_in_processes_of_their_own(monkeypatch):
    calls, told = [], []

    def answer(command, **options):
        calls.append((command, options["env"]["XLA_PYTHON_CLIENT_PREALLOCATE"]))
        return SimpleNamespace(returncode=0, stdout="noise\n123\n", stderr="")

    monkeypatch.setattr(subprocess, "run", answer)
    asked = variants.keys([0.5], [1])
    found = device_memory.measure(["--batch", "8"], asked, told.append)
    assert found == dict.fromkeys(asked, 123) and told == [1, 2, 3, 4, 5]
    command, preallocate = calls[2]
    assert variants.Key(*json.loads(command[3])) == asked[2] and command[4:] == ["--batch", "8"]
    assert preallocate == "false"
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr="out of memory")
    )
    with pytest.raises(ValueError, match=r"dense.*out of memory"):
        device_memory.measure([], asked, told.append)


def test_a_process_of_one_variant_prints_bytes_last(monkeypatch, capsys):
    monkeypatch.setitem(networks.NETWORKS, "tiny", tiny)
    key = json.dumps(variants.Key("narrow", 0.5))
    assert device_memory.main([key, *SMALL]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) is None  # a CPU keeps no account


def test_masked_loss_is_the_narrow_networks_loss():
    shared = bench.prepare(tiny(), batch=4, image_size=8, learning_rate=0.01, dispatch=1)
    loop, channels = bench.initial(shared, shared.module), shared.channels
    half = budget.from_fraction(channels.full, 0.5)
    masks = masking.random_masks(half)
    assert {group: int(mask.sum()) for group, mask in masks.items()} == half.compact
    key = jax.random.key(0)
    dense = forward.classification_loss(shared.module)
    masked = jax.jit(jax.value_and_grad(masked_loss(dense, channels), has_aux=True))

    def at(masks):
        return masked(loop.params, loop.model_state, {}, {**shared.data, "masks": masks}, key)

    (loss, _), grads = at(masks)
    selection = {g: jnp.flatnonzero(mask).astype(jnp.int32) for g, mask in masks.items()}
    pick = partial(slab.gather, selection=selection, full=channels.full)
    cut = pick(loop.params, channels.names("params", loop.params))
    stats = loop.model_state["batch_stats"]
    state = {"batch_stats": pick(stats, channels.names("batch_stats", stats))}
    narrow = jax.jit(forward.classification_loss(maps.with_widths(shared.module, half.compact)))
    np.testing.assert_allclose(loss, narrow(cut, state, {}, shared.data, key)[0], rtol=1e-5)
    idle = np.asarray(masks["conv0"]) == 0
    assert not np.any(np.asarray(grads["conv0"]["kernel"])[..., idle])
    assert not np.any(np.asarray(grads["conv1"]["kernel"])[:, :, idle])
    assert np.any(np.asarray(grads["conv1"]["kernel"])[:, :, ~idle])
    whole = jax.jit(dense)(loop.params, loop.model_state, {}, shared.data, key)[0]
    ones = masking.random_masks(budget.full(channels.full))
    np.testing.assert_allclose(at(ones)[0][0], whole, rtol=1e-6)
    assert abs(loss - whole) > 1e-3


def variant(name, keep, every=None, signal=None):
    return composed.Variant(name, keep, every, signal, 1, 1.0, None, None, 0, ())


def several_keeps():
    built = [variant("dense", 1.0)]
    for keep in (0.25, 0.5):
        built += [variant("narrow", keep), variant("slab", keep, 1), variant("slab", keep, 10)]
        built += [variant("committed", keep), variant("masked", keep)]
    times_RV = np.array([[9.0, 2.0, 3.0, 2.5, 2.0, 9.5, 4.0, 6.0, 5.0, 4.0, 9.5]] * 2)
    return cost_rows.rows(built, times_RV, network="net", batch=4)


def test_rows_compare_with_the_narrow_network_of_the_same_keep():
    rows = several_keeps()
    slabs = [(r["keep"], r["vs_narrow"]) for r in rows if r["select_every"] == 1]
    assert slabs == [(0.25, 1.5), (0.5, 1.5)]
    assert rows[0]["vs_narrow"] is None and rows[0]["vs_narrow_high"] is None
    only = cost_rows.rows(
        [variant("dense", 1.0), variant("narrow", 0.5)],
        np.array([[9.0, 3.0]]),
        network="net",
        batch=4,
    )
    assert only[0]["vs_narrow"] == 3.0 and only[1]["vs_dense"] == pytest.approx(1 / 3)
    assert cost_rows.table(rows, device="cpu").row_count == len(rows)


def test_a_picture_of_one_keep_has_a_bar_a_variant_that_tells_its_share_of_dense():
    built = [variant("dense", 1.0), variant("narrow", 0.5), variant("slab", 0.5, 1)]
    times_RV = np.array([[8.0, 2.0, 3.0], [8.0, 2.0, 3.5], [9.0, 2.0, 2.5]])
    rows = cost_rows.rows(built, times_RV, network="net", batch=4)
    axes = cost_plot.step_times(rows, device="cpu").axes[0]
    assert [bar.get_width() for bar in axes.patches] == [2.0, 3.0, 8.0]
    names = ["narrow", "slab, a selection every step", "dense"]
    assert [text.get_text() for text in axes.get_yticklabels()] == names
    told = [text.get_text().strip() for text in axes.texts]
    assert told == ["2.0 ms, 0.25 of dense", "3.0 ms, 0.38 of dense", "8.0 ms, 1.00 of dense"]
    assert axes.get_title(loc="left") == "net, batch 4, keep 0.5, cpu"


def test_picture_draws_the_limit_up_to_dense():
    figure = cost_plot.step_times(several_keeps(), device="cpu")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    limit = lines["narrow network: the limit"]
    np.testing.assert_array_equal(limit.get_xydata(), [[0.25, 2.0], [0.5, 4.0], [1.0, 9.0]])
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels[2:] == [
        *("slab, a selection every step", "slab, a selection every 10 steps"),
        *("committed", "masked"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network", "vgg61"], "unknown network 'vgg61'; did you mean 'vgg1"),
        (["--keep", "0.5,0"], "--keep 0: a share of channels is above 0"),
        (["--keep", "1.5"], "--keep 1.5"),
        (["--keep", "nan"], "--keep nan"),
        (["--pairs", "0"], "--pairs 0: it must be at least 1"),
        (["--batch", "0"], "--batch 0: it must be at least 1"),
        (["--select_every", "10,0"], "--select_every 0: it must be at least 1"),
        (["--steps_per_dispatch", "0"], "--steps_per_dispatch 0"),
        (["--learning_rate", "-1"], "--learning_rate -1.0"),
        (["--image_size", "4"], "nothing would be left"),
        (["--json", "costs.png"], "end the file in .json"),
        (["--json", "."], "is a directory"),
        (["--json", "file/costs.json"], "file"),
        (["--json", "taken.json"], "taken.png"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(
    words, message, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.png").mkdir()
    monkeypatch.setattr(variants, "build", lambda *_: pytest.fail("compiled"))
    assert benchmark.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "costs.json").exists()


def test_a_word_that_is_no_number_and_help(capsys):
    for words, code, text in ((["--keep", "half"], 2, "not a list"), (["--help"], 0, "limit")):
        with pytest.raises(SystemExit) as stop:
            benchmark.main(words)
        assert stop.value.code == code
        printed = capsys.readouterr()
        assert text in printed.out + printed.err
