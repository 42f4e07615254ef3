"""The latency of per-input execution: its decisions, what it times, what it writes and refuses."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import latency_nets
import numpy as np
import pytest

from dce_jax.runtime import MASKED, SWITCHED, execute, replay, run, systems
from dce_jax.runtime.choice import Choice
from experiments import latency, latency_decisions, latency_forms, latency_tables, tables, timing

pytestmark = pytest.mark.one_set

WORDS = ("--network", "tiny", "--repeats", "3", "--batch_repeats", "2", "--chunk", "4")
FULL, SWITCH, MASK, CHUNKS = "full", "switched", "masked", "chunks of 4"
UNROLLED = f"{CHUNKS}, unrolled"


@pytest.fixture(scope="module", autouse=True)
def network():
    with latency_nets.named():
        yield


@pytest.fixture(scope="module")
def asked():
    return latency_nets.subject(parts=4, images=6)


@pytest.fixture(scope="module")
def compiled():
    asked = latency_nets.subject(parts=2, images=2)
    return asked, latency_forms.forms(asked, batch=1, chunk=1, tell=print)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    path = tmp_path_factory.mktemp("latency") / "latency.json"
    picture = path.with_suffix(".svg")
    words = [*WORDS, "--parts", "2", "--macs", "0.5,1.0", "--batch", "1,6", "--json", str(path)]
    assert latency.main([*words, "--plot", str(picture)]) == 0
    return path, picture.read_text()


def test_the_file_has_a_row_per_batch_form_and_target(measured):
    found = json.loads(measured[0].read_text())
    assert {"device", "versions", "command", "settings", "ratio", "subject"} < set(found)
    assert found["command"].startswith("python -m experiments.latency --network tiny")
    assert "--json latency.json" in found["command"]
    assert found["subject"]["levels"] == [[8, 16], [8, 16]]
    assert found["settings"] == {"batch": [1, 6], "chunk": 4, "repeats": 3, "batch_repeats": 2}
    rows = found["latency"]
    assert [(row["batch"], row["form"], row["rounds"]) for row in rows] == [
        *((1, form, 3) for form in (FULL, SWITCH, MASK, SWITCH, MASK)),
        *((6, form, 2) for form in (FULL, *2 * (CHUNKS, UNROLLED, MASK))),
    ]
    targets = [row["decisions"] and row["decisions"]["target"] for row in rows]
    assert targets == [None, 0.5, 0.5, 1.0, 1.0, None, *3 * [0.5], *3 * [1.0]]
    for row in rows:
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert 0 < row["ms_min"] <= row["ms_median"] <= row["ms_max"] and row["compile_s"] > 0
    assert all(rows[i]["ratio"] == 1.0 == rows[i]["share"] for i in (0, 5))


def test_rows_tell_what_was_decided_and_what_was_computed(measured):
    found = json.loads(measured[0].read_text())
    whole = 1.0 + found["subject"]["macs_deciding"] / found["subject"]["macs_full"]
    assert whole > 1.0
    for row in found["latency"]:
        decided, ran = row["share"], row["share_computed"]
        if row["form"] == MASK:
            assert ran == pytest.approx(whole) and decided <= whole + 1e-6
        elif row["form"] == SWITCH:
            assert ran == decided
        elif row["form"] in (CHUNKS, UNROLLED):
            assert decided - 1e-6 <= ran <= whole + 1e-6
    (mixed, everything) = [row for row in found["latency"] if row["form"] == CHUNKS]
    assert mixed["share_computed"] > mixed["share"] + 0.01
    assert everything["share"] == pytest.approx(whole)


def test_the_picture_and_the_tables_show_the_rows(measured, tmp_path):
    path, picture = measured
    assert picture.lstrip().startswith("<?xml")
    lines = latency_tables.tables([path]).splitlines()
    assert lines[0].startswith("tiny, width 1, 2 sites of 2 widths, rnp; cpu")
    assert len(lines) == 2 + 2 + 12 and lines[4].startswith("| 1 | full | 1 | 1 |")
    assert tables.KINDS["latency"] is latency_tables.tables
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(ValueError, match="holds no latencies"):
        latency_tables.tables([other])


def test_the_decision_network_is_in_the_programs(compiled):
    _, (full, *deciding) = compiled
    assert "Decider" not in full.program.call.as_text()
    for form in deciding:
        text = form.program.call.as_text()
        for site in range(2):
            assert f"Decider/encoders_{site}/dot_general" in text, form.name
        assert "Decider/cell/hn/dot_general" in text and "Decider/values/dot_general" in text


def test_told_decisions_run_and_untold_ones_are_the_decision_networks(compiled):
    asked, (full, *deciding) = compiled
    image, knob = asked.images[:1], jnp.asarray(asked.knob)

    def outputs(form, params, levels):
        told = jnp.asarray(levels, jnp.int32)[:, None]
        return form.program.call(asked.variables, image, params, knob, told)

    @partial(jax.jit, static_argnums=0)
    def plain(execution, policy_params, levels):
        policy = systems.policy(asked.system, policy_params, knob)
        if levels is not None:
            policy = replay(tuple(Choice(level[None]) for level in levels))
        return run(
            asked.system.chain, asked.system.levels, asked.variables, image, policy, execution
        )

    choices = plain(MASKED, asked.params, None).choices
    own = [int(choice.level[0]) for choice in choices]
    for form, execution in zip(deciding, (SWITCHED, MASKED), strict=True):
        untold = outputs(form, asked.params, [-1, -1])
        np.testing.assert_allclose(untold, outputs(form, asked.params, own), rtol=1e-5)
        for levels in ([0, 0], [0, 1], [1, 0], [1, 1]):
            want = plain(execution, None, jnp.asarray(levels)).logits
            np.testing.assert_allclose(outputs(form, asked.params, levels), want, rtol=1e-4)
            same = np.allclose(untold, want, rtol=1e-3)
            assert same == (levels == own)
        everything = full.program.call(asked.variables, image)
        np.testing.assert_allclose(outputs(form, asked.params, [1, 1]), everything, rtol=1e-4)


def test_every_round_takes_the_next_decisions_and_all_forms_the_same(asked):
    pool = latency_decisions.drawn(asked.system, 0.5)
    draws = latency_decisions.draws(asked.system, pool, rounds=4, batch=3)
    seen: dict[str, list] = {}

    def contender(execution):
        name = "full" if execution is None else execution.name

        def call(variables, images, *more):
            levels = more[-1] if more else None
            seen.setdefault(name, []).append((np.asarray(images), levels))
            return images

        program = timing.Program(call, 0.0, None)
        return latency_forms.contender(
            asked, latency_forms.Form(execution, program, asked.variables), draws
        )

    timing.interleave(
        [contender(each) for each in (None, execute.chunked(2), MASKED)],
        least=4,
        until=0.0,
        report=print,
        shortest=0.0,
    )
    assert all(levels is None for _, levels in seen["full"])
    for name in ("chunks of 2", "masked"):
        told = [levels for _, levels in seen[name]]
        np.testing.assert_array_equal(told, draws.levels_RSB[[3, 0, 1, 2, 3]])
    for each in seen.values():
        shown = [images for images, _ in each]
        first, second = np.asarray(asked.images[:3]), np.asarray(asked.images[3:])
        np.testing.assert_array_equal(shown, [second, first, second, first, second])


def test_single_images_run_in_a_row_each_when_the_one_before_has_ended(asked):
    count = 2 * latency_forms.IN_A_ROW
    pool = latency_decisions.drawn(asked.system, 0.5)
    draws = latency_decisions.draws(asked.system, pool, rounds=count, batch=1)
    clock, seen = [0.0], []

    class Logits:
        def block_until_ready(self):
            clock[0] += 1.0  # whoever starts eight and waits for the last sees one second
            return self

    def call(variables, images, params, knob, levels):
        seen.append(np.asarray(levels))
        return Logits()

    form = latency_forms.Form(SWITCHED, timing.Program(call, 0.0, None), asked.variables)
    row = latency_forms.contender(asked, form, draws)
    state, _ = row.run(row.start(), row.data)
    assert (clock[0], state) == (8.0, 2)
    row.run(0, row.data)
    half = count // 2
    np.testing.assert_array_equal(seen, draws.levels_RSB[[*range(half, count), *range(half)]])
    assert row.steps == half == latency_forms.in_a_row(1) and latency_forms.in_a_row(2) == 1


def test_rounds_are_made_twice_and_the_second_time_counts(compiled, monkeypatch):
    asked, built = compiled
    monkeypatch.setattr(latency, "forms", lambda *_, **__: built)
    turns = [np.array([[1.0, 9.0, 3.0]] * 4), np.array([[2.0, 1.0, 2.0]] * 4)]
    made = []

    def interleave(entrants, *, least, report, **_):
        made.append((len(entrants), least))
        report(1, least)
        return turns[len(made) - 1]

    monkeypatch.setattr(timing, "interleave", interleave)
    pool = latency_decisions.drawn(asked.system, 0.5)
    draws = latency_decisions.draws(asked.system, pool, rounds=4 * latency_forms.IN_A_ROW, batch=1)
    told: list[str] = []
    rows = latency.measure(asked, latency.Plan(1, 1, (draws,)), told.append)
    assert made == [(3, 4), (3, 4)]
    assert told[-2:] == ["unmeasured round 1 of 4", "measured round 1 of 4"]
    assert [row["ms_mean"] for row in rows] == [2.0, 1.0, 2.0]
    assert [row["ratio"] for row in rows] == [1.0, 0.5, 1.0]
    assert [row["ratio_first"] for row in rows] == [1.0, 9.0, 3.0]


def test_decisions_of_a_file_are_used_as_given(compiled, monkeypatch, tmp_path):
    monkeypatch.setattr(latency, "forms", lambda *_, **__: compiled[1])  # compiled before
    path, out = tmp_path / "decisions.json", tmp_path / "latency.json"
    rows = [[0, 1], [1, 1], [0, 0]]
    given = {"levels": rows, "parts": 2, "knob": -0.03, "system": "rnp", "share": 0.4}
    path.write_text(json.dumps(given))
    file = latency_decisions.read(path)
    draws = latency_decisions.draws(compiled[0].system, file.pool, rounds=3, batch=1)
    assert sorted(draws.levels_RSB[:, :, 0].tolist()) == sorted(rows)
    words = ["--decisions", str(path), "--batch", "1", "--json", str(out)]
    assert latency.main([*WORDS, *words]) == 0
    found = json.loads(out.read_text())
    assert [row["form"] for row in found["latency"]] == [FULL, SWITCH, MASK]
    want = {"file": "decisions.json", "knob": -0.03, "system": "rnp", "share": 0.4}
    assert found["latency"][1]["decisions"] == {**want, "images_in_pool": 3}
    assert found["latency"][1]["share"] == pytest.approx(draws.share)
    assert "--decisions decisions.json" in found["command"]


def test_decisions_are_drawn_with_the_frequencies_of_a_result(compiled, monkeypatch, tmp_path):
    monkeypatch.setattr(latency, "forms", lambda *_, **__: compiled[1])  # compiled before
    path, out = tmp_path / "result.json", tmp_path / "latency.json"
    points = [{"knob": p, "levels": {"all": [[1 - p, p], [1 - p, p]]}} for p in (0.0, 1.0)]
    given = {"points": points, "system": "rnp", "levels": [[4, 8], [4, 8]], "command": "python"}
    path.write_text(json.dumps(given))
    words = ["--frequencies", str(path), "--macs", "0.6,1.0", "--batch", "1", "--json", str(out)]
    assert latency.main([*WORDS, *words]) == 0
    found = json.loads(out.read_text())
    rows = [row["decisions"] for row in found["latency"] if row["form"] == SWITCH]
    assert [row["target"] for row in rows] == [0.6, 1.0]
    assert all(row["knobs"] == [0.0, 1.0] for row in rows)
    assert 0 < rows[0]["share_of_second"] < 1 == rows[1]["share_of_second"]
    assert "--frequencies result.json" in found["command"]


def test_images_with_channels_of_their_own_do_not_run_in_chunks(tmp_path, capsys):
    path = tmp_path / "decisions.json"
    path.write_text(json.dumps({"levels": [[1, 1]], "parts": 2, "system": "fbs"}))
    assert latency.main([*WORDS, "--decisions", str(path), "--batch", "1,6"]) == 2
    assert "fbs chooses other channels for every image" in capsys.readouterr().err


def test_another_system_may_decide_what_is_drawn(tmp_path):
    path = tmp_path / "c.json"
    words = ["--system", "c", "--parts", "2", "--macs", "0.5", "--batch", "1", "--json", str(path)]
    assert latency.main([*WORDS, *words]) == 0
    about = json.loads(path.read_text())["subject"]
    assert about["system"] == "c"
    c = latency_nets.subject(parts=2, images=1, name="c").system
    assert (
        about["macs_deciding"]
        == c.deciding
        != latency_nets.subject(parts=2, images=1).system.deciding
    )


def test_the_ratio_of_means_weighs_rounds_by_their_time():
    times, full = np.array([1.0, 1.0, 10.0]), np.array([4.0, 4.0, 4.0])
    ratio, low, high = timing.ratio_of_means(times, full)
    assert ratio == pytest.approx(1.0) and timing.ratio(times, full).median == 0.25
    assert low == pytest.approx(0.25) and high == pytest.approx(2.5)
    paired = timing.ratio_of_means(3.0 * times, times)  # rounds are drawn as pairs
    assert paired == pytest.approx((3.0, 3.0, 3.0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--chunk", "7", "--batch", "1,6"], "--chunk 7 is larger than a batch of 6"),
        (["--chunk", "0"], "--chunk is 0"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--batch_repeats", "-1"], "--batch_repeats is -1"),
        (["--batch", "0,6"], "--batch 0"),
        (["--macs", "0.01", "--batch", "1"], "--macs 0.01: with 4 widths per site"),
        (["--macs", "nan"], "--macs is (nan,): choose finite numbers"),
        (["--parts", "17", "--batch", "1"], "17 widths asked of conv1"),
        (["--parts", "1", "--batch", "1"], "nothing to choose from"),
        (["--network", "vgg61"], "unknown network"),
        (["--network", "mobilenetv2", "--batch", "1"], "cannot be cut into links"),
        (["--decisions", "missing.json"], "missing.json does not exist"),
        (["--decisions", "missing.json", "--macs", "0.5"], "leave out --macs, --parts and"),
        (["--decisions", "missing.json", "--parts", "2"], "leave out --macs, --parts and"),
        (["--decisions", "missing.json", "--system", "c"], "leave out --macs, --parts and"),
        (["--workdir", "missing", "--system", "c"], "leave out --decisions, --parts and"),
        (["--workdir", "missing", "--macs", "0.2,0.5"], "name one number with --macs"),
        (["--frequencies", "missing.json"], "missing.json"),
        (["--frequencies", "missing.json", "--workdir", "x"], "leave out --decisions, --workdir"),
        (["--frequencies", "missing.json", "--parts", "2"], "leave out --decisions, --workdir"),
        (["--system", "fbs", "--batch", "1,6"], "fbs chooses other channels for every image"),
    ],
)
def test_bad_input_is_refused(words, message, capsys):
    assert latency.main([*WORDS, *words]) == 2
    assert message in capsys.readouterr().err
