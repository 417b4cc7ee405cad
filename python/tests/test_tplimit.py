"""The package against the command line, and what only Python can do with it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import tplimit

CLI = os.environ["TPLIMIT_CLI"]

TRAINING = """width n
const eta = 0.5
data X = [[1, 0.5], [-0.3, 1]]
data y = [1, -1]
param U : [n, 2] ~ normal(0, 1 / 2), lr = n
param W : [n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1), lr = n
model f(x) {
  z = tanh(W @ tanh(U @ x))
  return v @ z / n, z
}
for t in 0..3 {
  out, z = f(X)
  loss = mse(out, y)
  report loss, K = gram(z)
  step sgd(loss, lr = eta)
}
out, z = f(X)
report E(z[0]^2)
expect E(z[0]) == 0 within 0.1
"""
SMALL = dict(particles=512, randomisations=3)


@pytest.fixture
def program():
    return tplimit.Program(TRAINING, name="training.tp")


def command_line(tmp_path, command, text, *options):
    """What --out writes, without what differs between two runs."""
    file, out = tmp_path / "training.tp", tmp_path / "out.json"
    file.write_text(text)
    subprocess.run([CLI, command, "training.tp", "--quiet", "--out", out, *options], check=False, cwd=tmp_path)
    return comparable(json.loads(out.read_text()))


def comparable(words):
    for key in ("time_s", "peak_memory_bytes", "command", "options"):  # the last two: of the command line
        words.pop(key, None)
    words.get("engine", {}).pop("memory_estimate_bytes", None)  # counts what the process holds beside the run
    for networks in words.get("compare", {}).get("networks", []):
        networks.pop("time_s")
    return words


def test_same_bits_as_the_command_line(program, tmp_path):
    small = ["--particles", "512", "--randomisations", "3"]
    run = program.run(**SMALL, seed=3)
    assert comparable(run.to_dict()) == command_line(tmp_path, "run", TRAINING, *small, "--seed", "3")
    simulated = program.simulate(64, seeds=3)
    assert comparable(simulated.to_dict()) == command_line(tmp_path, "simulate", TRAINING, "--width", "64", "--seeds", "3")
    compared = program.compare([64, 32], seeds=3, **SMALL)
    assert comparable(compared.to_dict()) == command_line(tmp_path, "compare", TRAINING, "--widths", "32,64", "--seeds",
                                                          "3", *small)
    checked = subprocess.run([CLI, "check", "training.tp", "--out", "check.json"], cwd=tmp_path, capture_output=True)
    assert checked.returncode == 0
    assert comparable(program.check().to_dict()) == comparable(json.loads((tmp_path / "check.json").read_text()))


def test_arrays_are_the_numbers_of_the_file(program):
    for result in (program.run(**SMALL), program.simulate(64, seeds=3)):
        words = result.to_dict()
        assert list(result) == [r["name"] for r in words["reports"]]
        for report, own in zip(result.values(), words["reports"]):
            assert np.array_equal(report.value, own["value"]) and np.array_equal(report.stderr, own["stderr"])
            if "runs" in own:
                assert np.array_equal(report.runs, np.array(own["runs"]))


def test_constants_and_draws_as_on_the_command_line(tmp_path):
    text = "width n\nconst c = [1, 2]\nparam s : [] ~ normal(0, 1)\nreport s * c[1]\n"
    result = tplimit.Program(text, constants={"c": np.array([0.1, -0.7])}).run(draws=5, seed=7)
    words = command_line(tmp_path, "run", text, "--set", "c=[0.1, -0.7]", "--draws", "5", "--seed", "7")
    assert result.to_dict()["reports"] == words["reports"]
    assert result["s * c[1]"].spread > 0
    a, b = (tplimit.Program(text).run(seed=s)["s * c[1]"].value for s in (0, 1))
    assert a != b


def test_named_axes(program):
    result = program.run(**SMALL)
    K = result.K
    assert K.dims == ("t", "i", "j") and K.value.shape == (3, 2, 2) and list(K.coords["t"]) == [0, 1, 2]
    assert isinstance(result["E(z[0]^2)"].value, float)
    assert result.K is result["K"] and "loss" in dir(result) and np.asarray(K).shape == K.value.shape
    assert K.method == "particles" and K.error_kind == "standard_error"
    assert result.passed and result.expectations[0]["status"] == "pass"
    with pytest.raises(KeyError, match="'loss'"):
        result["nothing"]
    with pytest.raises(AttributeError, match="'loss'"):
        result.nothing


def test_to_xarray(program):
    pytest.importorskip("xarray")
    data = program.simulate(64, seeds=3).to_xarray()
    assert data["K"].dims == ("t", "K_i", "K_j") and data["K_runs"].dims == ("seed", "t", "K_i", "K_j")
    assert float(data["loss"].sel(t=2)) == data["loss"].values[2]
    limit = program.run(**SMALL)
    assert limit.K.to_xarray().sel(t=1).dims == ("i", "j")
    # Two loops of one name with other values.
    two = tplimit.Program("width n\nfor t in 0..2 { report a = t }\nfor t in 5..8 { report b = t }\n").run().to_xarray()
    assert two["a"].dims == ("t",) and two["b"].dims == ("b_t",) and list(two["b_t"].values) == [5, 6, 7]


def test_to_pandas(program):
    pandas = pytest.importorskip("pandas")
    result = program.run(**SMALL)
    table = result.to_pandas()
    assert list(table.columns) == ["report", "t", "i", "j", "value", "stderr"] and len(table) == 3 + 12 + 1
    assert table[(table.report == "loss") & (table.t == 2)].value.item() == result.loss.value[2]
    assert isinstance(result.K.to_pandas().index, pandas.MultiIndex)
    assert result.K.to_pandas().loc[(2, 0, 1), "value"] == result.K.value[2, 0, 1]


def test_data_from_memory(program):
    X, y = np.array([[0.3, 1], [0.2, -4], [1, 1]]), np.array([1.0, 0, -1])
    literal = TRAINING.replace("[[1, 0.5], [-0.3, 1]]", str(X.tolist())).replace("[1, -1]", str(y.tolist()))
    expected = tplimit.Program(literal).run(**SMALL)
    for own in (dict(X=X, y=y), dict(X=np.asfortranarray(X), y=y.astype(int)), dict(data={"X": X.tolist()}, y=[1, 0, -1])):
        given = tplimit.Program(TRAINING, **own).run(**SMALL)
        assert np.array_equal(given.K.value, expected.K.value) and np.array_equal(given.loss.value, expected.loss.value)
    # Instead of a file, which need not exist.
    from_file = literal.replace(f"data X = {X.tolist()}", 'data X = npy("none.npy")')
    assert np.array_equal(tplimit.Program(from_file, X=X).run(**SMALL).K.value, expected.K.value)


def test_data_are_copied(program):
    X = np.array([[1, 0.5], [-0.3, 1]])
    given = tplimit.Program(TRAINING, X=X)
    X[:] = 0
    assert np.array_equal(given.run(**SMALL).K.value, program.run(**SMALL).K.value)


def test_files(tmp_path, program):
    (tmp_path / "net.tp").write_text(TRAINING.replace("[1, -1]", 'npy("y.npy")'))
    np.save(tmp_path / "y.npy", np.array([1.0, -1]))
    np.save(tmp_path / "X.npy", np.array([[1, 0.5], [-0.3, 1]]))
    expected = program.run(**SMALL).K.value
    for source in (tmp_path / "net.tp", str(tmp_path / "net.tp")):
        assert np.array_equal(tplimit.Program(source).run(**SMALL).K.value, expected)
    other = tplimit.Program(tmp_path / "net.tp", data_files={"X": tmp_path / "X.npy"})
    assert np.array_equal(other.run(**SMALL).K.value, expected)
    with pytest.raises(FileNotFoundError):
        tplimit.Program(tmp_path / "none.tp")


def test_errors():
    with pytest.raises(tplimit.Error) as caught:
        tplimit.Program("width n\nreport E(x)\n", name="bad.tp")
    error = caught.value
    assert re.fullmatch("E2[0-9]{3}", error.code) and (error.line, error.column) == (2, 10)
    assert f"bad.tp:2:10: error[{error.code}]" in str(error) and "^" in str(error)
    with pytest.raises(tplimit.Error) as caught:
        tplimit.Program(TRAINING, Z=[1.0])
    assert caught.value.code == "E2115" and caught.value.help == "its data: X, y" and caught.value.line is None
    with pytest.raises(tplimit.Error) as caught:
        tplimit.Program(TRAINING, X=[[np.nan, 1]])
    assert caught.value.code == "E2124"
    with pytest.raises(tplimit.Error) as caught:
        tplimit.Program(TRAINING).run(particles=3)
    assert caught.value.code == "E2701"
    with pytest.raises(tplimit.Error) as caught:
        tplimit.Program(TRAINING, constants={"eta": 1e200}).run(**SMALL)
    assert caught.value.code.startswith("E4")
    with pytest.raises(ValueError, match="engine"):
        tplimit.Program(TRAINING).run(engine="none")
    with pytest.raises(KeyError, match="nothing"):
        tplimit.Program(TRAINING).explain("nothing")


def test_progress(program):
    seen = []
    program.run(particles=8192, threads=1, progress=seen.append)
    assert seen == sorted(seen) and all(0 < x <= 1 for x in seen)
    with pytest.raises(ZeroDivisionError):
        program.simulate(1024, seeds=100000, progress=lambda done: 1 / 0)


@pytest.mark.parametrize("call", [
    "run(particles=1000000, randomisations=100)", "simulate(4096, 1000, matrices='stored')", "compare((4096,), 1000)"])
def test_interrupted(call):
    """Ctrl-C ends it long before it would be done."""
    code = (f"import tplimit, sys\np = tplimit.Program({TRAINING!r})\nprint('begins', flush=True)\n"
            f"try:\n  p.{call}\nexcept KeyboardInterrupt:\n  print('interrupted')\n  p.run(particles=256)\n  print('usable')\n")
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "begins\n"
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert out == "interrupted\nusable\n" and child.returncode == 0


def test_other_threads_go_on(program):
    """The interpreter's lock is free during the work, and two evaluations at a time have the same bits."""
    expected, found = program.run(**SMALL).K.value, []
    threads = [threading.Thread(target=lambda: found.append(program.run(**SMALL).K.value)) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(np.array_equal(x, expected) for x in found) and len(found) == 3


def test_compare(program):
    result = program.compare([32, 128], seeds=4, **SMALL)
    assert result.verdict in ("agrees", "inconclusive", "disagrees")
    assert [own.width for own in result.networks] == [32, 128]
    own = result.networks[1]["K"]
    assert own.runs.shape == (4, 3, 2, 2) and np.allclose(own.runs.mean(axis=0), own.value, rtol=1e-12)
    assert np.array_equal(own.value, program.simulate(128, seeds=4).K.value)
    assert result.verdicts["K"]["verdict"] in str(result) and np.array_equal(result.K.value, program.run(**SMALL).K.value)
    with pytest.raises(ValueError):
        program.compare([32, 32])


def test_what_can_be_shown(program, tmp_path):
    run = program.run(**SMALL)
    assert "<iframe" in run._repr_html_() and "training.tp" in run._repr_html_()
    assert run.page(tmp_path / "page.html") == (tmp_path / "page.html").read_text()
    assert "loss" in repr(run) and run.vega()["$schema"].startswith("https://vega.github.io")
    assert type(run.plot()).__name__ in ("Plot", "VConcatChart", "Chart", "LayerChart")
    assert tplimit.Plot(run.vega())._repr_mimebundle_()["application/vnd.vegalite.v5+json"] == run.vega()
    check = program.check()
    assert check.regime == "feature learning" and "feature learning" in str(check) and "<iframe" in check._repr_html_()
    explanation = program.explain("z", steps=(0, 1), numbers=True, **SMALL)
    assert "tanh" in str(explanation) and "\\begin{document}" in explanation.latex() and explanation.to_dict()["numbers"]
    assert "lr" in str(program.parametrization()) or "rate" in str(program.parametrization())
    assert program.reports[0] == "loss" and "loss" in repr(program) and program.text == TRAINING


def test_warnings():
    text = "width n\nrandom x : [n] ~ normal(0, 1)\nreport small = E(x^2) / n\n"
    with pytest.warns(tplimit.ProgramWarning, match="W5"):
        result = tplimit.Program(text).run()
    assert result.warnings[0].code.startswith("W5") and result.warnings[0].line == 3


def test_ablations_and_given():
    without = tplimit.Program(TRAINING, no_correction=True).run(**SMALL)
    assert not np.array_equal(without.K.value, tplimit.Program(TRAINING).run(**SMALL).K.value)
    assert without.to_dict()["program"]["ablations"]


def test_magic():
    pytest.importorskip("IPython")
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell.instance()
    tplimit.load_ipython_extension(shell)
    shell.user_ns["X"] = np.array([[1.0, 2], [3, 4]])
    shell.run_cell_magic("tplimit", "run particles=256 randomisations=2 X -> result", TRAINING)
    expected = tplimit.Program(TRAINING, X=[[1, 2], [3, 4]]).run(particles=256, randomisations=2)
    assert np.array_equal(shell.user_ns["result"].K.value, expected.K.value)
    assert isinstance(shell.run_cell_magic("tplimit", "check", TRAINING), tplimit.Check)
