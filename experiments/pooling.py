"""Which runs may share a row of a table: those that differ in nothing but the seed."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments import config, fields, pruners
from experiments.summary import Result

METHODS = ("dense", *pruners.METHODS, "scratch", "subset", "random", "dce")
# Fields that name a run or a place and do not change what is trained, or that have columns.
NOT_SETTINGS = frozenset({"seed", "workdir", "data_dir", "method", "network", "dataset", "keep"})
_NAME = ("dataset", "network", "method")  # what rows of any keep are called by


def _asked(result: Result) -> float:
    """The keep that was asked for; a dense run keeps everything, whatever its config says."""
    if result["method"] == "dense":
        return 1.0
    asked = result["keep_requested"]
    return float(result["keep"] if asked is None else asked)


def _settings(result: Result) -> dict[str, Any]:
    """Everything that two runs of one table row must share, beside the row's own four columns."""
    own = {key: result[key] for key in ("allocation", "select_every")}
    if not _paced_by_its_channels(result):
        own |= {key: result[key] for key in ("commit_step", "steps")}
    # Results of an earlier version lack later fields, and ran with what is their default.
    known = {**config.plain(config.defaults()), **result["config"]}
    settings = known | own | {"device": result["device"]}
    ignored = NOT_SETTINGS | fields.idle_fields(result["method"], result["allocation"])
    return {field: value for field, value in settings.items() if field not in ignored}


def _paced_by_its_channels(result: Result) -> bool:
    """Whether a run's steps follow from what the channels cost that its seed happened to keep."""
    return result["method"] in pruners.METHODS and result["allocation"] == "global"


def _order(result: Result) -> tuple[Any, ...]:
    method = result["method"]
    place = METHODS.index(method) if method in METHODS else len(METHODS)
    return (result["dataset"], result["network"], -_asked(result), place, method)


def _whose_widths(results: Sequence[Result]) -> list[Result]:
    """The results; widths that another run of the same seed learned are called by its method.

    Every seed learns widths of its own: by their numbers no two seeds of the narrow network that
    is trained from scratch at them would share a row.
    """

    def key(result: Result) -> tuple[Any, ...]:
        widths = tuple(sorted(result["widths"].items()))
        return (result["dataset"], result["network"], result["seed"], widths)

    learned = {key(result): result for result in results if result["allocation"] == "global"}
    found: list[Result] = []
    for result in results:
        whose = learned.get(key(result)) if result["config"].get("widths") else None
        if whose is not None:
            own = {**result["config"], "widths": f"of {whose['method']}"}
            result = {**result, "config": own, "keep_requested": whose["keep_requested"]}
        found.append(result)
    return found


def group(results: Sequence[Result]) -> list[list[Result]]:
    """Runs that differ in nothing but the seed, in the order of a table's rows.

    Runs at given widths that a run of ``results`` with their seed learned are pooled as runs at
    that method's widths.

    Args:
      results: objects with the keys of `result.json`.

    Returns:
      Lists of runs, by data set, network, keep (large first), method and settings.

    Raises:
      ValueError: one seed twice with the same settings, which would count one draw as two.
    """
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in _whose_widths(results):
        settings = sorted(_settings(result).items())
        groups.setdefault((_order(result), repr(settings)), []).append(result)
    for runs in groups.values():
        seeds = sorted(run["seed"] for run in runs)
        if len(set(seeds)) < len(seeds):
            run = runs[0]
            raise ValueError(
                f"seeds {seeds} of {run['method']} on {run['dataset']} ({run['network']}, keep "
                f"{run['keep_requested']}) hold one seed twice, with the same settings: a repeated "
                "run is no second sample; remove one of the files"
            )
    return [groups[key] for key in sorted(groups)]


def apart(groups: Sequence[Sequence[Result]], *, any_keep: bool = False) -> list[dict[str, Any]]:
    """For each row: the settings, by name, in which it differs from rows of the same name.

    Args:
      groups: rows.
      any_keep: whether rows of other keeps count as of the same name.
    """

    def name(result: Result) -> tuple[Any, ...]:
        return tuple(result[key] for key in _NAME) if any_keep else _order(result)

    found = []
    for runs in groups:
        own = _settings(runs[0])
        rivals = [_settings(g[0]) for g in groups if name(g[0]) == name(runs[0])]
        names = sorted({k for r in rivals for k in own.keys() & r if repr(r[k]) != repr(own[k])})
        found.append({name: own[name] for name in names})
    return found


def differences(groups: Sequence[Sequence[Result]]) -> list[str]:
    """For each row: the settings in which it differs from rows of the same name, or ''."""
    return [words(settings) for settings in apart(groups)]


def words(settings: Mapping[str, Any]) -> str:
    """Settings as text: 'alpha=0.1, select_every=10', without those left empty; '' for none."""
    return ", ".join(f"{name}={value}" for name, value in settings.items() if value != "")


def unlike(
    first: Sequence[Result], second: Sequence[Result]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings in which two rows differ, whatever their methods; each row's own values.

    Settings of the selection count only between two methods that select, and those of one method
    alone not at all.
    """
    one, other = _settings(first[0]), _settings(second[0])
    selecting = all(runs[0]["method"] in fields.SELECTING for runs in (first, second))
    # The name is that of a config file, not a setting.
    passed = {"name"} if selecting else {"name", *fields.SELECTING_ONLY}
    if any(_paced_by_its_channels(runs[0]) for runs in (first, second)):
        passed.add("steps")
    names = sorted(
        name
        for name in (one.keys() & other.keys()) - passed
        if repr(one[name]) != repr(other[name])
    )
    return {name: one[name] for name in names}, {name: other[name] for name in names}
