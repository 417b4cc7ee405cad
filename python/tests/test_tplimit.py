"""The package against the command line, and what only Python can do with it."""

import copy
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

import tplimit

CLI = os.environ["TPLIMIT_CLI"]
COMMAND = [sys.executable, "-m", "tplimit"]

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
IN_ROLES = """width n
parametrization mup
const eta = 0.5
data X = [[1, 0.5], [-0.3, 1]]
data y = [1, -1]
param U : input [n, 2] ~ normal(0, 1 / 2)
param W : hidden [n, n] ~ normal(0, 1)
param v : output [n] ~ normal(0, 1)
for t in 0..3 {
  z = tanh(W @ tanh(U @ X))
  loss = mse(v @ z, y)
  report loss, K = gram(z)
  step sgd(loss, lr = eta)
}
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
    for row in words.get("sweep", {}).get("rows", []):
        comparable(row["result"] or {})
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


SMALL_WORDS = ["--particles", "512", "--randomisations", "3"]


def test_sweep(program, tmp_path):
    over = {"eta": [0.5, 1e200, 0.1], "parametrization": ["mup", "ntk"]}
    text = IN_ROLES
    swept = tplimit.Program(text, name="training.tp").sweep(over, best="loss", **SMALL)
    assert comparable(swept.to_dict()) == command_line(
        tmp_path, "sweep", text, "--over", "eta=0.5,1e+200,0.1", "--over", "parametrization=mup,ntk", "--best", "loss",
        *SMALL_WORDS)
    K = swept.K
    assert K.dims == ("eta", "parametrization", "t", "i", "j") and K.value.shape == (3, 2, 3, 2, 2)
    assert list(K.coords["eta"]) == over["eta"] and list(K.coords["parametrization"]) == over["parametrization"]
    alone = tplimit.Program(text, constants={"eta": 0.1, "parametrization": "ntk"}).run(**SMALL)
    assert np.array_equal(K.value[2, 1], alone.K.value) and np.array_equal(K.stderr[2, 1], alone.K.stderr)
    row = swept.rows[5]
    assert row.values == {"eta": 0.1, "parametrization": "ntk"} and row.result.to_dict()["reports"] == alone.to_dict()["reports"]
    refused = swept.rows[2]
    assert refused.result is None and refused.errors[0].code.startswith("E4") and np.isnan(K.value[1]).all()
    assert swept.best.values["eta"] == 0.5 and swept.best not in swept.ties and "best" in str(swept)
    assert "training.tp" in swept.page() and swept.seconds > 0


def test_sweep_with_networks(program, tmp_path):
    swept = program.sweep({"eta": [0.1, 0.5]}, widths=[32, 16], seeds=3, **SMALL)
    assert comparable(swept.to_dict()) == command_line(tmp_path, "sweep", TRAINING, "--over", "eta=0.1,0.5", "--widths",
                                                       "16,32", "--seeds", "3", *SMALL_WORDS)
    alone = tplimit.Program(TRAINING, constants={"eta": 0.5}).compare([16, 32], seeds=3, **SMALL)
    own = swept.rows[1].result
    assert own.verdict == alone.verdict and np.array_equal(own.networks[0]["K"].runs, alone.networks[0]["K"].runs)


def test_sweep_over_what_changes_shapes(tmp_path):
    text = "width n\nconst T = 2\nrandom x : [n] ~ normal(0, 1)\nfor t in 0..T { report a = t + E(x^2) }\nreport b = T\n"
    swept = tplimit.Program(text).sweep({"T": [2, 3]})
    assert list(swept) == ["b"] and list(swept.b.value) == [2, 3]
    assert [row.result.a.value.shape for row in swept.rows] == [(2,), (3,)]


@pytest.mark.parametrize("call, why", [
    (lambda p: p.sweep({}), "no constant"), (lambda p: p.sweep({"eta": []}), "eta: different values"),
    (lambda p: p.sweep({"c": [1]}), "fixed"), (lambda p: p.sweep({"eta": [1]}, best="none"), "'none' is no report"),
    (lambda p: p.sweep({"eta": [1]}, highest=True), "highest"),
    (lambda p: p.extrapolate({"eta": [1, 3, 2]}), "rise"), (lambda p: p.extrapolate({"eta": [1, 2], "c": [1, 2]}), "one constant"),
    (lambda p: p.coordcheck([8, 8]), "widths")])
def test_what_cannot_be_varied(call, why):
    p = tplimit.Program("const c = 1\n" + TRAINING, constants={"c": 2})
    with pytest.raises(ValueError, match=why):
        call(p)
    with pytest.raises(tplimit.Error) as caught:
        p.sweep({"nothing": [1]})
    assert caught.value.code == "E2114"


def test_extrapolate(program, tmp_path):
    found = program.extrapolate({"eta": [0.4, 0.2, 0.1]}, order=2, **SMALL)
    words = command_line(tmp_path, "extrapolate", TRAINING, "--in", "eta=0.4,0.2,0.1", "--order", "2", *SMALL_WORDS)
    assert comparable(found.to_dict()) == words
    K = found.K
    assert K.dims == ("entry",) and K.value.shape == (12,) and K.coords["entry"][0] == "t = 0, [0,0]"
    assert K.series.dims == ("entry", "eta") and K.series.value.shape == (12, 3)
    alone = tplimit.Program(TRAINING, constants={"eta": 0.1}).run(**SMALL)
    assert np.array_equal(K.series.value[:, 2], alone.K.value.ravel())
    own = found["E(z[0]^2)"]
    assert isinstance(own.value, float) and own.series.dims == ("eta",) and own.extrapolation_error > 0
    assert own.value == words["extrapolate"]["reports"][-1]["entries"][0]["value"] and found.constant == "eta"
    with pytest.raises(tplimit.Error, match="with eta = 1e\\+200") as caught:
        program.extrapolate({"eta": [0.1, 1e200]}, **SMALL)
    assert caught.value.code.startswith("E4")


def test_coordcheck(program, tmp_path):
    check = program.coordcheck([32, 64, 128], steps=2, seeds=3, **SMALL)
    words = command_line(tmp_path, "coordcheck", TRAINING, "--widths", "32,64,128", "--steps", "2", "--seeds", "3", *SMALL_WORDS)
    assert comparable(check.to_dict()) == words
    z = check["change of z"]
    assert z.dims == ("step", "width") and z.value.shape == (len(z.coords["step"]), 3) and list(z.coords["width"]) == [32, 64, 128]
    own = next(v for v in words["coordcheck"]["values"] if v["name"] == "change of z")["steps"][-1]
    assert z.value[-1, 2] == own["sizes"][2]["value"] and z.slope[-1] == own["slope"]["value"]
    assert z.counted[-1] == 0 and z.limit[-1] == own["limit"]["value"] and z.growth[-1] == own["growth"]
    assert check.as_counted and check.steps == 2 and "change of z" in str(check)


def test_limit_of_an_earlier_run(program, tmp_path):
    known = program.run(particles=1024, randomisations=4)
    (tmp_path / "limit.json").write_text(known.to_json())
    by_command_line = command_line(tmp_path, "compare", TRAINING, "--widths", "16,32", "--seeds", "3", "--limit", "limit.json")
    for limit in (known, tmp_path / "limit.json"):
        compared = program.compare([16, 32], seeds=3, limit=limit)
        assert comparable(compared.to_dict()) == by_command_line and np.array_equal(compared.K.value, known.K.value)
    other = tplimit.Program(TRAINING, constants={"eta": 0.2}, name="training.tp")
    with pytest.raises(ValueError, match="limit 'result': "):
        other.compare([16, 32], seeds=3, limit=known)
    with pytest.raises(ValueError, match="leave out particles"):
        program.compare([16, 32], limit=known, particles=64)


def trained_by_numpy(width, seed, record):
    """The network of TRAINING, in muP, written again."""
    rng = np.random.default_rng([width, seed])
    X, y, eta = np.array([[1, 0.5], [-0.3, 1]]), np.array([1, -1]), 0.5
    U, v = rng.normal(size=(width, 2)) / 2**0.5, rng.normal(size=width)
    W = rng.normal(size=(width, width)) / width**0.5
    for t in range(3):
        h = np.tanh(X @ U.T)
        z = np.tanh(h @ W.T)
        error = z @ v / width - y
        record(loss=np.mean(error**2) / 2, K=z @ z.T / width)
        of_z = error[:, None] / 2 * v / width * (1 - z**2)
        of_h = of_z @ W * (1 - h**2)
        U, W, v = U - width * eta * of_h.T @ X, W - eta * of_z.T @ h, v - eta * error / 2 @ z


def test_networks_of_other_code(program, tmp_path):
    from tplimit._traced.measure import measure  # tplimit.measure
    runs = measure(tmp_path)
    with pytest.raises(ValueError, match="nothing recorded"):
        program.compare(against=runs)
    for width in (32, 128, 512):
        for seed in range(16):
            with runs.network(width, seed) as record:
                trained_by_numpy(width, seed, record)
    known = program.run(particles=4096)
    compared = program.compare(against=runs, particles=4096, fit_corrections=True)
    assert comparable(compared.to_dict()) == command_line(
        tmp_path, "compare", TRAINING, "--against", "32.npz", "--against", "128.npz", "--against", "512.npz",
        "--particles", "4096", "--fit-corrections")
    assert compared.verdict != "disagrees" and compared.verdicts["loss"]["verdict"] == "agrees"
    assert [n.width for n in compared.networks] == [32, 128, 512] and set(compared.networks[0].reports) == {"loss", "K"}
    assert np.array_equal(compared.networks[1]["K"].runs[3], runs.runs[128][3]["K"])
    assert len(compared.verdicts["loss"]["corrections"]["limit"]["value"]) == 3
    assert "corrections" not in program.compare(against=tmp_path / "32.npz", limit=known).verdicts["loss"]
    with pytest.raises(ValueError, match="leave out widths, seeds"):
        program.compare([32], 4, against=runs)
    with pytest.raises(ValueError, match="two widths"):
        program.compare(against=[tmp_path / "32.npz"], limit=known, fit_corrections=True)
    np.savez(tmp_path / "other.npz", width=64, losses=np.zeros((2, 3)))
    with pytest.raises(tplimit.Error) as caught:
        program.compare(against=tmp_path / "other.npz", limit=known)
    assert caught.value.code == "E5302"


def test_checkpoint(program, tmp_path):
    """What is interrupted goes on from its folder with the same bits, from Python and from the command line."""
    folder = tmp_path / "kept"
    options = dict(particles=4096, randomisations=40)
    expected = program.run(**options)
    for resume in ("Python", "command line"):
        def stop(done):
            if done > 0.3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            program.run(**options, threads=1, checkpoint=folder, progress=stop)
        assert any(folder.iterdir())
        with pytest.raises(tplimit.Error) as caught:
            program.run(particles=2048, checkpoint=folder)
        assert caught.value.code == "E5203"
        if resume == "Python":
            again = program.run(**options, checkpoint=folder, checkpoint_interval=5).to_dict()
        else:
            (tmp_path / "training.tp").write_text(TRAINING)
            child = subprocess.run([CLI, "run", "training.tp", "--particles", "4096", "--randomisations", "40", "--out",
                                    "out.json", "--checkpoint", folder], cwd=tmp_path, capture_output=True, text=True)
            assert "going on from" in child.stderr
            again = json.loads((tmp_path / "out.json").read_text())
        assert again["reports"] == expected.to_dict()["reports"]
        assert not folder.exists()


@pytest.mark.parametrize("call", [
    lambda p, **o: p.simulate(64, seeds=3, **o), lambda p, **o: p.compare([16, 32], seeds=3, **SMALL, **o),
    lambda p, **o: p.sweep({"eta": [0.1, 0.5]}, **SMALL, **o), lambda p, **o: p.extrapolate({"eta": [0.2, 0.1]}, **SMALL, **o)])
def test_checkpoints_change_nothing(program, tmp_path, call):
    folder = tmp_path / "kept"
    assert comparable(call(program, checkpoint=folder).to_dict()) == comparable(call(program).to_dict())
    assert not folder.exists()
    folder.mkdir()
    (folder / "other").write_text("")
    with pytest.raises(tplimit.Error) as caught:
        call(program, checkpoint=folder)
    assert caught.value.code == "E5201"


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
    with pytest.raises(ValueError, match="nothing"):
        tplimit.Program(TRAINING).explain("nothing")
    with pytest.raises(ValueError, match="behind the last one: the program takes 3 steps"):
        tplimit.Program(TRAINING).explain(steps=(7, 9))


def test_vector_units():
    from tplimit import _vector_units
    v3 = _vector_units._NEEDS["x86-64-v3"]
    assert _vector_units.best({"x86-64-v2", "x86-64-v3", "x86-64-v4"}, v3 | {"ssse3", "popcnt", "sse4_1", "sse4_2"}) == "x86-64-v3"
    assert _vector_units.best({"baseline", "x86-64-v3"}, {"mmx"}) == "baseline"
    assert _vector_units.best({"native"}, set()) == "native"
    with pytest.raises(ImportError, match="for x86-64-v3, and the processor lacks fma:"):
        _vector_units.best({"x86-64-v3"}, v3 - {"fma"})


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


@pytest.mark.parametrize(
    "options, why",
    [
        ({"tol": 0}, "tol: 0 is not possible"),
        ({"tol": float("nan")}, "tol: a number is wanted, not nan"),
        ({"rank_tol": 2}, "rank_tol: 2 is not possible"),
        ({"rank_tol": -1}, "rank_tol: -1 is not possible, at least 0 is"),
        ({"merge_rows": float("nan")}, "merge_rows"),
        ({"particles": "1k"}, "particles: a whole number is wanted, not '1k'"),
        ({"particles": 256.5}, "particles: a whole number"),
        ({"particles": 0}, "particles: 0 is not possible, at least 1 is"),
        ({"draws": 0}, "draws: 0 is not possible"),
        ({"seed": -1}, "seed: -1 is not possible"),
        ({"seed": 2**64}, "seed"),
        ({"threads": -1}, "threads"),
        ({"memory": -1}, "memory"),
        ({"precision": None}, "precision: a word"),
        ({"tol_on": "loss"}, "tol_on: of which tolerance"),
        ({"progress": 3}, "progress"),
    ],
)
def test_options_are_those_of_the_command_line(program, options, why):
    """What the command line refuses is refused, and not computed with."""
    with pytest.raises(ValueError, match=re.escape(why)):
        program.run(**options)
    assert set(tplimit._core.option_ranges) >= {"particles", "tol", "rank_tol", "merge_rows", "draws", "width"}


def test_numbers_of_other_types(program):
    usual = program.run(particles=256, seed=1, progress=False).loss.value
    assert np.array_equal(program.run(particles=np.int32(256), seed=np.uint8(1), progress=False).loss.value, usual)
    assert np.array_equal(program.run(particles=2.56e2, seed=1, progress=False).loss.value, usual)


@pytest.mark.parametrize(
    "value, why",
    [
        ([1, float("nan")], "entry [1] of the array that is given is nan"),
        ([1j, 2], "data y: numbers are wanted, this is an array of complex128"),
        (["1", "2"], "data y: numbers are wanted"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "data y: numbers are wanted"),
        (np.ma.masked_array([1.0, 2], mask=[0, 1]), "data y: entries are masked"),
        ([], "the array that is given has an axis of extent 0"),
        ([[1, 2], [3]], "data y"),
        (None, "data y: numbers are wanted"),
    ],
)
def test_arrays_that_are_no_numbers(value, why):
    with pytest.raises((ValueError, tplimit.Error), match=re.escape(why)):
        tplimit.Program("width n\ndata y = [1, -1]\nreport sum(y)\n", y=value)


@pytest.mark.parametrize(
    "call, why",
    [
        (lambda p: p.sweep({"eta": "0.1,0.2"}), "eta: a list of values is wanted"),
        (lambda p: p.sweep({"eta": 0.1}), "eta: a list of values is wanted"),
        (lambda p: p.sweep(["eta"]), "constants and their values"),
        (lambda p: p.sweep({"eta": [0.1, 0.1]}), "different values"),
        (lambda p: p.extrapolate({"eta": [0.4, 0.2]}, order=0), "order: 0 is not possible"),
        (lambda p: p.compare("32,64"), "widths: different whole numbers"),
        (lambda p: p.compare([32.5]), "widths: a whole number"),
        (lambda p: p.explain(steps=3), "steps: a pair"),
        (lambda p: p.explain(steps=(2, 1)), "steps: a pair"),
        (lambda p: p.compare(against=p.simulate(16, progress=False)), "limit="),
        (lambda p: tplimit.Program(p.text, constants={"eta": None}), "constants: eta is None"),
        (lambda p: tplimit.Program(p.text, constants={"eta": float("inf")}), "constants: eta is inf"),
        (lambda p: tplimit.Program(b"width n"), "bytes"),
    ],
)
def test_what_is_no_argument(program, call, why):
    with pytest.raises((ValueError, TypeError), match=re.escape(why)):
        call(program)


def test_errors_between_processes():
    with pytest.raises(tplimit.Error) as raised:
        tplimit.Program("width n\nreport E(x)\n")
    for same in (pickle.loads(pickle.dumps(raised.value)), copy.deepcopy(raised.value)):
        assert (same.code, same.line, str(same)) == (raised.value.code, raised.value.line, str(raised.value))


def test_programs_and_results_between_processes(program):
    """What comes back says and holds the same; programs compute the same."""
    again = lambda x: pickle.loads(pickle.dumps(copy.deepcopy(x)))
    p = tplimit.Program(program.text, constants={"eta": 0.3}, X=np.eye(2), y=[1.0, -1.0])
    options = dict(particles=64, randomisations=2, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tplimit.ProgramWarning)
        limit = p.run(**options)
        found = [limit, p.simulate(32, progress=False), p.compare([32, 64], 2, **options),
                 program.sweep({"eta": [0.1, 0.2]}, **options), p.coordcheck([32, 64], 1, 2, **options), p.check(),
                 p.explain(), p.parametrization()]
        assert np.array_equal(again(p).run(**options)["loss"].value, limit["loss"].value)
        assert again(p).compare([32, 64], 2, limit=again(limit), progress=False).verdicts
    assert again(p).text == p.text
    for one in found:
        other = again(one)
        assert type(other) is type(one) and str(other) == str(one) and other.page() == one.page()
        assert not hasattr(one, "to_dict") or other.to_dict() == one.to_dict()
        if isinstance(one, tplimit.Limit):
            assert other.vega() == one.vega() and other.warnings == one.warnings and other.seconds == one.seconds
            assert all(np.array_equal(other[name].stderr, one[name].stderr) for name in one)


def test_command_line_of_the_package(tmp_path):
    """`python -m tplimit` is the same program: what it prints, its exit codes, Ctrl-C."""
    file = tmp_path / "training.tp"
    file.write_text(TRAINING)
    for words in (["run", str(file), "--quiet", "--particles", "64"], ["rum", str(file)], ["check", str(file)], ["--version"]):
        own, other = (subprocess.run([*program, *words], capture_output=True, text=True) for program in ([CLI], COMMAND))
        assert (own.returncode, own.stdout, own.stderr) == (other.returncode, other.stdout, other.stderr)
    long = subprocess.Popen([*COMMAND, "run", file, "--particles", "1000000", "--quiet"], stdout=subprocess.DEVNULL)
    time.sleep(2)
    long.send_signal(signal.SIGINT)
    assert long.wait(timeout=60) == -signal.SIGINT


def test_warnings_point_at_the_call(program):
    with pytest.warns(tplimit.ProgramWarning) as found:
        program.run(particles=8, randomisations=2, progress=False)
    assert found[0].filename == __file__


def test_charts_are_those_of_altair(program):
    altair = pytest.importorskip("altair")
    chart = program.run(particles=64, progress=False).plot()
    assert isinstance(chart, altair.TopLevelMixin) and json.loads(chart.to_json())["$schema"]
    assert "vega" in chart._repr_mimebundle_(None, None).__str__() or chart.to_dict()


def test_words_of_the_magic():
    class Shell:
        user_ns = {"X": [[1, 2]], "own": [0.1, 0.2]}

        def register_magic_function(self, function, **_):
            self.cell = function

    from tplimit import _magic

    shell = Shell()
    _magic.register(shell)
    text = "width n\nconst eta = 0.5\ndata X = [[1, 0]]\nparam U : [n, 2] ~ normal(0, 1)\nreport E((U @ X)^2) * eta, eta\n"
    shell.cell("run X particles=64 progress=False constants={'eta': 2.0} -> r", text)
    assert shell.user_ns["r"]["eta"].value == 2
    shell.cell("sweep over={'eta': own} progress=False -> s", text)
    assert shell.user_ns["s"]["eta"].value.tolist() == [0.1, 0.2]
    shell.cell("run engine=exact progress=False -> e", text)
    for line, why in (("run foo", "'foo' is no variable"), ("run X ->", "-> NAME"), ("run -> 3r", "'3r'"), ("run tol=1+", "tol: '1+'")):
        with pytest.raises((NameError, ValueError), match=re.escape(why)):
            shell.cell(line, text)
