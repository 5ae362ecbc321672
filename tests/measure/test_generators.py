"""Failure rates of generators: the correction, its interval, and the interval's coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlib.measure import generators
from mtlib.measure.generators import rogan_gladen
from proofs.intervals import coverage


@settings(max_examples=50, deadline=None)
@given(rate=st.floats(0, 1), sensitivity=st.floats(0.6, 1), specificity=st.floats(0.6, 1))
def test_rogan_gladen_inverts_the_detector(rate, sensitivity, specificity):
    apparent = sensitivity * rate + (1 - specificity) * (1 - rate)
    assert rogan_gladen(apparent, sensitivity, specificity) == pytest.approx(rate, abs=1e-9)


def test_rogan_gladen_hand_computed_and_bounded():
    assert rogan_gladen(0.3, 0.9, 0.8) == pytest.approx(1 / 7)
    assert rogan_gladen(0.1, 0.9, 0.8) == 0 and rogan_gladen(1.0, 0.9, 0.8) == 1
    assert np.isnan(rogan_gladen(0.3, 0.5, 0.5))


def test_detector_counts_hand_computed():
    got = generators.detector_counts(np.array([1, 1, 0, 0, 1], bool), np.array([1, 1, 1, 0, 0]))
    assert got["sensitivity"] == pytest.approx(2 / 3) and got["specificity"] == pytest.approx(1 / 2)
    with pytest.raises(ValueError, match="both labels"):
        generators.detector_counts(np.ones(3, bool), np.ones(3, int))


def simulate(rates, n=400, sensitivity=0.9, specificity=0.95, seed=1):
    rng = np.random.default_rng(seed)
    name = np.repeat(list(rates), n)
    bad = rng.random(len(name)) < np.repeat(list(rates.values()), n)
    flagged = np.where(bad, rng.random(len(name)) < sensitivity, rng.random(len(name)) >= specificity)
    label = np.repeat([1, 0], 500)
    val = np.where(label == 1, rng.random(1000) < sensitivity, rng.random(1000) >= specificity)
    return name, flagged, generators.detector_counts(val, label)


def test_failure_rates_rank_generators_and_hold_the_true_rates():
    rates = {"b": 0.55, "a": 0.1, "c": 0.3}
    name, flagged, detector = simulate(rates)
    got = generators.failure_rates(name, flagged, detector, rates)
    assert got["generator"].tolist() == ["a", "c", "b"] and got["rank"].tolist() == [1, 2, 3]
    assert ((got["corrected_rate"] - got["true_rate"]).abs() < 0.08).all()
    assert got["inside"].sum() >= 2  # each interval holds the true rate in 95% of such experiments
    assert (got["corrected_rate"].between(got["low"], got["high"])).all()
    assert got["high"].iloc[2] - got["low"].iloc[2] > got["raw_high"].iloc[2] - got["raw_low"].iloc[2]


def test_failure_rates_do_not_depend_on_the_order_of_images():
    name, flagged, detector = simulate({"a": 0.2, "b": 0.4})
    order = np.random.default_rng(1).permutation(len(name))
    one = generators.failure_rates(name, flagged, detector)
    assert one.equals(generators.failure_rates(name[order], flagged[order], detector))


def test_a_detector_that_hardly_detects_gives_no_interval():
    detector = generators.detector_counts(np.tile([True, False], 100), np.repeat([1, 0], 100))
    got = generators.corrected_rate(30, 100, detector)
    assert np.isnan(got["corrected_rate"]) and (got["low"], got["high"]) == (0, 1) and got["undefined"] > 0.05


def test_no_generators_gives_an_empty_table():
    name, flagged, detector = simulate({"a": 0.2})
    assert len(generators.failure_rates(np.full(len(name), ""), flagged, detector)) == 0


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4])
def test_coverage_of_the_intervals(rate):
    got = coverage(rate, 400, 0.9, 0.95, 800, 800, repeats=200, n_boot=500)
    assert got["coverage"] >= 0.90
    assert 0 < got["mean_width"] < 0.2


def test_firing_rates_hand_computed():
    z = np.array([[1.0, 0], [0, 0], [2.0, 1], [5, 5]])
    generator = np.array(["a", "a", "b", ""])
    got = generators.firing_rates(z[:, [0]] > 0, generator, np.array([0])).set_index("generator")
    assert got["rate"].to_dict() == {"a": 0.5, "b": 1.0}
    assert got["n"].to_dict() == {"a": 2, "b": 1}
