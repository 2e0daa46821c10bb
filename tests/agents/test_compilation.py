"""Compiled programs: equal to eager, kept once per structure, safe, and never needed."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from agents import compilation
from agents.compilation import bind, cache_directory, write_over
from agents.recorder import Recorder
from agents.training import train
from rlloss.pointwise import pseudo_huber
from tests.conftest import COMPILED


def _step(state, scale):
    return {"a": state["a"] * scale + state["b"], "b": state["a"]}, state["a"].sum()


def _program(**options):
    state, scale = {"a": torch.ones(1, 3), "b": torch.zeros(1, 3)}, torch.tensor([2.0])
    return state, scale, bind(_step, (state, scale), donate=True, name="step", say=lambda line: None, **options)


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_new_state_is_written_over_the_old_even_where_parts_change_places(compile):
    state, scale, program = _program(compile=compile)
    assert torch.equal(state["a"], torch.ones(1, 3)), "binding must not run the program on the state"
    assert program.result(program.run()).item() == 3
    assert state["a"].tolist() == [[2, 2, 2]] and state["b"].tolist() == [[1, 1, 1]]
    scale.fill_(10.0)
    program.run()
    assert state["a"].tolist() == [[21, 21, 21]] and state["b"].tolist() == [[2, 2, 2]]


def test_a_compiled_run_learns_what_an_eager_run_learns(small_run):
    compiled, eager = (train([small_run(*COMPILED)], compile=compile)[0] for compile in (True, False))
    for name, parameter in eager.learner.parameters.items():
        torch.testing.assert_close(compiled.learner.parameters[name], parameter, rtol=1e-3, atol=1e-5)


def _record(function, *inputs):
    with Recorder(inputs) as recorder:
        function(*inputs)
    return recorder


def test_the_key_tells_programs_apart_and_knows_equal_ones():
    x, y = torch.ones(3), torch.ones(3)
    keys = [
        _record(lambda a, b: a * 2.0 + b, x, y).key(),
        _record(lambda a, b: a * 3.0 + b, x, y).key(),
        _record(lambda a, b: a * 2.0 - b, x, y).key(),
        _record(lambda a, b: b * 2.0 + a, x, y).key(),
        _record(lambda a, b: a * 2.0 + b, torch.ones(4), torch.ones(4)).key(),
        _record(lambda a, b: a * 2.0 + b + torch.tensor([1.0, 2.0, 3.0]), x, y).key(),
        _record(lambda a, b: a * 2.0 + b + torch.tensor([1.0, 2.0, 4.0]), x, y).key(),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == _record(lambda c, d: d + 0 if False else c * 2.0 + d, torch.zeros(3), torch.rand(3)).key()


def test_the_key_sees_what_is_returned_and_in_what_order():
    def keyed(function):
        recorder = Recorder([torch.ones(3)])
        with recorder:
            outputs = function(*recorder.inputs)
        recorder.outputs(outputs)
        return recorder.key()

    functions = (lambda a: [a + 1, a * 3], lambda a: [a + 1, a * 3][::-1], lambda a: [a + 1, a * 3][:1])
    assert len({keyed(function) for function in functions}) == 3


def test_a_damaged_package_is_compiled_anew(tmp_path, monkeypatch):
    package = tmp_path / "damaged.pt2"
    package.write_bytes(b"nonsense")
    with pytest.raises(RuntimeError):
        compilation._load(package)
    assert not package.exists()


def test_the_key_sees_constants_made_outside_the_program():
    one, other = torch.ones(3), torch.full((3,), 2.0)
    x = torch.ones(3)
    assert _record(lambda a: a + one, x).key() != _record(lambda a: a + other, x).key()


def test_unused_inputs_are_known():
    assert _record(lambda a, b, c: a + c, *torch.ones(3, 2)).used == {0, 2}
    x, twice, y = torch.ones(3, 2)
    assert _record(lambda a, b, c, d: d * 2, x, twice, twice, y).used == {3}


def test_a_second_start_takes_the_package_from_the_cache(monkeypatch):
    _program(compile=True)

    def forbidden(*_):
        raise AssertionError("compiled again")

    monkeypatch.setattr(compilation, "_compile", forbidden)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _program(compile=True)


def test_one_package_serves_any_number_of_runs(monkeypatch):
    _program(compile=True)
    monkeypatch.setattr(compilation, "_compile", None)
    for runs in (2, 5, 64):
        state, scale = {"a": torch.ones(runs, 3), "b": torch.zeros(runs, 3)}, torch.arange(float(runs))
        program = bind(_step, (state, scale), donate=True, compile=True, name="step", say=lambda line: None)
        assert program.result(program.run()).tolist() == [3.0] * runs
        assert torch.equal(state["a"], torch.arange(float(runs))[:, None].expand(runs, 3))


def test_numbers_that_look_like_the_number_of_runs_stay_what_they_are():
    everyone = torch.ones(3, 3)
    program = bind(lambda x, y: (x * y.sum() + 1009, x + 1013), (everyone,), (torch.ones(7),), donate=True, compile=True, name="f", say=lambda line: None)
    program.run()
    assert everyone.tolist() == [[1016] * 3] * 3


WITHOUT = """
import warnings
from tests.agents.test_compilation import _program
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    state, _, program = _program(compile=True)
(warning,) = [w for w in caught if w.category is UserWarning]
assert "no C++ compiler found (/nowhere/g++)" in str(warning.message) and "\\n" not in str(warning.message), warning.message
program.run()
assert state["a"].tolist() == [[2, 2, 2]]
"""


def test_without_a_compiler_one_warning_and_the_same_results(tmp_path):
    environment = {**os.environ, "RLLOSS_CACHE": str(tmp_path / "cache"), "CXX": "/nowhere/g++"}
    subprocess.run([sys.executable, "-c", WITHOUT], env=environment, check=True, cwd=Path(__file__).parents[2])


KILLED = """
import os, signal
import torch._inductor
from tests.agents.test_compilation import _program
torch._inductor.aoti_compile_and_package = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
_program(compile=True)
"""


def test_what_a_killed_compiler_left_is_deleted_after_a_day(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, "RLLOSS_CACHE": str(tmp_path)}, cwd=Path(__file__).parents[2])
    (left,) = tmp_path.glob("compiling-*")
    assert killed.returncode == -signal.SIGKILL and left.is_dir()
    for days, kept in ((0.9, True), (1.1, False)):
        (left / "half a package").write_text("")
        os.utime(left, (time.time() - days * 24 * 3600,) * 2)
        compilation.delete_abandoned(tmp_path)
        assert left.exists() == kept


def test_a_cache_others_can_write_to_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("RLLOSS_CACHE", str(tmp_path / "cache"))
    assert cache_directory().stat().st_mode & 0o777 == 0o700
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(PermissionError, match="chmod 700"):
        cache_directory()


def test_write_over_copies_between_places_of_one_tree():
    a, b = torch.tensor([1.0]), torch.tensor([2.0])
    write_over({"a": a, "b": b}, {"a": b, "b": a})
    assert (a.item(), b.item()) == (2.0, 1.0)


def test_a_loss_whose_numbers_runs_share_compiles():
    """`pseudo_huber` meets an error [runs, batch] with a δ [batch]."""
    error = torch.linspace(-3, 3, 10).reshape(2, 5)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compiling")  # Else it would go on eagerly.
        program = bind(lambda e: pseudo_huber(e, 0.7), (error,), donate=False, compile=True, name="pseudo_huber", say=lambda line: None)
    torch.testing.assert_close(program.run()[0], 0.7**2 * ((1 + (error / 0.7) ** 2).sqrt() - 1))


def test_rounding_is_told_from_another_program():
    """Sums in float32 and in float64 are the same program's; a term that was left out is another's, also where it is small next to the rest."""
    terms = torch.randn(64, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact, rounded = terms.sum(1).float(), terms.float().flip(1).cumsum(1)[:, -1]
    assert not torch.equal(exact, rounded) and compilation._equal_but_for_rounding(exact, rounded)
    assert not compilation._equal_but_for_rounding(exact, terms[:, 1:].sum(1).float())
    assert not compilation._equal_but_for_rounding(torch.tensor([1, 2]), torch.tensor([1, 3]))
    assert compilation._equal_but_for_rounding(torch.tensor([torch.nan, torch.inf]), torch.tensor([torch.nan, torch.inf]))
    assert not compilation._equal_but_for_rounding(torch.tensor([torch.inf, 1.0]), torch.tensor([torch.inf, 2.0]))
