"""The errata of the schedule, of the network and the loss, and of words: each claim fails, each right version holds."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from book import BOOK, prose
from ddpm_lite import (
    MLP,
    ExactEps,
    GaussianDiffusion,
    NoiseSchedule,
    UNet,
    ancestral,
    data,
    ddim,
    gaussian,
    linear_schedule,
    load,
    simple_loss,
)

SHORT = "ignore:alpha_bar"  # the package warns of schedules that end too early; here they are the point


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The schedule.


@pytest.mark.erratum("err-beta-over-1000")
def test_beta_t_over_1000_leaves_nothing_to_learn_after_t_162() -> None:
    """The exact best noise, by the package, is x_t itself from there on; and β_T = 1 is refused."""
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        NoiseSchedule(np.arange(1, 1001) / 1000)
    steep = NoiseSchedule(np.arange(1, 1000) / 1000)
    below = (steep.alpha_bar < 1e-6).nonzero()[0].item()
    assert below == 162  # as a time; the 163rd entry of an array that begins with t = 0
    assert float(steep.alpha_bar[161]) == pytest.approx(1.01e-6, rel=1e-2)
    values = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    x_t = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    for schedule, useless in [(steep, True), (linear_schedule(), False)]:
        gap = (ExactEps(schedule, values)(x_t, 162) - x_t).abs().max().item()
        assert (gap < 1e-4) is useless
    assert float(linear_schedule().alpha_bar[-1]) > 1e-6


@pytest.mark.filterwarnings(SHORT)
@pytest.mark.erratum("err-first-beta")
@pytest.mark.parametrize(("T", "factor"), [(1000, 1.199), (50, 4.98)])
def test_the_linear_schedule_begins_at_beta_1(T: int, factor: float) -> None:
    """Against the table of diffusers."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(T, beta_start=1e-4, beta_end=0.02).betas.double()
    ours = linear_schedule(T, beta_1=1e-4, beta_T=0.02).beta[1:]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    with_t_over_T = 1e-4 + (0.02 - 1e-4) * torch.arange(1, T + 1) / T
    assert float(with_t_over_T[0] / theirs[0]) == pytest.approx(factor, rel=1e-3)
    assert float(with_t_over_T[-1]) == pytest.approx(float(theirs[-1]))


@pytest.mark.filterwarnings(SHORT)
@pytest.mark.erratum("err-short-schedule")
def test_the_range_of_the_paper_belongs_to_1000_steps() -> None:
    """L_T, and the share of 1 that an exact reverse process draws from N(0, 1), by scipy's quadrature."""

    def share(schedule: NoiseSchedule) -> float:
        last = float(schedule.alpha_bar[-1])
        slope, offset = 2 * last**0.5 / (1 - last), math.log(4)

        def integrand(x: float) -> float:
            return stats.norm.pdf(x) / (1 + math.exp(-slope * x - offset))

        return integrate.quad(integrand, -12, 12)[0]

    zero, one = (
        torch.zeros((), dtype=torch.float64),
        torch.ones((), dtype=torch.float64),
    )
    expected = {100: (0.706, 0.23), 200: (0.771, 0.071), 300: (0.790, 0.025)}
    for T, (proportion, nats) in expected.items():
        fixed = linear_schedule(T, beta_1=1e-4, beta_T=0.02)
        last = fixed.alpha_bar[-1]
        L_T = float(gaussian.kl(last.sqrt() * one, 1 - last, zero, one))
        assert share(fixed) == pytest.approx(proportion, abs=1e-3)
        assert pytest.approx(nats, rel=0.03) == L_T
        assert share(linear_schedule(T)) == pytest.approx(0.8, abs=1e-4)  # stretched


@pytest.mark.erratum("err-short-schedule")
def test_the_package_warns_of_the_short_range_only() -> None:
    with pytest.warns(UserWarning, match="keeps 22 %"):
        linear_schedule(300, beta_1=1e-4, beta_T=0.02)
    linear_schedule(300)  # a warning would be an error here


@pytest.mark.erratum("err-half-precision")
@pytest.mark.parametrize(
    ("dtype", "silent"), [(torch.float16, 2), (torch.bfloat16, 10)]
)
def test_half_precision_data_gets_full_precision_coefficients(
    dtype: torch.dtype, silent: int, diffusion: GaussianDiffusion
) -> None:
    schedule = diffusion.schedule
    assert schedule.alpha_bar.dtype == torch.float64
    cast_first = 1 - schedule.alpha_bar.to(dtype)
    assert int((cast_first[1:] == 0).sum()) == silent
    zeros, ones = torch.zeros(1000, 1, dtype=dtype), torch.ones(1000, 1, dtype=dtype)
    noise = diffusion.q_sample(zeros, torch.arange(1, 1001), ones)[:, 0]
    assert noise.dtype == dtype
    right = (1 - schedule.alpha_bar[1:]).sqrt()
    torch.testing.assert_close(
        noise.double(), right, rtol=torch.finfo(dtype).eps, atol=0
    )
    _, variance = diffusion.q_posterior(zeros, ones, torch.arange(1, 1001))
    assert bool(variance.isfinite().all())


@pytest.mark.erratum("err-variance-deviation")
def test_the_second_argument_of_a_normal_law_is_its_variance() -> None:
    """One step of the chain has variance β, not β²; the density is that of scipy with deviation √β."""
    schedule = linear_schedule(T=1000)
    beta, n = 0.25, 100_000
    step = GaussianDiffusion(NoiseSchedule([beta, 0.999]))
    x_1 = next(step.q_chain(torch.zeros(n, 1, dtype=torch.float64), seeded()))
    # The relative standard error of a variance is √(2/n) = 0.0045; 6 of them: a false alarm in 1e9.
    assert float(x_1.var()) == pytest.approx(beta, rel=0.027)
    assert float(x_1.var()) > 3 * beta**2
    x = torch.tensor([-0.3, 0.0, 1.2], dtype=torch.float64)
    ours = gaussian.log_density(x, torch.tensor(0.1), torch.tensor(beta).double())
    np.testing.assert_allclose(ours, stats.norm.logpdf(x, 0.1, beta**0.5), rtol=1e-6)
    drawn = gaussian.sample(
        torch.zeros(n, dtype=torch.float64), torch.tensor(beta), seeded(1)
    )
    assert float(drawn.var()) == pytest.approx(beta, rel=0.027)
    forward = backward = 1.0  # with β times the noise, for data N(0, 1)
    for t in range(1, 1001):
        beta_t = float(schedule.beta[t])
        forward = (1 - beta_t) * forward + beta_t**2
    for t in range(1000, 0, -1):
        beta_t = float(schedule.beta[t])
        backward = (1 - beta_t) * backward + (beta_t**2 if t > 1 else 0)
    assert forward == pytest.approx(0.019, abs=1e-3)
    assert backward == pytest.approx(0.006, abs=1e-3)


# The network and the loss.


@pytest.mark.erratum("err-zero-one")
def test_images_run_from_minus_one_to_one() -> None:
    images = data.digits("train").x_0
    assert (float(images.min()), float(images.max())) == (-1, 1)
    half = (images + 1) / 2
    assert float(images.var() / half.var()) == pytest.approx(4, rel=1e-4)
    assert int(data.to_uint8(images, levels=17).min()) == 0
    assert int(data.to_uint8(half, levels=17).min()) == 8  # black has become grey
    grey = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(data.to_uint8(data.from_uint8(grey)), grey)
    data.check_images(half)  # nothing can warn: [0, 1] lies within [-1, 1]
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        data.check_images(127 * half)


@pytest.mark.erratum("err-previous-image")
def test_the_loss_asks_for_the_noise_and_not_for_the_previous_state(
    diffusion: GaussianDiffusion,
) -> None:
    """Data N(0, 1): the best noise reaches the floor, the best previous state does not, and breaks the sampler."""
    schedule = diffusion.schedule
    exact = ExactEps(schedule, torch.zeros(1, 1), torch.ones(1, 1, 1))

    def previous(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return schedule.alpha[t].sqrt()[:, None] * x_t

    x_0 = torch.randn(200_000, 1, dtype=torch.float64, generator=seeded())
    by_noise = float(simple_loss(exact, diffusion, x_0, seeded(1)))
    by_state = float(simple_loss(previous, diffusion, x_0, seeded(1)))
    assert by_noise == pytest.approx(0.276, abs=0.01)
    assert by_state == pytest.approx(0.388, abs=0.01)
    x_T = torch.randn(2000, 1, dtype=torch.float64, generator=seeded(2))
    *_, right = ancestral(exact, diffusion, x_T, generator=seeded(3))
    *_, wrong = ancestral(previous, diffusion, x_T, generator=seeded(3))
    assert float(right.x_t.std()) == pytest.approx(1, abs=0.1)
    assert abs(float(wrong.x_t.std()) - 1) > 0.3


@pytest.mark.erratum("err-no-network")
def test_the_loss_reaches_every_weight_of_the_network(
    diffusion: GaussianDiffusion, randomised
) -> None:
    network, x_0 = randomised(MLP(width=8)), torch.randn(64, 2, generator=seeded())
    simple_loss(network, diffusion, x_0, seeded(1)).backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in network.parameters())
    eps, fresh = torch.randn(2, 64, 2, generator=seeded(2))
    x_T = diffusion.q_sample(x_0, 1000, eps)
    loss = ((x_T - fresh) ** 2).mean().requires_grad_()
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in gradients)
    back = diffusion.predict_x_0(x_T.double(), 1000, eps.double())
    torch.testing.assert_close(back, x_0.double(), rtol=0, atol=1e-3)


@pytest.mark.erratum("err-no-network")
def test_the_best_reconstruction_from_the_end_is_the_mean_image(
    diffusion: GaussianDiffusion,
) -> None:
    digits = data.digits("train").x_0.double()
    exact, x_0 = ExactEps(diffusion.schedule, digits), digits[:40]
    eps = torch.randn(x_0.shape, dtype=torch.float64, generator=seeded())
    from_mean = float(((x_0 - digits.mean(0)) ** 2).mean())
    ratio = {}
    for t in (100, 1000):
        x_t = diffusion.q_sample(x_0, t, eps)
        guess = diffusion.predict_x_0(x_t, t, exact(x_t, t))
        ratio[t] = float(((x_0 - guess) ** 2).mean()) / from_mean
    assert ratio[1000] > 0.99
    assert ratio[100] < 0.01  # from a noisy image, as in training, it is a sound task


@pytest.mark.erratum("err-time-blind")
def test_a_network_that_is_not_told_the_time_loses_a_quarter_on_normal_data(
    diffusion: GaussianDiffusion, randomised
) -> None:
    """For N(0, 1) the law of x_t is the same at every t, so the best blind slope is the mean of the best slopes."""
    alpha_bar = diffusion.schedule.alpha_bar
    slope = float((1 - alpha_bar[1:]).sqrt().mean())

    def blind(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return slope * x_t

    exact = ExactEps(diffusion.schedule, torch.zeros(1, 1), torch.ones(1, 1, 1))
    x_0 = torch.randn(200_000, 1, dtype=torch.float64, generator=seeded())
    told = float(simple_loss(exact, diffusion, x_0, seeded(1)))
    not_told = float(simple_loss(blind, diffusion, x_0, seeded(1)))
    assert told == pytest.approx(float(alpha_bar[1:].mean()), abs=0.01)
    assert not_told == pytest.approx(1 - slope**2, abs=0.01)
    assert 1.2 < not_told / told < 1.35
    networks = [
        (randomised(MLP(width=8)), torch.randn(1, 2)),
        (
            randomised(
                UNet(
                    1,
                    base_channels=8,
                    channel_mults=(1, 2),
                    blocks_per_level=1,
                    groups=4,
                )
            ),
            torch.randn(1, 1, 8, 8),
        ),
    ]
    for network, x_t in networks:  # the package's networks hear the time
        first, last = (network(x_t, torch.tensor([t])) for t in (1, 900))
        assert not torch.allclose(first, last, atol=1e-3)


@pytest.mark.erratum("err-one-layer")
def test_a_narrow_layer_cannot_carry_noise_and_a_unet_has_none() -> None:
    with torch.device("meta"):
        layer = nn.Linear(128 * 64 * 64, 256)
        unet = UNet(3, 128, (1, 2, 2, 2), attention_levels=(1,), groups=32, dropout=0.1)
    by_layer = sum(p.numel() for p in layer.parameters())
    by_unet = sum(p.numel() for p in unet.parameters())
    assert by_layer == 2**27 + 256
    assert by_unet == pytest.approx(35.7e6, rel=1e-2)
    # The principal directions of a sample of white noise are the best k directions for that sample.
    d, k, n = 64, 16, 20_000
    noise = torch.randn(n, d, generator=seeded(), dtype=torch.float64)
    variances = torch.linalg.eigvalsh(noise.T @ noise / n)
    assert float(variances[:-k].sum() / d) == pytest.approx(1 - k / d, abs=0.03)
    small = UNet(1, base_channels=8, channel_mults=(1, 2), groups=4)
    for size in (8, 12):  # one network for all sizes
        x_t = torch.zeros(1, 1, size, size)
        assert small(x_t, torch.tensor([1])).shape == x_t.shape


@pytest.mark.erratum("err-type-errors")
def test_roots_of_floats_and_sequences_with_two_inputs_are_refused() -> None:
    with pytest.raises(TypeError):
        torch.sqrt(0.98)
    x_t, t = torch.zeros(4, 2), torch.ones(4, dtype=torch.int64)
    with pytest.raises(TypeError):
        nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))(x_t, t)
    assert MLP(width=8)(x_t, t).shape == x_t.shape


@pytest.mark.erratum("err-train-on-test")
def test_the_best_network_of_a_finite_set_knows_its_images_and_no_others(
    diffusion: GaussianDiffusion,
) -> None:
    train, test = data.digits("train").x_0, data.digits("test").x_0
    honest = ExactEps(diffusion.schedule, train)
    joined = ExactEps(diffusion.schedule, torch.cat([train, test]))
    eps = torch.randn(40, 1, 8, 8, generator=seeded())

    def loss(eps_model: ExactEps, x_0: torch.Tensor) -> float:
        x_t = diffusion.q_sample(x_0[:40], 50, eps)
        return float(((eps_model(x_t, 50) - eps) ** 2).mean())

    assert loss(honest, train) < 1e-3
    assert loss(honest, test) > 1
    assert loss(joined, test) < 1e-3
    pixels = [{tuple(x) for x in x_0.flatten(1).tolist()} for x_0 in (train, test)]
    assert len(pixels[0] & pixels[1]) == 0  # the package's split shares no image


@pytest.mark.erratum("err-flat-loss")
def test_samples_improve_while_the_loss_hardly_moves(
    diffusion: GaussianDiffusion,
) -> None:
    """The best networks of a blurred and of a sharp spiral, on the sharp one."""
    spiral = data.points("spiral", 200)
    losses, distance = {}, {}
    for width in (0.3, 0.02):
        blur = width**2 * torch.eye(2).repeat(len(spiral), 1, 1)
        exact, generator = ExactEps(diffusion.schedule, spiral, blur), seeded()
        losses[width] = [
            float(simple_loss(exact, diffusion, spiral[:128], generator))
            for _ in range(40)
        ]
        x_T = torch.randn(300, 2, generator=seeded(1))
        times = diffusion.schedule.times(100)
        *_, last = ddim(exact, diffusion, x_T, times)
        distance[width] = float(torch.cdist(last.x_t, spiral).min(1).values.median())
    rise = np.mean(losses[0.3]) / np.mean(losses[0.02]) - 1
    spread = np.std(losses[0.02]) / np.mean(losses[0.02])
    assert 0.05 < rise < spread  # what one batch shows is less than its noise
    assert np.mean(losses[0.02]) > 0.1  # and the loss does not go to 0
    assert distance[0.3] > 3 * distance[0.02]


# Words.


@pytest.mark.erratum("err-forward-learned")
def test_nothing_in_q_is_learned_and_p_theta_runs_backwards() -> None:
    model = load("digits")
    assert not isinstance(model.diffusion, nn.Module)
    assert not any(
        isinstance(value, nn.Module | nn.Parameter)
        for value in (
            *vars(model.diffusion).values(),
            *vars(model.diffusion.schedule).values(),
        )
    )
    assert sum(p.numel() for p in model.unet.parameters()) == 701_345
    # x_t depends on x_0 and ε and on nothing else that could be trained.
    x_0, eps = torch.randn(2, 8, 1, 8, 8, generator=seeded()).unbind()
    assert not model.diffusion.q_sample(x_0, 500, eps).requires_grad
    x_t = torch.randn(8, 1, 8, 8, generator=seeded(1))
    assert model.unet(x_t, torch.full((8,), 500)).requires_grad
    # Directions: q starts at the data, p_theta at the noise.
    ones = torch.ones(2000, 1, dtype=torch.float64)
    states = list(model.diffusion.q_chain(ones, seeded(2)))
    assert float(states[0].std()) < 0.02 < 0.9 < float(states[-1].std())
    visited = [state.t for state in model.trajectory(2, steps=5, seed=0)]
    assert visited == [1000, 800, 600, 400, 200, 0]


@pytest.mark.erratum("err-kl-equal")
def test_the_divergence_of_a_step_compares_means_and_cannot_reach_zero() -> None:
    """Over all means of p: the best is the average of the posteriors' means, and a divergence is left."""
    schedule = linear_schedule(T=50)
    diffusion, t = GaussianDiffusion(schedule), 15
    values = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    x_t = torch.full((2, 1), 0.4, dtype=torch.float64)
    last = schedule.alpha_bar[t].item()
    odds = stats.norm.pdf(0.4, np.array([-1, 1]) * last**0.5, (1 - last) ** 0.5)
    probability = torch.from_numpy(odds / odds.sum())
    mean_q, variance = diffusion.q_posterior(values, x_t, t)
    assert float(variance[0] - variance[1]) == 0  # the same for every x_0
    candidates = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    average = probability @ gaussian.kl(mean_q, variance, candidates, variance)
    best_mean = candidates[average.argmin()].item()
    exact = ExactEps(schedule, values)(x_t[:1], t)
    model_mean, _ = diffusion.q_posterior(
        diffusion.predict_x_0(x_t[:1], t, exact), x_t[:1], t
    )
    assert best_mean == pytest.approx(float(model_mean), abs=1e-3)
    assert float(average.min()) == pytest.approx(0.066, abs=1e-3)
    by_means = probability @ ((mean_q - candidates) ** 2 / (2 * variance))
    torch.testing.assert_close(average, by_means)  # means only


@pytest.mark.erratum("err-autoregressive")
def test_the_page_cites_what_it_says_about_other_peoples_models() -> None:
    page = prose(BOOK / "errata.ipynb")
    item = re.split(r"^\(err-", page.split("(err-autoregressive)=")[1], flags=re.M)[0]
    bibliography = (BOOK / "references.bib").read_text(encoding="utf-8")
    assert "autoregressive" in item
    for key in ("brown2020language", "oord2016wavenet", "dhariwal2020jukebox"):
        assert f"`{key}`" in item
        assert f"{{{key}," in bibliography
