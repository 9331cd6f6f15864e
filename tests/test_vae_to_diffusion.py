"""The equations of chapter 3, each by a route of its own, and the mistakes that people make with them.

Laws of discrete chains are enumerated, so that every bound, gap and divergence is a finite sum. The mistakes: the KL
the wrong way round, the term of the last latent or those of the encoder forgotten, a model that is not Markovian taken
for one that is, and a gap in only one of the layers.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import sympy as sp
import torch
from scipy import integrate, stats

import ddpm_lite
from ddpm_lite import symbolic

STATES, LAYERS = 3, 3
PATHS = list(itertools.product(range(STATES), repeat=LAYERS))  # (z_1, z_2, z_3)

x, u = sp.symbols("x u", real=True)
beta, delta, kappa = sp.symbols("beta delta kappa", positive=True)


def table(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random conditional probabilities: the last axis sums to one."""
    weights = rng.uniform(0.1, 1, size=shape)
    return weights / weights.sum(-1, keepdims=True)


class Hierarchy:
    """A Markovian hierarchy on finitely many values, with an encoder; x is the value 1 of z_0."""

    seen = 1

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.top = table(rng, STATES)
        self.down = [
            table(rng, STATES, STATES) for _ in range(LAYERS)
        ]  # [t - 1][z_t, z_{t-1}]
        self.up = [
            table(rng, STATES, STATES) for _ in range(LAYERS)
        ]  # [t - 1][z_{t-1}, z_t]

    def joint(self, path: tuple[int, ...]) -> float:
        z = (self.seen, *path)
        steps = [self.down[t][z[t + 1], z[t]] for t in range(LAYERS)]
        return float(self.top[z[-1]] * np.prod(steps))

    def encoder(self, path: tuple[int, ...]) -> float:
        z = (self.seen, *path)
        return float(np.prod([self.up[t][z[t], z[t + 1]] for t in range(LAYERS)]))

    def evidence(self) -> float:
        """By matrix products, from the top down: no sum over paths."""
        law = self.top
        for step in self.down[::-1]:
            law = law @ step
        return float(law[self.seen])

    def average(self, f) -> float:
        return sum(self.encoder(path) * f(path) for path in PATHS)

    def elbo(self) -> float:
        """The boxed bound: the last latent, and one fraction for each layer."""
        total = self.average(lambda path: np.log(self.top[path[-1]]))
        for t in range(LAYERS):
            total += self.fraction(t)
        return total

    def fraction(self, t: int) -> float:
        def of_path(path: tuple[int, ...]) -> float:
            z = (self.seen, *path)
            return float(
                np.log(self.down[t][z[t + 1], z[t]] / self.up[t][z[t], z[t + 1]])
            )

        return self.average(of_path)

    def posterior_step(self, t: int) -> np.ndarray:
        """p(z_{t+1} | z_t) for all pairs, by Bayes' rule from the marginal laws of the model."""
        law = self.top
        for step in self.down[:t:-1]:
            law = law @ step
        joint = self.down[t] * law[:, None]  # [z_{t+1}, z_t]
        return (joint / joint.sum(0)).T


def kl(q: np.ndarray, p: np.ndarray) -> float:
    return float((q * np.log(q / p)).sum())


@pytest.mark.equation("eq-hvae-slopes")
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_slopes_of_a_chain_multiply(steps: int) -> None:
    c, K = sp.symbols("c K", positive=True)
    chain = x
    for _ in range(steps):
        chain = c * sp.tanh(K / c * chain)
    slope = sp.simplify(sp.diff(chain, x).subs(x, 0))
    assert slope == K**steps
    if steps > 1:
        assert slope != steps * K
    assert (
        sp.simplify(
            sp.diff(c * sp.tanh(K / c * x), x) - K * (1 - sp.tanh(K * x / c) ** 2)
        )
        == 0
    )  # at most K


@pytest.mark.equation(
    "eq-hvae-importance", "eq-hvae-bound", "eq-hvae-sums", "eq-hvae-elbo", "eq-hvae-gap"
)
@pytest.mark.parametrize("seed", range(5))
def test_bound_and_gap_by_enumeration(seed: int) -> None:
    model = Hierarchy(seed)
    evidence = model.evidence()
    assert model.average(
        lambda path: model.joint(path) / model.encoder(path)
    ) == pytest.approx(evidence, rel=1e-12)

    bound = model.average(lambda path: np.log(model.joint(path) / model.encoder(path)))
    assert bound < np.log(evidence)
    assert np.exp(bound) != pytest.approx(
        evidence, rel=1e-3
    )  # log and average exchanged
    assert model.elbo() == pytest.approx(bound, rel=1e-12)

    encoder = np.array([model.encoder(path) for path in PATHS])
    posterior = np.array([model.joint(path) for path in PATHS]) / evidence
    gap = np.log(evidence) - bound
    assert gap == pytest.approx(kl(encoder, posterior), rel=1e-10)
    assert gap != pytest.approx(kl(posterior, encoder), rel=1e-3)  # the wrong way round

    without_top = bound - model.average(lambda path: np.log(model.top[path[-1]]))
    without_encoder = model.average(lambda path: np.log(model.joint(path)))
    entropies = -model.average(lambda path: np.log(model.encoder(path)))
    assert without_top != pytest.approx(bound, rel=1e-3)
    assert without_encoder + entropies == pytest.approx(bound, rel=1e-12)
    assert without_encoder != pytest.approx(bound, rel=1e-3)


@pytest.mark.equation("eq-hvae-sums")
@pytest.mark.parametrize("seed", range(5))
def test_bound_as_two_sums(seed: int) -> None:
    """Term by term, each averaged under the law of its own variables, found by matrix products."""
    model = Hierarchy(seed)
    laws = [np.eye(STATES)[model.seen]]
    for step in model.up:
        laws.append(laws[-1] @ step)
    total = laws[-1] @ np.log(model.top)
    for t in range(LAYERS):
        pair = laws[t][:, None] * model.up[t]  # law of (z_t, z_{t+1})
        total += (pair * np.log(model.down[t]).T).sum()
        total -= (pair * np.log(model.up[t])).sum()
    assert total == pytest.approx(model.elbo(), rel=1e-12)
    last = (laws[-2][:, None] * model.up[-1] * np.log(model.up[-1])).sum()
    assert total + last != pytest.approx(
        model.elbo(), rel=1e-3
    )  # one encoder term forgotten


@pytest.mark.equation("eq-hvae-posterior", "eq-hvae-gap-steps")
@pytest.mark.parametrize("seed", range(5))
def test_posterior_is_markovian_and_the_gap_a_sum_over_layers(seed: int) -> None:
    model = Hierarchy(seed)
    evidence = model.evidence()
    steps = [model.posterior_step(t) for t in range(LAYERS)]
    for path in PATHS:
        z = (model.seen, *path)
        product = np.prod([steps[t][z[t], z[t + 1]] for t in range(LAYERS)])
        assert model.joint(path) / evidence == pytest.approx(product, rel=1e-12)

    law, prices = np.eye(STATES)[model.seen], []
    for t in range(LAYERS):
        prices.append(
            sum(law[i] * kl(model.up[t][i], steps[t][i]) for i in range(STATES))
        )
        law = law @ model.up[t]
    gap = np.log(evidence) - model.elbo()
    assert sum(prices) == pytest.approx(gap, rel=1e-10)
    assert all(price > 0 for price in prices)
    assert prices[0] != pytest.approx(gap, rel=1e-2)  # the first layer alone

    model.up = steps  # the exact posterior closes the gap
    assert model.elbo() == pytest.approx(np.log(evidence), rel=1e-12)


@pytest.mark.equation("eq-hvae-posterior")
def test_posterior_of_a_general_hierarchy_is_not_markovian() -> None:
    """p(x | z_1, z_2) that looks at both latents: then z_2 given z_1 still depends on x."""
    rng = np.random.default_rng(0)
    top, middle, data = (
        table(rng, 2),
        table(rng, 2, 2),
        table(rng, 2, 2, 2),
    )  # z_2; z_2, z_1; z_2, z_1, x
    joint = top[:, None, None] * middle[:, :, None] * data
    given_both = joint / joint.sum(0)  # p(z_2 | z_1, x)
    assert np.abs(given_both[:, :, 0] - given_both[:, :, 1]).max() > 0.05
    markovian = top[:, None, None] * middle[:, :, None] * data[0]
    given_both = markovian / markovian.sum(0)
    assert np.abs(given_both[:, :, 0] - given_both[:, :, 1]).max() < 1e-12


@pytest.mark.equation("eq-hvae-linear-evidence", "eq-hvae-linear-posterior")
def test_linear_chain_by_completing_the_square() -> None:
    w, z = sp.symbols("w z", real=True)
    s, V = sp.symbols("s V", positive=True)
    joint = symbolic.log_density(x, w * z, s**2) + symbolic.log_density(z, 0, V)
    before = w**2 * V + s**2
    posterior = symbolic.complete_the_square(joint, z)
    assert sp.simplify(posterior.mean - w * V / before * x) == 0
    assert sp.simplify(posterior.variance - s**2 * V / before) == 0
    assert (
        sp.simplify(posterior.variance - s**2 / (w**2 + s**2)) != 0
    )  # the prior's variance taken for 1

    evidence = sp.expand(joint - symbolic.log_density(z, *posterior))
    law = symbolic.complete_the_square(evidence, x)
    assert (sp.simplify(law.mean), sp.simplify(law.variance - before)) == (0, 0)
    assert sp.simplify(law.variance - (w * V + s**2)) != 0  # the slope not squared


@pytest.mark.equation("eq-hvae-gauss-kl")
@pytest.mark.parametrize("T", [1, 2, 5])
def test_kl_of_normal_laws_in_several_dimensions(T: int) -> None:
    """Against PyTorch's own."""
    rng = np.random.default_rng(T)
    mean_q, mean_p = rng.normal(size=(2, T))
    roots = rng.normal(size=(2, T, T))
    cov_q, cov_p = roots @ roots.transpose(0, 2, 1) + 0.3 * np.eye(T)
    offset, inverse = mean_p - mean_q, np.linalg.inv(cov_p)
    logs = np.log(np.linalg.det(cov_p) / np.linalg.det(cov_q))
    ours = (np.trace(inverse @ cov_q) - T + logs + offset @ inverse @ offset) / 2
    laws = [
        torch.distributions.MultivariateNormal(torch.tensor(mean), torch.tensor(cov))
        for mean, cov in ((mean_q, cov_q), (mean_p, cov_p))
    ]
    theirs = torch.distributions.kl_divergence(*laws).item()
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert (ours - logs) != pytest.approx(
        theirs, rel=1e-3
    )  # the determinants the wrong way up
    assert ours + T / 2 != pytest.approx(theirs, rel=1e-3)  # without -T


@pytest.mark.equation("eq-hvae-top-cost")
def test_cost_of_a_top_layer() -> None:
    """From the densities: the average of log q(z_1) q(z_2|z_1) - log p(z_2) p(z_1|z_2), z_2 = c z_1 + noise."""
    a, c = sp.symbols("a c", real=True)
    e_1, e_2 = sp.symbols("e_1 e_2", real=True)
    z_1, z_2 = e_1, c * e_1 + sp.sqrt(1 - c**2) * e_2
    log = symbolic.log_density
    ratio = (
        log(z_1, 0, 1)
        + log(z_2, c * z_1, 1 - c**2)
        - log(z_2, 0, 1)
        - log(z_1, a * z_2, 1 - a**2)
    )
    moments = {0: 1, 1: 0, 2: 1}
    average = sum(
        factor * moments[i] * moments[j]
        for (i, j), factor in sp.Poly(sp.expand(ratio), e_1, e_2).terms()
    )
    stated = (1 - a * c) / (1 - a**2) - 1 + sp.log((1 - a**2) / (1 - c**2)) / 2
    wrong = (
        (1 - a * c) / (1 - c**2) - 1 + sp.log((1 - c**2) / (1 - a**2)) / 2
    )  # KL(p || q)
    for values in ({a: 0.3, c: 0.7}, {a: -0.5, c: 0.2}, {a: 0.9, c: 0.0}):
        number = float(average.subs(values))
        assert number == pytest.approx(float(stated.subs(values)), rel=1e-12)
        assert number != pytest.approx(float(wrong.subs(values)), rel=1e-3)
    assert sp.simplify(sp.diff(average - stated, a)) == 0
    assert sp.simplify(sp.diff(average - stated, c)) == 0
    assert stated.subs(c, a).simplify() == 0  # the valley


@pytest.mark.equation("eq-hvae-one-shot")
def test_one_shot_is_the_chain_and_the_package() -> None:
    """The covariance of (x_0, x_t), step by step, against √ᾱ_t and 1 - ᾱ_t, and against q_sample."""
    schedule = ddpm_lite.linear_schedule(T=40)
    diffusion = ddpm_lite.GaussianDiffusion(schedule)
    scale, variance, product = 1.0, 0.0, 1.0
    one = torch.ones(1, 1, dtype=torch.float64)
    for t in range(1, 41):
        step = float(schedule.beta[t])
        scale, variance = (1 - step) ** 0.5 * scale, (1 - step) * variance + step
        product *= 1 - step
        assert scale == pytest.approx(product**0.5, rel=1e-12)
        assert variance == pytest.approx(1 - product, rel=1e-12)
        assert diffusion.q_sample(one, t, 0 * one).item() == pytest.approx(
            scale, rel=1e-12
        )
        assert diffusion.q_sample(0 * one, t, one).item() == pytest.approx(
            variance**0.5, rel=1e-12
        )
    assert scale != pytest.approx(product, rel=0.1)  # ᾱ without its root


@pytest.mark.equation("eq-hvae-excess", "eq-hvae-total-cost")
@pytest.mark.parametrize("seed", range(5))
def test_what_a_fixed_encoder_costs_by_enumeration(seed: int) -> None:
    """x_0, ..., x_3 with finitely many values; the encoder is any chain, the law of x_0 any law."""
    model = Hierarchy(seed)
    data = table(np.random.default_rng(100 + seed), STATES)
    entropy = -(data * np.log(data)).sum()
    minus_bound = 0.0
    for value in range(STATES):
        model.seen = value
        minus_bound -= data[value] * model.elbo()
    q, p = [], []
    for z in itertools.product(range(STATES), repeat=LAYERS + 1):
        q.append(
            data[z[0]] * np.prod([model.up[t][z[t], z[t + 1]] for t in range(LAYERS)])
        )
        p.append(
            model.top[z[-1]]
            * np.prod([model.down[t][z[t + 1], z[t]] for t in range(LAYERS)])
        )
    of_paths = kl(np.array(q), np.array(p))
    assert minus_bound - entropy == pytest.approx(of_paths, rel=1e-10)

    law, steps = data, 0.0
    for t in range(LAYERS):
        joint = law[:, None] * model.up[t]  # x_t, x_{t+1}
        law = joint.sum(0)
        steps += sum(
            law[j] * kl(joint[:, j] / law[j], model.down[t][j]) for j in range(STATES)
        )
    start = kl(law, model.top)
    assert start + steps == pytest.approx(of_paths, rel=1e-10)
    assert steps != pytest.approx(of_paths, rel=1e-3)  # the start forgotten


@pytest.mark.equation("eq-hvae-reverse-tilt")
def test_forward_density_is_a_bell_in_the_earlier_state() -> None:
    x_t = sp.Symbol("x_t", real=True)
    forward = symbolic.log_density(x_t, sp.sqrt(1 - beta) * x, beta)
    y, width = symbolic.complete_the_square(forward, x)
    assert sp.simplify(y - x_t / sp.sqrt(1 - beta)) == 0
    assert sp.simplify(width - beta / (1 - beta)) == 0
    assert sp.simplify(width - beta) != 0


@pytest.mark.equation("eq-hvae-log-expand")
def test_expansion_in_widths_of_the_bell() -> None:
    y = sp.Symbol("y", real=True)
    log_law = sp.log(
        sp.exp(-((y + 1) ** 2) / 3) + 2 * sp.exp(-((y - 2) ** 2))
    )  # any smooth function would do
    exponent = -(u**2) / 2 + log_law.subs(y, y + sp.sqrt(kappa) * u)
    for order, factor in (
        (0, 1),
        (1, 1),
        (2, sp.Rational(1, 2)),
        (3, sp.Rational(1, 6)),
    ):
        coefficient = sp.diff(exponent + u**2 / 2, u, order).subs(u, 0) / sp.factorial(
            order
        )
        stated = factor * kappa ** sp.Rational(order, 2) * sp.diff(log_law, y, order)
        numbers = {y: 0.4, kappa: 0.09}
        assert float(coefficient.subs(numbers)) == pytest.approx(
            float(stated.subs(numbers)), rel=1e-10
        )
        if order > 0:
            wrong = factor * kappa**order * sp.diff(log_law, y, order)
            assert float(coefficient.subs(numbers)) != pytest.approx(
                float(wrong.subs(numbers)), rel=1e-2
            )


@pytest.mark.equation("eq-hvae-step-kl")
def test_price_of_a_cubic_term() -> None:
    """The law proportional to φ(u) exp(δ u³/6), to second order in δ, and the normal law of its mean and variance."""

    def moment(power: int) -> sp.Expr:
        """E[u^power] to second order, not yet normalised; 0!! and so on are those of φ."""
        weights = (1, delta / 6, delta**2 / 72)
        even = [
            (power + 3 * k, weight)
            for k, weight in enumerate(weights)
            if (power + 3 * k) % 2 == 0
        ]
        return sum(weight * sp.factorial2(n - 1) for n, weight in even)

    total = moment(0)
    mean, square, cube = (moment(k) / total for k in (1, 2, 3))
    variance = square - mean**2
    # log of the law over φ, less log of the normal law over φ, averaged under the law
    own = delta / 6 * cube - sp.log(total)
    fitted = -sp.log(variance) / 2 - sp.Rational(1, 2) + square / 2
    divergence = sp.series(own - fitted, delta, 0, 3).removeO()
    assert sp.simplify(divergence - delta**2 / 12) == 0
    no_fit = sp.series(own, delta, 0, 3).removeO()  # against φ itself
    assert sp.simplify(no_fit - delta**2 / 12) != 0


@pytest.mark.equation("eq-hvae-step-kl", "eq-hvae-two-humps")
def test_price_of_a_step_on_two_humps() -> None:
    """One x_t, adaptive integration; the ratio to the stated price tends to 1, and the power is 3, not 2."""
    alpha_bar = 0.7
    variance = 0.04 * alpha_bar + 1 - alpha_bar

    def density(at: np.ndarray) -> np.ndarray:
        humps = [
            stats.norm(place * alpha_bar**0.5, variance**0.5).pdf(at)
            for place in (-1, 1)
        ]
        return (humps[0] + humps[1]) / 2

    def noisy(at: float) -> float:
        """q(x_t) as an average over the data, not by the formula."""

        def inside(x_0: float) -> float:
            data = (stats.norm(-1, 0.2).pdf(x_0) + stats.norm(1, 0.2).pdf(x_0)) / 2
            return data * stats.norm(alpha_bar**0.5 * x_0, (1 - alpha_bar) ** 0.5).pdf(
                at
            )

        return integrate.quad(inside, -3, 3, points=[-1, 1])[0]

    for at in (-1.3, 0.0, 0.6):
        assert density(at) == pytest.approx(noisy(at), rel=1e-8)
    without_scaling = (
        stats.norm(1, variance**0.5).pdf(0.6) / 2
        + stats.norm(-1, variance**0.5).pdf(0.6) / 2
    )
    assert without_scaling != pytest.approx(noisy(0.6), rel=1e-2)

    place, v = sp.sqrt(sp.Float(alpha_bar, 30)), sp.Float(variance, 30)
    log_law = sp.log(
        sp.exp(-((x - place) ** 2) / (2 * v)) + sp.exp(-((x + place) ** 2) / (2 * v))
    )
    third = float(sp.diff(log_law, x, 3).subs(x, sp.Float(0.3, 30)))

    def price(step: float) -> float:
        width = (step / (1 - step)) ** 0.5
        grid = 0.3 + width * np.linspace(-12, 12, 4001)
        law = density(grid) * stats.norm(0.3, width).pdf(grid)
        law /= integrate.simpson(law, x=grid)
        mean = integrate.simpson(law * grid, x=grid)
        spread = integrate.simpson(law * (grid - mean) ** 2, x=grid)
        fitted = stats.norm(mean, spread**0.5).logpdf(grid)
        return integrate.simpson(law * (np.log(law) - fitted), x=grid)

    ratios = [
        price(step) / ((step / (1 - step)) ** 3 / 12 * third**2)
        for step in (0.016, 0.004, 0.001)
    ]
    errors = [abs(ratio - 1) for ratio in ratios]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.03
    assert price(0.004) / price(0.002) == pytest.approx(8, rel=0.1)  # and not 4


@pytest.mark.equation("eq-hvae-learned")
def test_terms_of_the_encoder_have_no_gradient() -> None:
    """The gradient of the whole bound is that of the sum of log p(x_{t-1} | x_t), when q is fixed; not otherwise."""
    torch.manual_seed(0)
    beta_t = torch.full((3,), 0.3, dtype=torch.float64, requires_grad=True)
    slope = torch.full((3,), 0.8, dtype=torch.float64, requires_grad=True)
    path = [torch.randn(500, dtype=torch.float64)]
    decoder = others = torch.zeros((), dtype=torch.float64)

    def log_normal(at, mean, variance):
        return torch.distributions.Normal(mean, variance**0.5).log_prob(at).mean()

    for t in range(3):
        mean = (1 - beta_t[t]).sqrt() * path[-1]
        path.append(mean + beta_t[t].sqrt() * torch.randn(500, dtype=torch.float64))
        decoder = decoder + log_normal(path[-2], slope[t] * path[-1], torch.tensor(0.4))
        others = others - log_normal(path[-1], mean, beta_t[t])
    others = others + log_normal(
        path[-1], torch.zeros(500, dtype=torch.float64), torch.tensor(1.0)
    )
    whole = torch.autograd.grad(decoder + others, slope, retain_graph=True)[0]
    part = torch.autograd.grad(decoder, slope, retain_graph=True)[0]
    assert torch.equal(whole, part)
    of_encoder = torch.autograd.grad(others, (beta_t, slope), allow_unused=True)
    assert of_encoder[0].abs().max() > 0.1  # a learned encoder may not leave them out
    assert of_encoder[1] is None
