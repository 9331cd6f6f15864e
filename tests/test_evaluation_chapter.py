"""The equations of chapter 11. The functions of the package are held against outside oracles in test_evaluate.py."""

from __future__ import annotations

from itertools import combinations, product
from math import comb, log, log2

import numpy as np
import pytest
import sympy as sp
import torch
from scipy import integrate, linalg, stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from ddpm_lite import gaussian
from ddpm_lite.bound import Bound
from ddpm_lite.evaluate import (
    frechet_distance,
    nearest_neighbours,
    precision_recall,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def covariance(d: int, seed: int) -> np.ndarray:
    factor = rng(seed).standard_normal((d, d + 2))
    return factor @ factor.T / d


def root(C: np.ndarray) -> np.ndarray:
    """scipy's general root, which shares no line with the package's."""
    return linalg.sqrtm(C).real


def box(C_x: np.ndarray, C_y: np.ndarray) -> float:
    """The trace part of the boxed distance."""
    return float(np.trace(C_x + C_y - 2 * root(root(C_x) @ C_y @ root(C_x))))


# Likelihood.


@pytest.mark.equation("eq-eval-cross-entropy")
def test_cost_is_entropy_plus_divergence() -> None:
    q, P = rng(0).dirichlet(np.ones(6)), rng(1).dirichlet(np.ones(6))
    cost = -(q * np.log2(P)).sum()
    entropy, nats = stats.entropy(q, base=2), stats.entropy(q, P)
    assert cost == pytest.approx(entropy + nats / log(2))
    assert cost != pytest.approx(entropy + nats, rel=1e-2), "nats added to bits"
    reverse = stats.entropy(P, q) / log(2)
    assert cost != pytest.approx(entropy + reverse, rel=1e-2)


@pytest.mark.equation("eq-eval-mixture")
def test_a_mixture_costs_at_most_the_logarithm_of_its_share() -> None:
    P, U, w = rng(2).dirichlet(np.full(50, 0.3)), np.full(50, 1 / 50), 0.01
    extra = -np.log2(w * P + (1 - w) * U) + np.log2(P)
    assert extra.max() <= log2(1 / w)
    # Tight where noise is improbable, as it is for images: U = G^-D.
    rare = -np.log2(w * P.max() + (1 - w) * 17.0**-64) + np.log2(P.max())
    assert rare == pytest.approx(log2(1 / w), rel=1e-12)
    assert not rare <= log2(1 / (1 - w)), "the share of the noise"
    assert rare != pytest.approx(64 * log2(1 / w)), "in every dimension"


@pytest.mark.equation("eq-eval-memory")
def test_what_a_memory_pays_for_an_unseen_image() -> None:
    """All 81 images of four pixels with three values; five of them are known."""
    G, D, w = 3, 4, 0.1
    images = list(product(range(G), repeat=D))
    known = [images[i] for i in rng(3).choice(81, 5, replace=False)]
    P = {
        x: (1 - w) / len(known) * sum(x == y for y in known) + w * G**-D for x in images
    }
    assert sum(P.values()) == pytest.approx(1)
    unseen = next(x for x in images if x not in known)
    cost = -log2(P[unseen])
    assert cost == pytest.approx(log2(1 / w) + D * log2(G))
    assert cost > D * log2(G), "more than knowing nothing"
    assert cost != pytest.approx(log2(1 / (1 - w)) + D * log2(G))
    assert -log2(P[known[0]]) < cost - 4


@pytest.mark.equation("eq-eval-bin", "eq-eval-dequantise", "eq-eval-units")
@pytest.mark.parametrize("levels", [5, 17, 256])
@pytest.mark.parametrize("share_of_bin", [0.2, 20.0])
def test_a_density_in_the_unit_of_probabilities(
    levels: int, share_of_bin: float
) -> None:
    """Two dimensions, normal law; the exact probability by scipy's distribution function and by the package."""
    delta = 2 / (levels - 1)
    scale = share_of_bin * delta
    law = stats.norm([0.3 * delta, -0.1 * delta], scale)
    x = np.array([0.0, delta if levels > 5 else 0.5])  # inner grey values
    probability = (law.cdf(x + delta / 2) - law.cdf(x - delta / 2)).prod()

    def mean_over_bin(function) -> float:
        total, _ = integrate.dblquad(
            lambda v, u: function(law.pdf(x + [u, v]).prod()),
            -delta / 2,
            delta / 2,
            -delta / 2,
            delta / 2,
        )
        return total / delta**2

    assert probability == pytest.approx(delta**2 * mean_over_bin(float), rel=1e-6)
    assert probability != pytest.approx(mean_over_bin(float), rel=1e-2)
    ours = gaussian.discretised_log_density(
        torch.from_numpy(x), *map(torch.as_tensor, (law.mean(), law.var())), levels
    )
    assert float(ours.sum()) == pytest.approx(log(probability), rel=1e-8)

    exact = -log2(probability) / 2
    density = mean_over_bin(lambda p: -np.log2(p)) / 2
    constant = log2((levels - 1) / 2)
    assert constant == pytest.approx(-log2(delta))
    if share_of_bin > 1:  # flat over the bin: equality
        assert density + constant == pytest.approx(exact, abs=1e-3)
        assert density - constant != pytest.approx(exact, abs=1), "the sign turned"
        assert density + log2(levels) != pytest.approx(exact, abs=0.5), "of [0, 1]"
        if levels < 256:
            assert density + log2(levels / 2) != pytest.approx(exact, abs=0.02)
    else:
        assert density + constant > exact + 0.1
        without_noise = -np.log2(stats.norm(0, scale).pdf(0)) + constant
        assert without_noise < 0, "no probability"


def test_the_constants_that_the_chapter_names() -> None:
    assert log2(255 / 2) == pytest.approx(6.99, abs=5e-3)
    assert log2(16 / 2) == 3


@pytest.mark.equation("eq-eval-standard-error")
def test_standard_error_is_that_of_scipy() -> None:
    total = torch.from_numpy(rng(4).gamma(3, size=40))
    nothing = torch.zeros(40, 0)
    bound = Bound(total, total, nothing, total, nothing.long(), torch.zeros(0))
    right = float(stats.sem(total.numpy()))
    assert bound.standard_error == pytest.approx(right)
    assert total.numpy().std() / 40**0.5 != pytest.approx(right, rel=1e-3), (
        "n for n - 1"
    )
    assert total.numpy().std(ddof=1) / 40 != pytest.approx(right, rel=1e-1)


# The distance.


@pytest.mark.equation("eq-eval-split", "eq-eval-square", "eq-eval-dual")
def test_what_a_coupling_can_change_and_its_ceiling() -> None:
    """For a law of 7 equally likely pairs that is not normal, with all moments exact."""
    for seed in range(20):
        x = rng(seed).gamma(1, size=(7, 3))
        y = rng(seed + 100).exponential(2, size=(7, 3)) + 0.5 * x
        a, b = x - x.mean(0), y - y.mean(0)
        C_x, C_y = a.T @ a / 7, b.T @ b / 7
        cost = ((x - y) ** 2).sum(1).mean()
        together = (a * b).sum(1).mean()
        apart = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(C_x + C_y)
        assert cost == pytest.approx(apart - 2 * together)
        assert cost != pytest.approx(apart - together, rel=1e-3)
        A = covariance(3, seed)
        half, back = root(A), np.linalg.inv(root(A))
        squares = ((a @ half - b @ back) ** 2).sum(1)
        written_out = np.einsum("ni,ij,nj->n", a, A, a) - 2 * (a * b).sum(1)
        written_out += np.einsum("ni,ij,nj->n", b, np.linalg.inv(A), b)
        np.testing.assert_allclose(squares, written_out, rtol=1e-7, atol=1e-9)
        ceiling = np.trace(A @ C_x) + np.trace(np.linalg.inv(A) @ C_y)
        assert 2 * together <= ceiling
        assert squares.mean() == pytest.approx(ceiling - 2 * together)
    # The ceiling needs the inverse: with A in both places it is broken for b = a and a small A.
    small = 0.1 * np.eye(3)
    assert not 2 * np.trace(C_x) <= np.trace(small @ C_x) + np.trace(small @ C_x)
    assert 2 * np.trace(C_x) <= np.trace(small @ C_x) + np.trace(10 * np.eye(3) @ C_x)


@pytest.mark.equation("eq-eval-riccati", "eq-eval-map")
def test_the_map_carries_one_covariance_to_the_other() -> None:
    C_x, C_y = covariance(4, 1), covariance(4, 2)
    inverse = np.linalg.inv(root(C_x))
    A = inverse @ root(root(C_x) @ C_y @ root(C_x)) @ inverse
    np.testing.assert_allclose(A, A.T, atol=1e-9)
    assert np.linalg.eigvalsh(A).min() > 0
    np.testing.assert_allclose(A @ C_x @ A, C_y, atol=1e-8)
    # It touches the ceiling from which the distance comes.
    ceiling = np.trace(A @ C_x) + np.trace(np.linalg.inv(A) @ C_y)
    assert ceiling == pytest.approx(2 * np.trace(A @ C_x))
    # Another map with the right covariance, C_y^½ C_x^-½, is not symmetric, and dearer.
    other = root(C_y) @ inverse
    np.testing.assert_allclose(other @ C_x @ other.T, C_y, atol=1e-8)
    assert np.trace(other @ C_x) < np.trace(A @ C_x) - 1e-3
    assert not np.allclose(inverse @ root(C_x @ C_y) @ inverse, A, atol=1e-3)


@pytest.mark.equation("eq-eval-frechet", "eq-eval-product")
def test_the_distance_and_its_look_alikes() -> None:
    x = rng(5).standard_normal((60, 3)) @ covariance(3, 3)
    y = rng(6).standard_normal((60, 3)) @ covariance(3, 4) + [1, 0, -1]
    ours = frechet_distance(torch.from_numpy(x), torch.from_numpy(y))
    C_x, C_y = np.cov(x.T), np.cov(y.T)
    apart = ((x.mean(0) - y.mean(0)) ** 2).sum()
    assert ours == pytest.approx(apart + box(C_x, C_y), rel=1e-7)
    total = apart + np.trace(C_x + C_y)
    eigenvalues = np.linalg.eigvals(C_x @ C_y).real
    assert ours == pytest.approx(total - 2 * np.sqrt(eigenvalues).sum(), rel=1e-7)
    symmetrised = (C_x @ C_y + C_y @ C_x) / 2
    T_x, T_y = np.cov(x), np.cov(y)
    wrong = {
        "entry by entry": total - 2 * np.trace(np.sqrt(np.abs(C_x @ C_y))),
        "product of the roots": total - 2 * np.trace(root(C_x) @ root(C_y)),
        "symmetrised": total - 2 * np.trace(linalg.sqrtm(symmetrised).real),
        "cross term once": total - np.sqrt(eigenvalues).sum(),
        "transposed": apart
        + np.trace(T_x + T_y)
        - 2 * np.sqrt(np.abs(np.linalg.eigvals(T_x @ T_y))).sum(),
        "means not squared": ours - apart + apart**0.5,
        "eigenvalues without root": total - 2 * eigenvalues.sum(),
    }
    for mistake, value in wrong.items():
        assert value != pytest.approx(ours, rel=1e-3), mistake


@pytest.mark.equation("eq-eval-frechet")
def test_no_pairing_of_points_is_cheaper() -> None:
    """The best pairing is found by an exact algorithm; the distance is a lower bound for any two sets of points.

    The covariances are divided by N here, since the points themselves are the law: N / (N - 1) times as much, and
    with it the trace part, is what the package gives.
    """
    for seed in range(5):
        x = rng(seed).gamma(2, size=(80, 2))
        y = rng(seed + 50).standard_normal((80, 2)) @ covariance(2, seed)
        costs = cdist(x, y, "sqeuclidean")
        cheapest = costs[linear_sum_assignment(costs)].mean()
        apart = ((x.mean(0) - y.mean(0)) ** 2).sum()
        bound = apart + box(np.cov(x.T, ddof=0), np.cov(y.T, ddof=0))
        assert bound <= cheapest
        assert bound > 0.4 * cheapest, "and not an idle one"
    # An affine image by a symmetric positive matrix is the best pairing, at exactly this cost.
    A = covariance(2, 9)
    y = x @ A + [3, 1]
    costs = cdist(x, y, "sqeuclidean")
    rows, columns = linear_sum_assignment(costs)
    apart = ((x.mean(0) - y.mean(0)) ** 2).sum()
    bound = apart + box(np.cov(x.T, ddof=0), np.cov(y.T, ddof=0))
    assert (rows == columns).all()
    assert costs[rows, columns].mean() == pytest.approx(bound, rel=1e-7)


def test_normal_laws_in_one_dimension_by_sympy() -> None:
    A, s_x, s_y = sp.symbols("A s_x s_y", positive=True)
    ceiling = A * s_x**2 + s_y**2 / A
    (lowest,) = sp.solve(sp.diff(ceiling, A), A)
    assert sp.simplify(lowest - s_y / s_x) == 0
    left = s_x**2 + s_y**2 - ceiling.subs(A, lowest)
    assert sp.expand(left - (s_x - s_y) ** 2) == 0


# Its bias.


@pytest.mark.equation("eq-eval-bias-mean", "eq-eval-wishart")
def test_how_far_means_and_covariances_are_off() -> None:
    """40,000 pairs of sets. Each mean has a relative standard error below 1.5 %; we allow four of them."""
    lam, N, M, repeats = np.array([2.0, 1.0, 0.3]), 25, 40, 40_000
    x, y = (rng(7 + n).standard_normal((repeats, n, 3)) * np.sqrt(lam) for n in (N, M))
    apart = ((x.mean(1) - y.mean(1)) ** 2).sum(1).mean()
    assert apart == pytest.approx((1 / N + 1 / M) * lam.sum(), rel=0.03)
    assert apart != pytest.approx(lam.sum() / (N + M), rel=0.03)
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    E = np.einsum("rni,rnj->rij", x, x) / (N - 1)
    E -= np.einsum("rni,rnj->rij", y, y) / (M - 1)
    found = (E**2).mean(0)
    right = (1 / (N - 1) + 1 / (M - 1)) * np.outer(lam, lam) * (1 + np.eye(3))
    np.testing.assert_allclose(found, right, rtol=0.06)
    assert not np.allclose(found, right / (1 + np.eye(3)), rtol=0.06)
    rough = (1 / N + 1 / M) * np.outer(lam, lam) * (1 + np.eye(3))
    np.testing.assert_allclose(
        found, rough, rtol=0.1
    )  # N - 1 for N, as the chapter says


@pytest.mark.equation("eq-eval-root-orders", "eq-eval-second-order")
def test_distance_of_neighbouring_covariances() -> None:
    """The exact box, for a perturbation that shrinks; the relative error of the second order shrinks with it."""
    lam = np.array([2.0, 1.0, 0.3])
    C, E = np.diag(lam), rng(8).standard_normal((3, 3))
    E = E + E.T
    sums = lam[:, None] + lam
    right = 0.5 * (E**2 / sums).sum()
    h = 1e-3
    found = box(C, C + h * E) / h**2
    assert found == pytest.approx(right, rel=0.02)
    for wrong in (2 * right, (E**2 / sums**2).sum(), (E**2 / np.outer(lam, lam)).sum()):
        assert found != pytest.approx(wrong, rel=0.02)
    # The orders one by one.
    F = np.sqrt(np.outer(lam, lam)) * E
    R = F / sums
    S_diagonal = -(R @ R).diagonal() / (2 * lam)
    exact = root(root(C) @ (C + h * E) @ root(C))
    np.testing.assert_allclose((exact - C) / h, R, atol=5e-3)
    np.testing.assert_allclose(
        (exact - C - h * R).diagonal() / h**2, S_diagonal, rtol=0.05
    )
    assert -2 * S_diagonal.sum() == pytest.approx(right)


@pytest.mark.equation("eq-eval-bias")
def test_distance_of_perfect_samples() -> None:
    """1,500 pairs of sets of one normal law. The mean has a standard error of about 1 %; orders beyond 1/N add some."""
    lam, N, M = np.array([3.0, 1.0, 1.0, 0.5, 0.2, 0.01]), 300, 200
    generator = torch.Generator().manual_seed(0)
    scale = torch.from_numpy(np.sqrt(lam))

    def draw(n: int) -> torch.Tensor:
        return scale * torch.randn(n, 6, generator=generator, dtype=torch.float64)

    found = np.mean([frechet_distance(draw(N), draw(M)) for _ in range(1500)])
    pairs = (np.outer(lam, lam) / (lam[:, None] + lam)).sum()
    shares = 1 / N + 1 / M
    assert found == pytest.approx(shares * (1.25 * lam.sum() + 0.5 * pairs), rel=0.04)
    for wrong in (
        shares * lam.sum(),
        shares * (lam.sum() + 0.5 * pairs),
        shares * (1.25 * lam.sum() + pairs),
        (1.25 * lam.sum() + 0.5 * pairs) / (N + M),
    ):
        assert found != pytest.approx(wrong, rel=0.04)
    D, one = sp.symbols("D lambda", positive=True)
    equal = sp.Rational(5, 4) * D * one + D**2 * (one**2 / (2 * one)) / 2
    assert sp.simplify(equal - one * D * (D + 5) / 4) == 0
    assert float((2048 + 5) / 4 * 2 / 5000) == pytest.approx(0.2, abs=0.01)


@pytest.mark.equation("eq-eval-extrapolate")
def test_extrapolation_takes_out_one_over_n() -> None:
    """For laws that differ; 4,000 sets each. The distance of the laws themselves is known from the box."""
    C_x, C_y = np.diag([1.0, 0.5, 2.0]), np.diag([1.5, 0.4, 1.0])
    truth = box(C_x, C_y)
    x = rng(10).standard_normal((2000, 80, 3)) * np.sqrt(C_x.diagonal())

    def distance(n: int) -> float:
        sets = x.reshape(-1, n, 3)
        return float(
            np.mean([((z.mean(0)) ** 2).sum() + box(np.cov(z.T), C_y) for z in sets])
        )

    at_n, at_half = distance(80), distance(40)
    assert abs(at_n - truth) > 0.05
    assert 2 * at_n - at_half == pytest.approx(truth, abs=0.01)
    assert 2 * at_half - at_n != pytest.approx(truth, abs=0.05), "the wrong way round"
    assert (at_n + at_half) / 2 != pytest.approx(truth, abs=0.05)
    a, b, N = sp.symbols("a b N", positive=True)
    law = sp.Lambda(N, a + b / N)
    assert sp.simplify(2 * law(N) - law(N / 2)) == a


# Balls, judges, copies.


@pytest.mark.equation("eq-eval-precision")
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_the_shares_in_balls(k: int) -> None:
    x, y = rng(11).standard_normal((30, 2)), rng(12).standard_normal((40, 2)) + 1

    def share(points: np.ndarray, centres: np.ndarray, k: int) -> float:
        radius = np.sort(cdist(centres, centres), axis=1)[:, k]
        return float((cdist(points, centres) <= radius).any(1).mean())

    right = [share(y, x, k), share(x, y, k)]
    assert precision_recall(*map(torch.from_numpy, (x, y)), k) == pytest.approx(right)
    assert right[0] != pytest.approx(right[1]), "exchanged"
    assert right != pytest.approx([share(y, x, k + 1), share(x, y, k + 1)])


@pytest.mark.equation("eq-eval-balls")
@pytest.mark.parametrize("law", ["normal", "cauchy"])
def test_a_perfect_sample_lies_in_k_balls_on_average(law: str) -> None:
    """20,000 sets of 12 points; the number of balls has a deviation below 2.5, the mean an error below 0.018."""
    N, k, repeats = 12, 3, 20_000
    draw = rng(13).standard_normal if law == "normal" else rng(13).standard_cauchy
    x, y = (
        torch.from_numpy(draw((repeats, N, 2))),
        torch.from_numpy(draw((repeats, 1, 2))),
    )
    radius = torch.cdist(x, x).topk(k + 1, largest=False).values[..., k]
    inside = (torch.cdist(y, x)[:, 0] <= radius).double()
    assert float(inside.sum(1).mean()) == pytest.approx(k, abs=0.09)
    assert float(inside[:, 0].mean()) == pytest.approx(k / N, abs=0.02)
    for wrong in (k - 1, k * N / (N + 1), k * N / (N - 1)):
        assert float(inside.sum(1).mean()) != pytest.approx(wrong, abs=0.09)


@pytest.mark.equation("eq-eval-best-accuracy")
@pytest.mark.parametrize("d", [0.5, 2.0])
def test_the_best_judge_of_two_normal_laws(d: float) -> None:
    p, q = stats.norm(0, 1), stats.norm(d, 1)
    area, _ = integrate.quad(
        lambda x: abs(p.pdf(x) - q.pdf(x)), -10, 12, points=[d / 2]
    )
    right = stats.norm.cdf(d / 2)  # the threshold in the middle
    assert 0.5 + area / 4 == pytest.approx(right, rel=1e-7)
    assert 0.5 + area / 2 != pytest.approx(right, rel=1e-2)
    assert area / 2 != pytest.approx(right, rel=1e-2), "the total variation itself"
    for threshold in (d / 2 - 0.3, d / 2 + 0.3):
        assert (p.cdf(threshold) + q.sf(threshold)) / 2 < right


@pytest.mark.equation("eq-eval-ratio")
def test_the_ratio_compares_with_the_neighbours_own_neighbour() -> None:
    x, train = rng(14).standard_normal((25, 3)), rng(15).standard_normal((40, 3))
    ratio, index = nearest_neighbours(*map(torch.from_numpy, (x, train)))
    to_train, among = cdist(x, train), cdist(train, train)
    np.fill_diagonal(among, np.inf)
    i = to_train.argmin(1)
    assert (index.numpy() == i).all()
    np.testing.assert_allclose(ratio, to_train.min(1) / among[i].min(1), rtol=1e-6)
    second = np.sort(to_train, axis=1)[:, 1]
    assert not np.allclose(ratio, to_train.min(1) / second, rtol=1e-2)


@pytest.mark.equation("eq-eval-alarm")
@pytest.mark.parametrize(
    ("n", "M", "j", "c"), [(5, 6, 1, 2), (6, 5, 2, 3), (4, 7, 3, 4)]
)
def test_false_alarms_are_counted_over_all_orders(
    n: int, M: int, j: int, c: int
) -> None:
    alarms, counts = [], []
    for held_out in combinations(range(n + M), M):  # their places in the common order
        below = held_out[j - 1] - (j - 1)  # samples before the j-th of them
        counts.append(below)
        alarms.append(below >= c)
    right = np.mean(alarms)

    def formula(d: int) -> float:
        return sum(comb(M, h) * comb(n, d - h) for h in range(j)) / comb(n + M, d)

    assert formula(c + j - 1) == pytest.approx(right)
    assert formula(c + j - 1) == pytest.approx(
        stats.hypergeom(n + M, M, c + j - 1).cdf(j - 1)
    )
    assert np.mean(counts) == pytest.approx(n * j / (M + 1))
    assert formula(c + j) != pytest.approx(right, rel=0.05)
    independent = stats.binom(n, j / (M + 1)).sf(
        c - 1
    )  # forgets that the threshold is an estimate
    assert independent != pytest.approx(right, rel=0.05)


def test_thirteen_of_three_hundred() -> None:
    """The numbers of the chapter: the first c with fewer than 1 % of false alarms."""
    alarm = [stats.hypergeom(660, 360, c + 4).cdf(4) for c in (12, 13)]
    assert alarm[0] > 0.01 > alarm[1]
