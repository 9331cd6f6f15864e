"""The equations of chapter 9, each by a route of its own, and the wrong versions that people write.

The wrong versions: Adam without the repair of its start, clipping by entry, an average with d and 1 - d exchanged,
independent weights where neighbours are alike, a variance without the part that is due to the times.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import sympy as sp
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ddpm_lite import GaussianDiffusion, linear_schedule, simple_loss
from ddpm_lite.train import train

k, i, j, m = sp.symbols("k i j m", integer=True, nonnegative=True)


def same(left: sp.Expr, right: sp.Expr) -> bool:
    """Whether two expressions are equal for all values of their symbols."""
    return sp.simplify(left - right) == 0


# Adam.


def adam(gradients: np.ndarray, rate: float, repair: bool = True) -> np.ndarray:
    """The weight after each step, from 0, by the formula of the chapter."""
    weight = mean = square = 0.0
    places = []
    for step, gradient in enumerate(gradients, start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        top, below = mean, square
        if repair:
            top, below = mean / (1 - 0.9**step), square / (1 - 0.999**step)
        weight -= rate * top / (math.sqrt(below) + 1e-8)
        places.append(weight)
    return np.array(places)


def torch_adam(gradients: np.ndarray, rate: float) -> np.ndarray:
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=rate)
    places = []
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        places.append(weight.item())
    return np.array(places)


@pytest.mark.equation("eq-train-adam")
def test_adam_is_that_of_torch() -> None:
    gradients = np.random.default_rng(0).standard_normal(200) + 0.3
    expected = torch_adam(gradients, 0.01)
    assert adam(gradients, 0.01) == pytest.approx(expected, rel=1e-9)
    assert adam(gradients, 0.01, repair=False) != pytest.approx(expected, rel=0.1)
    scaled = torch_adam(
        1000 * gradients, 0.01
    )  # the size of the gradient cancels, but for 1e-8
    assert scaled == pytest.approx(expected, rel=1e-5)


@pytest.mark.equation("eq-train-adam-first")
def test_first_step_of_adam_knows_only_the_sign() -> None:
    g, rate, delta, b_1, b_2 = sp.symbols("g eta delta b_1 b_2", positive=True)

    def first(gradient: sp.Expr, repair: bool) -> sp.Expr:
        mean, square = (1 - b_1) * gradient, (1 - b_2) * gradient**2
        if repair:
            mean, square = mean / (1 - b_1), square / (1 - b_2)
        return -rate * mean / (sp.sqrt(square) + delta)

    for sign in (1, -1):
        gradient = sign * g
        claimed = -rate * gradient / (sp.Abs(gradient) + delta)
        assert same(first(gradient, True), claimed)
        assert sp.limit(claimed, delta, 0) == -rate * sign
        assert not same(first(gradient, False), claimed)
    for gradient in (1e-4, -3.0, 1e5):
        assert torch_adam(np.array([gradient]), 0.01)[0] == pytest.approx(
            -0.01 * np.sign(gradient), rel=1e-3
        )


@pytest.mark.equation("eq-train-spike")
@pytest.mark.parametrize("spike", [-5.0, 30.0, 1000.0])
def test_one_large_gradient_lames_adam(spike: float) -> None:
    """m and v are at 1 when the spike comes; the repair of the start is then over."""
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=1.0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    for name in ("exp_avg", "exp_avg_sq"):
        optimizer.state[weight][name].fill_(1.0)
    optimizer.state[weight]["step"].fill_(100_000)
    steps = []
    for number in range(3000):
        weight.grad.fill_(spike if number == 0 else 1.0)
        before = weight.item()
        optimizer.step()
        steps.append(before - weight.item())
    later = np.arange(3000)
    mean = 1 + 0.1 * 0.9**later * (spike - 1)
    assert steps == pytest.approx(
        mean / np.sqrt(1 + 0.001 * 0.999**later * (spike**2 - 1)), rel=1e-6
    )
    wrong = mean / np.sqrt(1 + 0.001 * 0.9**later * (spike**2 - 1))  # b_1 for b_2
    assert steps != pytest.approx(wrong, rel=1e-3)


@pytest.mark.equation("eq-train-rate")
def test_rate_of_the_package() -> None:
    rates = []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    options = {"steps": 50, "batch_size": 4, "learning_rate": 0.2, "warmup": 7}
    list(
        train(
            Line(), GaussianDiffusion(linear_schedule()), torch.zeros(4, 1), **options
        )
    )
    handle.remove()
    eta, w, K = 0.2, 7, 50
    formula = [
        eta * min(1, n / w) * (1 + math.cos(math.pi * (n - 1) / K)) / 2
        for n in range(1, 51)
    ]
    at_zero = [
        eta * min(1, (n - 1) / w) * (1 + math.cos(math.pi * n / K)) / 2
        for n in range(1, 51)
    ]
    assert rates == pytest.approx(formula, rel=1e-12)
    assert rates != pytest.approx(at_zero, rel=1e-3)


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.slope * x_t


@pytest.mark.equation("eq-train-clip")
@pytest.mark.parametrize("largest", [0.1, 1.0, 50.0])
def test_clipping_keeps_the_direction_of_the_whole_gradient(largest: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.zeros(n, requires_grad=True) for n in (3, 40)]
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)
    g = torch.cat([weight.grad for weight in weights])
    torch.nn.utils.clip_grad_norm_(weights, largest)
    clipped = torch.cat([weight.grad for weight in weights])
    torch.testing.assert_close(
        clipped, g * min(1.0, largest / g.norm().item()), rtol=1e-5, atol=0
    )
    if largest <= 1:
        assert not torch.allclose(clipped, g.clamp(-largest, largest), rtol=0.01)
    else:
        assert torch.equal(clipped, g)


# Jitter and averages.

a, d, h, eta, sigma, V = sp.symbols("a d h eta sigma V", positive=True)


@pytest.mark.equation("eq-train-toy", "eq-train-jitter")
def test_settled_variance_of_gradient_descent() -> None:
    theta, xi = sp.symbols("theta xi")
    gradient = sp.diff(h * theta**2 / 2, theta) + sigma * xi
    step = sp.expand(theta - eta * gradient)
    assert same(step.coeff(theta), 1 - eta * h)
    assert same(step.coeff(xi), -eta * sigma)
    after = step.coeff(theta) ** 2 * V + step.coeff(xi) ** 2
    (settled,) = sp.solve(sp.Eq(V, after), V)
    claimed = eta * sigma**2 / (h * (2 - eta * h))
    assert same(settled, claimed)
    assert same(settled, (eta**2 * sigma**2 / (1 - a**2)).subs(a, 1 - eta * h))
    assert same(h * settled / 2, eta * sigma**2 / (2 * (2 - eta * h)))
    assert sp.limit(h * settled / 2 / eta, eta, 0) == sigma**2 / 4
    assert not same(settled, eta**2 * sigma**2)  # the noise of one step only
    assert not same(settled, eta * sigma**2 / (2 * h))  # what holds for small rates


@pytest.mark.equation("eq-train-ema-variance")
def test_settled_variance_of_the_average() -> None:
    """By the sum over all pairs of ages, not by the recursion of the chapter."""
    formula = (1 - d) / (1 + d) * (1 + a * d) / (1 - a * d)
    p, q = sp.symbols("p q", positive=True)  # values below 1, for the geometric series
    equal_ages = (1 - q) ** 2 / (1 - q**2)
    # Σ_i Σ_{n ≥ 1} 2 (1-d)² d^i d^(i+n) a^n
    different_ages = 2 * (1 - q) ** 2 / (1 - q**2) * (p * q / (1 - p * q))
    total = (equal_ages + different_ages).subs({p: a, q: d})
    assert same(total, formula)
    independent = (1 - d) / (1 + d)
    assert not same(total, independent)
    for decay, memory in itertools.product((0.3, 0.9, 0.98), (0.2, 0.9)):
        ages = np.arange(3000)
        share = (1 - decay) * decay**ages
        covariance = memory ** np.abs(ages[:, None] - ages)
        numeric = share @ covariance @ share
        values = {a: memory, d: decay}
        assert numeric == pytest.approx(float(formula.subs(values)), rel=1e-9)
        assert numeric != pytest.approx(float(independent.subs(values)), rel=0.05)


@pytest.mark.equation("eq-train-ema-sum")
def test_average_as_a_sum() -> None:
    theta = sp.symbols("theta_0:7")
    average = theta[0]
    for step in range(1, 7):
        average = average + (1 - d) * (theta[step] - average)
        claimed = (1 - d) * sum(
            d**age * theta[step - age] for age in range(step)
        ) + d**step * theta[0]
        without_start = (1 - d) * sum(d**age * theta[step - age] for age in range(step))
        assert same(average, claimed)
        assert not same(average, without_start)
        assert same(claimed.subs(dict.fromkeys(theta, 1)), 1)  # the shares sum to 1


@pytest.mark.equation("eq-train-ema-size")
def test_mean_age_and_sum_of_squared_shares() -> None:
    r = sp.Rational(9, 10)
    for decay in (r, sp.Rational(1, 2), sp.Rational(999, 1000)):
        ages = sp.summation((1 - decay) * decay**i * i, (i, 0, sp.oo))
        squares = sp.summation((1 - decay) ** 2 * decay ** (2 * i), (i, 0, sp.oo))
        assert ages == decay / (1 - decay)
        assert squares == (1 - decay) / (1 + decay)
        assert ages != 1 / (1 - decay)
        assert squares != 1 - decay


@pytest.mark.equation("eq-train-ema", "eq-train-ema-decay")
@pytest.mark.parametrize("largest", [0.0, 0.4, 0.999])
def test_average_of_the_package(largest: float) -> None:
    torch.manual_seed(0)
    model = Line()
    start = model.slope.item()
    average = constant = swapped = start
    options = {"steps": 30, "batch_size": 4, "learning_rate": 0.1, "warmup": 0}
    states = train(
        model,
        GaussianDiffusion(linear_schedule()),
        torch.randn(8, 1),
        ema_decay=largest,
        **options,
    )
    for step, state in enumerate(states, start=1):
        now = model.slope.item()
        decay = min(largest, (step + 1) / (step + 10))
        average += (1 - decay) * (now - average)
        swapped += decay * (now - swapped)
        constant += (1 - largest) * (now - constant)
        assert state.ema.slope.item() == pytest.approx(average, abs=1e-5)
    assert abs(swapped - average) > 1e-4
    if largest > 0.9:
        assert abs(constant - average) > 1e-3


@pytest.mark.equation("eq-train-ema-start")
def test_share_of_the_start() -> None:
    claimed = sp.factorial(10) * sp.factorial(k + 1) / sp.factorial(k + 10)
    assert claimed.subs(k, 0) == 1
    ratio = sp.gammasimp(
        (claimed.subs(k, m + 1) / claimed.subs(k, m)).rewrite(sp.gamma)
    )
    assert same(ratio, (m + 2) / (m + 11))  # the fraction of step m + 1
    start = 1.0
    for step in range(1, 41):
        start *= (step + 1) / (step + 10)
        assert start == pytest.approx(float(claimed.subs(k, step)), rel=1e-12)
    wrong = sp.factorial(9) * sp.factorial(k + 1) / sp.factorial(k + 10)
    assert wrong.subs(k, 0) != 1


# Reading the loss.


@pytest.mark.equation("eq-train-quarters", "eq-train-loss-noise")
def test_loss_of_a_batch_in_parts() -> None:
    """A toy whose law is finite: T = 8 times, and for each time four equally likely losses."""
    losses = (
        np.random.default_rng(0).gamma(2.0, 1.0, (8, 4)) * np.arange(8, 0, -1)[:, None]
    )
    of_time = losses.mean(1)
    quarters = of_time.reshape(4, 2).mean(1)
    assert quarters.sum() / 4 == pytest.approx(losses.mean(), rel=1e-12)
    assert quarters.sum() != pytest.approx(losses.mean(), rel=0.1)

    times, rest = of_time.var(), losses.var(axis=1).mean()
    for batch in (1, 2, 3):  # every batch there is
        every = [np.mean(each) for each in itertools.product(losses.flat, repeat=batch)]
        assert np.var(every) == pytest.approx((times + rest) / batch, rel=1e-9)
        assert np.var(every) != pytest.approx(rest / batch, rel=0.1)


def test_quarters_of_the_packages_loss() -> None:
    """The loss over all times, each once, is the mean of those over the quarters."""
    diffusion = GaussianDiffusion(linear_schedule(T=100))
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 100, 3, generator=generator)
    t, model = torch.arange(1, 101), Line()
    whole = simple_loss(model, diffusion, x_0, t=t, eps=eps)
    parts = [
        simple_loss(
            model, diffusion, x_0[q : q + 25], t=t[q : q + 25], eps=eps[q : q + 25]
        )
        for q in range(0, 100, 25)
    ]
    torch.testing.assert_close(whole, sum(parts) / 4)


# Precision.


@pytest.mark.equation("eq-train-round")
@pytest.mark.parametrize(("dtype", "p"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_what_rounding_loses(dtype: torch.dtype, p: int) -> None:
    """Every number of three octaves, both signs of both; the sum is exact in float64 and rounded once."""
    assert torch.finfo(dtype).eps == 2.0 ** (1 - p)
    octave = 1 + torch.arange(2 ** (p - 1), dtype=torch.float64) * 2.0 ** (1 - p)
    x = torch.cat([octave * 2.0**e for e in (-3, 0, 5)])
    x = torch.cat([x, -x])
    assert torch.equal(x.to(dtype).double(), x)
    for sign in (1, -1):
        u = sign * x.abs() * 2.0 ** (-p - 1)
        assert torch.equal((x + 0.999 * u).to(dtype).double(), x)
        # Twice as much is not lost everywhere, and the bound cannot be raised at powers of two.
        assert not torch.equal((x + 2.002 * u).to(dtype).double(), x)
    one = torch.ones(1, dtype=torch.float64)
    assert (one - 1.001 * 2.0 ** (-p - 1)).to(dtype) != 1


@pytest.mark.equation("eq-train-scaling")
def test_gradient_of_a_scaled_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, generator=generator)
    layer = torch.nn.Linear(5, 5)

    def gradient(scale: float, divide: bool = True) -> torch.Tensor:
        layer.zero_grad()
        (layer(x).square().mean() * scale).backward()
        return layer.weight.grad / (scale if divide else 1)

    assert torch.equal(
        gradient(2.0**16), gradient(1.0)
    )  # a power of two rounds nothing
    torch.testing.assert_close(gradient(1000.0), gradient(1.0))
    assert not torch.allclose(gradient(2.0**16, divide=False), gradient(1.0))
    small = (
        gradient(1.0) * 1e-8
    )  # what float16 makes of it, without the scale and with it
    assert not small.half().float().any()
    torch.testing.assert_close(
        (small * 2**16).half().float() / 2**16, small, rtol=1e-3, atol=1e-13
    )
