"""Quantiles of the normal and of Student's t distribution, without scipy."""

from __future__ import annotations

from functools import lru_cache
from math import erfc, exp, inf, isnan, lgamma, log, nan, pi, sqrt
from statistics import NormalDist

import numpy as np

from lowmem_layers.game.values.table import FloatArray

_TINY = 1e-300


def normal_quantile(p: float) -> float:
    """Invert the standard normal distribution function."""
    return NormalDist().inv_cdf(p)


def normal_density(x: FloatArray) -> FloatArray:
    """Evaluate the standard normal density. Shapes: any."""
    return np.exp(-0.5 * x**2) / sqrt(2.0 * pi)


def normal_cdf(x: FloatArray) -> FloatArray:
    """Evaluate the standard normal distribution function. Shapes: any."""
    return np.array([0.5 * erfc(-value / sqrt(2.0)) for value in np.ravel(x)]).reshape(np.shape(x))


def student_cdf(x: float, dof: float) -> float:
    """Evaluate Student's t distribution function by the incomplete beta function.

    Source: Abramowitz and Stegun 26.5.27; continued fraction 26.5.8 by Lentz' method.
    """
    if dof == inf:
        return NormalDist().cdf(x)
    tail = 0.5 * _incomplete_beta(dof / 2, 0.5, dof / (dof + x * x))
    return 1.0 - tail if x > 0 else tail


@lru_cache(maxsize=4096)
def student_quantile(p: float, dof: float) -> float:
    """Invert Student's t distribution function by bisection; `dof` may be fractional or infinite, nan below 1e-3."""
    if isnan(dof) or dof < 1e-3:
        return nan
    if dof > 1e7:
        return normal_quantile(p)
    if p == 0.5:
        return 0.0
    if p < 0.5:
        return -student_quantile(1.0 - p, dof)
    low, high = 0.0, 1.0
    while student_cdf(high, dof) < p and high < 1e300:
        low, high = high, high * 4.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (middle, high) if student_cdf(middle, dof) < p else (low, middle)
    return 0.5 * (low + high)


def student_quantiles(p: float, dof: FloatArray) -> FloatArray:
    """Invert Student's t for an array of degrees of freedom. Shapes: that of `dof`."""
    unique, back = np.unique(dof, return_inverse=True)
    return np.array([student_quantile(p, float(d)) for d in unique])[back].reshape(np.shape(dof))


def _incomplete_beta(a: float, b: float, x: float) -> float:
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log(1.0 - x))
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, 1.0 - x) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1.0 / (_guard(1.0 - (a + b) * x / (a + 1.0)))
    result = d
    for m in range(1, 20 + int(20 * sqrt(max(a, b)))):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        step = 1.0
        for numerator in (even, odd):
            d = 1.0 / _guard(1.0 + numerator * d)
            c = _guard(1.0 + numerator / c)
            step = d * c
            result *= step
        if abs(step - 1.0) < 1e-15:
            break
    return result


def _guard(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
