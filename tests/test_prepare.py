"""The command that prepares a data set: what it would run, and how it fails."""

import sys

import pytest

from experiments import data, prepare


def test_prepare_keeps_tensorflow_in_an_environment_of_its_own(tmp_path, capsys):
    assert data.main(["prepare", "cifar100", "--data_dir", str(tmp_path), "--dry_run"]) == 0
    venv, install, run = capsys.readouterr().out.splitlines()
    inside = f"{tmp_path}/.prepare-venv/bin/python"
    assert venv == f"{sys.executable} -m venv --without-pip {tmp_path}/.prepare-venv"
    assert f"--python {inside} install" in install
    assert "tensorflow" in install
    assert run.startswith(f"{inside} -I -c ")
    assert run.endswith(f"cifar100 {tmp_path}")
    assert "file_format='array_record'" in prepare._SCRIPT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_uv", [True, False])
def test_prepare_without_pip(tmp_path, monkeypatch, has_uv):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(prepare.shutil, "which", lambda _name: "/bin/uv" if has_uv else None)
    if has_uv:
        install = prepare.commands("mnist", data_dir=str(tmp_path), python="python")[1]
        assert install[:4] == ["/bin/uv", "pip", "install", "--python"]
        return
    with pytest.raises(ValueError, match=r"neither pip .* nor uv.*ensurepip"):
        prepare.commands("mnist", data_dir=str(tmp_path), python="python")


def test_prepare_runs_the_commands_in_order_and_stops_at_a_failure(tmp_path, monkeypatch, capsys):
    ok, fail = [sys.executable, "-c", ""], [sys.executable, "-c", "raise SystemExit(3)"]
    monkeypatch.setattr(prepare, "commands", lambda *_args, **_kwargs: [ok, ok, ok])
    where = tmp_path / "new"
    assert data.main(["prepare", "mnist", "--data_dir", str(where)]) == 0
    assert f"mnist is prepared in {where}" in capsys.readouterr().out
    monkeypatch.setattr(prepare, "commands", lambda *_args, **_kwargs: [ok, fail, ok])
    assert data.main(["prepare", "mnist", "--data_dir", str(where)]) == 1
    message = capsys.readouterr().err
    assert "installation failed with exit code 3" in message
    assert "--python" in message
    assert "preparation:" not in message
    assert f"python -m experiments.data prepare mnist --data_dir {where}" in message


def test_prepare_reports_an_interpreter_that_is_not_there(tmp_path, capsys):
    argv = ["prepare", "mnist", "--data_dir", str(tmp_path), "--python", str(tmp_path / "none")]
    assert data.main(argv) == 1
    assert "environment: " in capsys.readouterr().err


def test_prepare_leaves_a_prepared_set_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "is_prepared", lambda *_args: True)
    assert data.main(["prepare", "mnist", "--data_dir", str(tmp_path)]) == 0
    assert "already prepared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [("digits", "needs no preparing"), ("own.npz", "needs no preparing"), ("mnits", "mnist")],
)
def test_prepare_refuses(tmp_path, capsys, name, message):
    assert data.main(["prepare", name, "--data_dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_prepare_help_teaches(capsys):
    with pytest.raises(SystemExit, match="0"):
        data.main(["prepare", "--help"])
    assert "python -m experiments.data prepare cifar10 --data_dir" in capsys.readouterr().out
