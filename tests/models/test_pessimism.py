"""Lower bounds of rewards: against enumeration of pairs and a numerical minimum over the ellipsoid."""

import numpy as np
import pytest
from scipy.optimize import minimize

from tokengym.models.pessimism import comparison_covariance, confidence_radius, lower_bounds


def test_the_covariance_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    sizes = [(3, 2), (4, 0), (1, 5), (0, 2)]
    groups = [(rng.normal(size=(a + b, 4)), rng.permutation([True] * a + [False] * b)) for a, b in sizes]
    pairs = [x - y for features, right in groups for x in features[right] for y in features[~right]]
    covariance, count = comparison_covariance(groups)
    assert count == len(pairs) == 11
    np.testing.assert_allclose(covariance, np.mean([np.outer(pair, pair) for pair in pairs], axis=0), atol=1e-12)
    with pytest.raises(ValueError, match="no problem with both a right and a wrong attempt"):
        comparison_covariance([groups[1], groups[3]])


def test_the_bound_is_the_minimum_over_the_ellipsoid() -> None:
    """F6, by a numerical minimum."""
    rng = np.random.default_rng(1)
    root, weights, features = rng.normal(size=(3, 3)), rng.normal(size=3), rng.normal(size=(4, 3))
    covariance, ridge, radius = root @ root.T, 0.1, 0.7
    bounds = lower_bounds(features, weights, covariance, ridge, radius)
    matrix = covariance + ridge * np.eye(3)
    for x, bound in zip(features, bounds, strict=True):
        limit = {"type": "ineq", "fun": lambda theta: radius**2 - (theta - weights) @ matrix @ (theta - weights)}
        assert minimize(x.dot, weights, constraints=limit).fun == pytest.approx(bound, abs=1e-5)
    np.testing.assert_array_equal(lower_bounds(features, weights, covariance, ridge, 0.0), features @ weights)


def test_the_radius_shrinks_to_that_of_the_ridge() -> None:
    assert confidence_radius(100, 4, 0.01, failure=np.exp(-2), bound=3.0) == pytest.approx(np.sqrt(6 * 16 / 100 + 0.09))
    assert confidence_radius(10**9, 4, 0.25, bound=2.0) == pytest.approx(1.0, abs=1e-4)
