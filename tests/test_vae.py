"""``models/vae.py``: against exact densities of the linear model, numpy, and quadrature; and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ddpm_lite import VAE, data


def two_points(batch: int, dim: int) -> torch.Tensor:
    """Draws of ε, shape (2 dim, batch, dim), over which the average of any quadratic is its expectation."""
    corners = dim**0.5 * torch.cat([torch.eye(dim), -torch.eye(dim)]).double()
    return corners[:, None].expand(-1, batch, -1)


def linear_vae(W: torch.Tensor, b: torch.Tensor, s2: float) -> VAE:
    """A VAE with the decoder N(W z + b, s² I), whose encoder has the posterior's mean and the best variances."""
    vae = VAE(shape=b.shape, latent_dim=W.shape[1], depth=0).double()
    M = W.mT @ W + s2 * torch.eye(W.shape[1], dtype=torch.float64)
    to_mean = torch.linalg.solve(M, W.mT)
    with torch.no_grad():
        vae.decoder[0].weight.copy_(W)
        vae.decoder[0].bias.copy_(b)
        vae.encoder[0].weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
        vae.encoder[0].bias.copy_(torch.cat([-to_mean @ b, (s2 / M.diagonal()).log()]))
        vae.log_variance.fill_(np.log(s2))
    return vae


def draw_linear(D: int, d: int, perpendicular: bool, seed: int = 0):
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(D, d))
    if perpendicular:
        W = np.linalg.qr(W)[0] * rng.uniform(0.5, 3, size=d)
    return [torch.from_numpy(a) for a in (W, rng.normal(size=D))]


@pytest.mark.equation("eq-vae-linear-exact")
@pytest.mark.parametrize(
    ("D", "d", "s2"), [(5, 2, 0.3), (3, 1, 2.0), (4, 4, 0.1), (7, 3, 1.0)]
)
def test_elbo_of_the_exact_posterior_is_the_log_density_of_scipy(D, d, s2) -> None:
    W, b = draw_linear(D, d, perpendicular=True)
    x = 2 * torch.randn(
        50, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    cov = (W @ W.mT).numpy() + s2 * np.eye(D)
    truth = stats.multivariate_normal(b.numpy(), cov).logpdf(x.numpy())
    vae = linear_vae(W, b, s2)
    with torch.no_grad():
        elbo = vae.elbo(x, two_points(50, d))
        assert elbo.total.numpy() == pytest.approx(truth, abs=1e-9)
        assert torch.equal(elbo.total, elbo.reconstruction - elbo.kl.sum(1))
        vae.log_variance.fill_(np.log(s2) / 2)  # a standard deviation for the variance
        if s2 != 1:
            wrong = vae.elbo(x, two_points(50, d)).total.numpy()
            assert np.abs(wrong - truth).min() > 1e-3
        vae.log_variance.fill_(np.log(s2))
        vae.encoder[0].bias[d:] *= 0.5  # standard deviations given as variances
        wrong = vae.elbo(x, two_points(50, d)).total.numpy()
        assert (wrong < truth - 1e-4).all()


def test_elbo_of_a_guess_that_cannot_be_exact_stays_below() -> None:
    """Columns that are not perpendicular: the posterior is not diagonal, and the gap is a KL, by scipy's density."""
    W, b = draw_linear(5, 2, perpendicular=False)
    x = torch.randn(
        40, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    cov = (W @ W.mT).numpy() + 0.3 * np.eye(5)
    truth = stats.multivariate_normal(b.numpy(), cov).logpdf(x.numpy())
    with torch.no_grad():
        gap = truth - linear_vae(W, b, 0.3).elbo(x, two_points(40, 2)).total.numpy()
    M = (W.mT @ W).numpy() + 0.3 * np.eye(2)
    # KL of N(m, diag(1 / diagonal of the precision)) from N(m, precision⁻¹), the same for every x
    precision = M / 0.3
    kl = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    assert kl > 0.01
    assert gap == pytest.approx(np.full(40, kl), rel=1e-8)


def test_elbo_is_that_of_the_same_weights_in_numpy() -> None:
    torch.manual_seed(0)
    vae = VAE(shape=(2, 3), latent_dim=2, width=7, depth=2).double()
    weights = {k: v.numpy() for k, v in vae.state_dict().items()}
    rng = np.random.default_rng(0)
    x, eps = rng.normal(size=(4, 2, 3)), rng.normal(size=(5, 4, 2))

    def network(name: str, h: np.ndarray) -> np.ndarray:
        for i in (0, 2, 4):
            h = h @ weights[f"{name}.{i}.weight"].T + weights[f"{name}.{i}.bias"]
            h = h / (1 + np.exp(-h)) if i < 4 else h
        return h

    out = network("encoder", x.reshape(4, 6))
    mean, deviation = out[:, :2], np.exp(out[:, 2:] / 2)
    D_z = network("decoder", mean + deviation * eps)
    log_likelihood = stats.norm.logpdf(x.reshape(4, 6), D_z, 1).sum(2).mean(0)
    with torch.no_grad():
        elbo = vae.elbo(torch.from_numpy(x), torch.from_numpy(eps))
    assert elbo.reconstruction.numpy() == pytest.approx(log_likelihood, rel=1e-12)
    p, q = (
        torch.distributions.Normal(*map(torch.from_numpy, law))
        for law in ((0 * mean, 0 * mean + 1), (mean, deviation))
    )
    kl = torch.distributions.kl_divergence
    assert torch.allclose(elbo.kl, kl(q, p), rtol=1e-10)
    assert not torch.allclose(elbo.kl, kl(p, q), rtol=1e-3)
    summed_over_draws = log_likelihood * 5
    assert np.abs(elbo.reconstruction.numpy() - summed_over_draws).min() > 1


@pytest.mark.equation("eq-vae-monte-carlo")
def test_one_draw_is_right_on_average() -> None:
    """20,000 single draws against Gauss-Hermite quadrature of a nonlinear decoder; false alarm below 1e-8."""
    torch.manual_seed(3)
    vae = VAE(shape=(3,), latent_dim=1, width=8, depth=1).double()
    with torch.no_grad():
        vae.encoder[2].weight *= 5
        vae.decoder[0].weight *= 3
    x = torch.tensor([[0.3, -1.0, 0.8]], dtype=torch.float64)
    nodes, weight = np.polynomial.hermite_e.hermegauss(60)
    with torch.no_grad():
        at_nodes = torch.stack(
            [vae.elbo(x, torch.full((1, 1, 1), e)).reconstruction for e in nodes]
        )
        exact = weight @ at_nodes[:, 0].numpy() / weight.sum()
        generator = torch.Generator().manual_seed(0)
        draws = vae.elbo(x.expand(20_000, 3), generator=generator)
        averaged = vae.elbo(x, torch.randn(20_000, 1, 1, generator=generator).double())
        at_the_mean = vae.elbo(x, torch.zeros(1, 1, 1).double()).reconstruction
    error = draws.reconstruction.std().item() / 20_000**0.5
    assert abs(draws.reconstruction.mean().item() - exact) < 6 * error
    assert abs(averaged.reconstruction.item() - exact) < 6 * error
    assert abs(at_the_mean.item() - exact) > 12 * error, (
        "decoding the mean is no substitute"
    )
    assert torch.allclose(draws.kl[0], averaged.kl[0], rtol=1e-12)


def test_gradient_passes_through_the_draw() -> None:
    torch.manual_seed(0)
    vae = VAE(width=16)
    x = data.digits("test").x_0[:4]
    vae.elbo(x).reconstruction.sum().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    mean, variance = vae.encode(x)
    stopped = torch.distributions.Normal(mean, variance.sqrt()).sample()
    assert mean.requires_grad
    assert not stopped.requires_grad


def test_training_finds_the_optimum_of_scikit_learn() -> None:
    """A linear VAE with a learned s² reaches the log-likelihood and the noise of probabilistic PCA."""
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4)) * [3, 1.5, 0.5, 0.4] + [1, 0, -1, 2]
    pca = PCA(2).fit(x)
    x = torch.from_numpy(x)
    torch.manual_seed(0)
    vae = VAE(shape=(4,), latent_dim=2, depth=0).double()
    optimiser = torch.optim.LBFGS(
        vae.parameters(), max_iter=400, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = -vae.elbo(x, two_points(400, 2)).total.mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    elbo = vae.elbo(x, two_points(400, 2)).total.mean().item()
    assert elbo == pytest.approx(pca.score(x.numpy()), abs=2e-3)
    assert vae.log_variance.exp().item() == pytest.approx(pca.noise_variance_, rel=0.02)


def test_sample_is_the_decoded_prior() -> None:
    W, b = draw_linear(3, 2, perpendicular=True)
    vae = linear_vae(W, b, 0.5)
    x = vae.sample(20_000, torch.Generator().manual_seed(0))
    assert not x.requires_grad
    cov = np.cov(x.numpy().T)
    assert cov == pytest.approx((W @ W.mT).numpy(), abs=0.35)
    assert np.linalg.matrix_rank(cov, tol=1e-8) == 2, "no pixel noise is added"
    again = vae.sample(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(x, again)


def test_config_rebuilds_the_network() -> None:
    vae = VAE((2, 3), latent_dim=3, width=8, depth=1)
    copy = VAE(**vae.config)
    copy.load_state_dict(vae.state_dict())
    x, eps = torch.randn(4, 2, 3), torch.randn(1, 4, 3)
    assert torch.equal(copy.elbo(x, eps).total, vae.elbo(x, eps).total)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(0, 4),
    st.integers(1, 3),
)
def test_shapes_and_items_do_not_mix(shape, latent_dim, depth, n, draws) -> None:
    torch.manual_seed(0)
    vae = VAE(shape, latent_dim, width=4, depth=depth)
    x, eps = torch.randn(n, *shape), torch.randn(draws, n, latent_dim)
    mean, variance = vae.encode(x)
    assert mean.shape == variance.shape == (n, latent_dim)
    assert (variance > 0).all()
    D_z, s2 = vae.decode(eps)
    assert D_z.shape == (draws, n, *shape)
    assert s2.shape == ()
    elbo = vae.elbo(x, eps)
    assert elbo.total.shape == elbo.reconstruction.shape == (n,)
    assert elbo.kl.shape == (n, latent_dim)
    for i in range(n):
        one = vae.elbo(x[i : i + 1], eps[:, i : i + 1]).total
        assert torch.allclose(one, elbo.total[i : i + 1], atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shape": (8, 0)}, ValueError, "shape must be at least 1, got 0"),
        ({"shape": ()}, ValueError, "shape must have at least one entry"),
        ({"shape": (8.0,)}, TypeError, "shape must be an int"),
        ({"latent_dim": 0}, ValueError, "latent_dim must be at least 1"),
        ({"width": 0}, ValueError, "width must be at least 1"),
        ({"depth": -1}, ValueError, "depth must be at least 0"),
        ({"depth": True}, TypeError, "depth must be an int"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        VAE(**arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda v: v.elbo(torch.zeros(3, 8, 8)), ValueError, r"x must have shape"),
        (lambda v: v.elbo(torch.zeros(3, 1, 8, 8).long()), TypeError, "floating"),
        (lambda v: v.encode(np.zeros((3, 1, 8, 8))), TypeError, "torch.Tensor"),
        (lambda v: v.decode(torch.zeros(3)), ValueError, "z must have shape"),
        (
            lambda v: v.elbo(torch.zeros(3, 1, 8, 8), torch.zeros(3, 2)),
            ValueError,
            "eps must have shape",
        ),
        (
            lambda v: v.elbo(torch.zeros(3, 1, 8, 8), torch.zeros(0, 3, 2)),
            ValueError,
            "S at least 1",
        ),
        (lambda v: v.sample(0), ValueError, "n must be at least 1"),
    ],
)
def test_bad_input_is_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call(VAE(width=4))
