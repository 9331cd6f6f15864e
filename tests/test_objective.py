"""``objective``: the loss of networks whose loss is known."""

import numpy as np
import pytest
import torch
from scipy import stats

from ddpm_lite import ExactEps, simple_loss


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def zero(x_t, t):
    return torch.zeros_like(x_t)


def test_loss_is_the_mean_square_of_what_the_network_misses(diffusion):
    """Rebuilt from what the network saw: it is told x_0 = 0, so ε = x_t / √(1 - ᾱ_t)."""
    seen = {}

    def eps_model(x_t, t):
        seen.update(x_t=x_t.double().numpy(), t=t.numpy())
        return 0.5 * torch.ones_like(x_t)

    loss = simple_loss(eps_model, diffusion, torch.zeros(50, 3), seeded())
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[seen["t"] - 1]
    eps = seen["x_t"] / np.sqrt(1 - alpha_bar)[:, None]
    assert loss.shape == ()
    assert float(loss) == pytest.approx(((eps - 0.5) ** 2).mean(), rel=1e-4)
    assert float(loss) != pytest.approx(((eps - 0.5) ** 2).sum(1).mean(), rel=1e-4), (
        "a sum over the entries"
    )


def test_time_is_uniform_on_1_to_T(diffusion):
    """50,000 draws of t, χ² test on ten parts; false-alarm probability 1e-6. Both ends occur."""
    seen = []

    def eps_model(x_t, t):
        assert t.dtype == torch.int64
        seen.append(t)
        return x_t

    simple_loss(eps_model, diffusion, torch.zeros(50_000, 1), seeded())
    (t,) = seen
    assert (int(t.min()), int(t.max())) == (1, 1000)
    assert stats.chisquare(torch.histc(t.double(), 10, 1, 1000).numpy()).pvalue > 1e-6
    assert np.bincount(t.numpy(), minlength=1001)[1000] < 120, (
        "the last step is as likely as the others"
    )


def test_the_loss_of_the_exact_eps_for_standard_normal_data_is_the_mean_alpha_bar(
    diffusion,
):
    """E[ε | x_t] = √(1 - ᾱ_t) x_t leaves the variance ᾱ_t. 200,000 numbers, 6 standard errors (false alarm 2e-9)."""
    x_0 = torch.randn(200_000, 1, generator=seeded(1))
    expected = float(diffusion.schedule.alpha_bar[1:].mean())
    optimal = ExactEps(diffusion.schedule, torch.zeros(1, 1), torch.ones(1, 1, 1))
    error = 6 * (3 / 200_000) ** 0.5
    loss = float(simple_loss(optimal, diffusion, x_0, seeded()))
    assert loss == pytest.approx(expected, abs=error)
    for wrong in (zero, lambda x_t, t: x_t, lambda x_t, t: 1.5 * optimal(x_t, t)):
        assert float(simple_loss(wrong, diffusion, x_0, seeded())) > loss + error


def test_the_loss_of_predicting_nothing_is_one(diffusion):
    """100,000 numbers, 6 standard errors (false alarm 2e-9)."""
    loss = float(simple_loss(zero, diffusion, torch.zeros(100_000, 1), seeded()))
    assert loss == pytest.approx(1, abs=6 * (2 / 100_000) ** 0.5)


def test_same_generator_state_same_loss(diffusion):
    x_0 = torch.randn(8, 3, generator=seeded(1))
    before = torch.get_rng_state()
    assert torch.equal(
        simple_loss(zero, diffusion, x_0, seeded(2)),
        simple_loss(zero, diffusion, x_0, seeded(2)),
    )
    assert not torch.equal(
        simple_loss(zero, diffusion, x_0, seeded(2)),
        simple_loss(zero, diffusion, x_0, seeded(3)),
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_gradient_reaches_the_network(diffusion):
    weight = torch.tensor(0.1, requires_grad=True)
    simple_loss(
        lambda x_t, t: weight * x_t, diffusion, torch.zeros(8, 3), seeded()
    ).backward()
    assert float(weight.grad) != 0


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_loss_has_the_dtype_of_the_data(diffusion, dtype):
    assert (
        simple_loss(zero, diffusion, torch.zeros(8, 3, dtype=dtype), seeded()).dtype
        == dtype
    )


def test_integer_images_are_refused(diffusion):
    with pytest.raises(
        TypeError, match=r"x_0 must be floating point, got torch\.uint8; .*from_uint8"
    ):
        simple_loss(zero, diffusion, torch.zeros(2, 1, 4, 4, dtype=torch.uint8))


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_network_whose_output_has_another_shape_is_refused(diffusion):
    """Broadcasting would give a loss, and training on it a network that predicts the mean."""
    with pytest.raises(
        ValueError, match=r"eps.* must have the shape of .*\(8, 3\), got \(8, 1\)"
    ):
        simple_loss(lambda x_t, t: x_t[:, :1], diffusion, torch.zeros(8, 3), seeded())
