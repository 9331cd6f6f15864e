"""How good a model is: bits, distances, precision and recall, memory, and use. Chapter 11 of the book."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_lite import _check, _distributed, checkpoint, data
from ddpm_lite.bound import variational_bound
from ddpm_lite.model import Model


def measure(
    model: Model,
    train: data.Images,
    test: data.Images,
    *,
    n: int | None = None,
    sampler: str = "ddim",
    steps: int = 50,
    seed: int = 0,
    extractor: str | None = None,
    levels: int = 256,
) -> dict[str, object]:
    """All measures of a model, each by the function of this module that has its name, and how they were taken.

    The bound is that of at most 360 test images, chosen by ``seed``, at 20 times each, with the variance "beta".
    Samples are drawn with the labels of the training images if the network has labels; a classifier that is fitted to
    them is then tried on the test images. In a process group the processes share the work of the network
    if it was shared out before; the first one does the rest, and the others return without measures.

    Args:
        model: on the device that is to be used.
        train, test: images in [-1, 1]; the samples are compared with ``test`` in all but their nearest neighbours.
        n: number of samples; None for that of the training images, at most 10,000.
        sampler, steps: as in ``Model.sample``.
        seed: of all that is drawn.
        extractor, levels: as in ``features``; None for "mnist-classifier" if it suits the shape, else "pixels".

    Returns:
        These options, those of the bound, and "measures", a number for each name.
    """
    if extractor is None:
        extractor = "mnist-classifier" if model.shape == (1, 28, 28) else "pixels"
    n = min(len(train.x_0), 10_000) if n is None else n
    drawn = {"sampler": sampler, "steps": steps, "seed": seed}
    seen = {"extractor": extractor, "levels": levels}
    see = partial(features, **seen)
    real = _distributed.in_shares(see, test.x_0)

    generator = torch.Generator().manual_seed(_check.integer("seed", seed, 0))
    x_0 = test.x_0[torch.randperm(len(test.x_0), generator=generator)[:360]]
    x_0 = x_0.to(next(model.unet.parameters()).device)
    how = {"samples": min(20, model.diffusion.T - 1), "variance": "beta", "clip": 1.0}
    bound = variational_bound(
        model.unet, model.diffusion, x_0, levels=levels, generator=generator, **how
    )
    y = train.y.repeat(1 + n // len(train.y))[:n]
    y = y if model.unet.class_embedding else None
    x_0 = model.sample(n, y=y, **drawn)
    x = _distributed.in_shares(see, x_0)
    how["images"] = len(bound.total)
    result = {"n": n, **drawn, **seen, "bound": how}
    if _distributed.place()[0] > 0:
        return result

    precision, recall = precision_recall(real, x)
    grey = [features(z, "pixels", levels) for z in (x_0, train.x_0)]
    nearness, _ = nearest_neighbours(*grey)
    row = {
        "bits_per_dimension": float(bound.total.mean()),
        "standard_error_of_bits_per_dimension": bound.standard_error,
        "frechet_distance": frechet_distance(x, real),
        "two_sample_accuracy": two_sample_accuracy(x, real),
        "precision": precision,
        "recall": recall,
        "nearest_ratio_below_1": float((nearness < 1).double().mean()),
        "nearest_ratio_smallest": float(nearness.min()),
    }
    if y is not None:
        classifier = fit_classifier(x_0.cpu(), y, seed)
        row["classifier_accuracy"] = classifier_accuracy(classifier, *test)
    return result | {"measures": {name: round(z, 4) for name, z in row.items()}}


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """|m_x - m_y|² + tr(C_x + C_y - 2 (C_x C_y)^½), with m and C the means and covariances of the two sets.

    The squared 2-Wasserstein distance between the Gaussians that have these moments (Dowson & Landau 1982). On
    the features of the Inception network it is the FID (Heusel et al. 2017); here it is taken of what it is given.

    Args:
        x, y: two sets, shapes (N, ...) and (M, ...), in the units in which the distance is wanted.

    Returns:
        The distance; it shrinks with N and M, so compare only results with the same numbers of images.
    """
    a, b = (z.cpu().numpy() for z in _flat(x=x, y=y))
    mean = a.mean(0) - b.mean(0)
    cov_a, cov_b = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (a, b))
    # tr (AB)^½ = tr (A^½ B A^½)^½, and the latter is symmetric.
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(0)).sum()
    return float(mean @ mean + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def two_sample_accuracy(x: Tensor, y: Tensor, seed: int = 0) -> float:
    """How well a logistic regression tells two sets apart: 0.5 not at all, 1 always (Lopez-Paz & Oquab 2017).

    The accuracy on held-out items, by five-fold cross-validation on equally many of each set.

    Args:
        x, y: two sets, shapes (N, ...) and (M, ...).
        seed: of the choice of items and folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    a, b = (z.cpu().numpy() for z in _flat(x=x, y=y))
    rng = np.random.default_rng(seed)
    n = min(len(a), len(b))
    both = np.concatenate([rng.permutation(a)[:n], rng.permutation(b)[:n]])
    label = np.repeat([0, 1], n)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, both, label, cv=folds).mean())


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> list[float]:
    """The share of samples that might be data, and the share of data that the samples reach.

    Around each item of a set lies a ball that ends at its k-th nearest neighbour in the same set, itself not counted.
    Precision is the share of ``generated`` inside the balls of ``real``, recall the share of ``real`` inside the
    balls of ``generated``, borders included (Kynkäänniemi et al. 2019, equations 1 and 2; there k = 3).

    Args:
        real, generated: features, shapes (N, ...) and (M, ...).
        k: which neighbour, from 1 to below N and M. Both results grow with k and depend on N and M: report them.

    Returns:
        Precision and recall, each from 0 to 1.
    """
    a, b = _flat(real=real, generated=generated)
    _check.integer("k", k, 1, min(len(a), len(b)) - 1)
    shares = []
    for points, centres in ((b, a), (a, b)):
        radius = _nearest(centres, centres, k + 1)[0][:, k]  # column 0 is itself
        parts = [torch.cdist(p, centres) <= radius for p in points.split(1000)]
        shares.append(float(torch.cat([p.any(1) for p in parts]).double().mean()))
    return shares


def nearest_neighbours(samples: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Is the model copying? The nearest training image of each sample, and how near it is for an image of this kind.

    Args:
        samples, train: shapes (N, ...) and (M, ...), as grey values or features; distances are Euclidean.

    Returns:
        The ratios, float64 of shape (N,): the distance to the nearest training image, divided by the distance from
        that image to its own nearest neighbour in training. 0 is a copy. How many are below 1 depends on the data:
        compare with images that were held out (0.42 of the bundled digits). Then the indices of the images, (N,).
    """
    a, b = _flat(samples=samples, train=train)
    distance, index = (z[:, 0] for z in _nearest(a, b, 1))
    among_train = _nearest(b[index], b, 2)[0][:, 1]  # column 0 is the image itself
    return distance / among_train.clamp(min=1e-9), index


class Classifier(nn.Sequential):
    """A small network that names digits: three convolutions, means over quarters of the image, two linear layers.

    ``classifier(x)`` are the logits, shape (B, classes), of images in [-1, 1], shape (B, channels, H, W);
    ``classifier.features(x)`` is what the last layer sees, 64 numbers for each image that are not negative. 73,514
    parameters for grey images; 28×28 and 8×8 pixels both suit it.

    Args:
        channels: of the images.
        classes: how many.
    """

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        from torchvision.ops import Conv2dNormActivation as Conv  # then norm and ReLU

        super().__init__()
        layers = [Conv(channels, 32, 5, 2), Conv(32, 64, 3, 2), Conv(64, 64)]
        layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.last = nn.Linear(64, classes)


def fit_classifier(x_0: Tensor, y: Tensor, seed: int = 0) -> Classifier:
    """Train a ``Classifier``: Adam, batches of 128, 5 epochs or more until 64,000 images were seen.

    The learning rate falls from 0.003 to 0 along a half cosine. On one machine the arguments fix the result.

    Args:
        x_0: images in [-1, 1], shape (N, C, H, W), on the CPU.
        y: labels, int64, shape (N,), from 0 up.
        seed: of the initial weights and the order of the images.

    Returns:
        The network, in evaluation mode.
    """
    y = _check.times("y", y, data.check_images(x_0), 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_check.integer("seed", seed, 0))
        network = Classifier(x_0.shape[1], int(y.max()) + 1)
        epochs = range(max(5, 64_000 // len(x_0)))
        batches = torch.cat([torch.randperm(len(x_0)) for _ in epochs]).split(128)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for batch in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x_0[batch]), y[batch]).backward()
        optimizer.step()
        decay.step()
    return network.eval()


def classifier_accuracy(network: nn.Module, x_0: Tensor, y: Tensor) -> float:
    """The share of images, shape (N, C, H, W), that a classifier gives their label, shape (N,).

    Of real test images, by a classifier that was fitted to labelled samples, it is the classification accuracy score
    (Ravuri & Vinyals 2019): it falls when classes are confused, and when samples lack what real images have.
    """
    return float((in_parts(network, x_0).argmax(1) == y).double().mean())


@torch.no_grad()
def in_parts(network: nn.Module, x: Tensor) -> Tensor:
    """``network(x)``, 256 items at a time on the device of the network; the result is on the CPU, without a graph."""
    device = next(network.parameters()).device
    return torch.cat([network(part.to(device)).cpu() for part in x.split(256)])


def features(x_0: Tensor, extractor: str, levels: int = 256) -> Tensor:
    """Images in [-1, 1], shape (N, C, H, W), rounded to grey values, as features of shape (N, D).

    Args:
        x_0: the images; the features are on the CPU.
        extractor: "pixels" for the grey values 0..levels-1 themselves; "mnist-classifier" for the 64 features of the
            ``Classifier`` of MNIST that comes with the package, for shape (N, 1, 28, 28); "inception" for the 2,048
            features of the FID, by torchmetrics, which downloads the weights (91 MB) once.
        levels: number of grey values.

    Raises:
        ValueError: for another extractor, one that is not for images of this shape, or one that is not installed.
        OSError: if the weights of Inception cannot be downloaded.
    """
    grey = data.to_uint8(x_0, levels).cpu()
    if extractor == "pixels":
        return grey.flatten(1).float()
    if extractor == "mnist-classifier" and x_0.shape[1:] == (1, 28, 28):
        classifier = Classifier().eval()
        classifier.load_state_dict(checkpoint.load(_WEIGHTS)[0])
        return in_parts(classifier.features, data.from_uint8(grey, levels))
    if extractor == "inception":
        try:
            import torch_fidelity  # noqa: F401 (torchmetrics needs it, and says so late)
            from torchmetrics.image.fid import NoTrainInceptionV3
        except ImportError as error:
            raise ValueError(_NO_INCEPTION) from error
        inception = NoTrainInceptionV3("inception-v3-compat", ["2048"])
        inception.to("cuda" if torch.cuda.is_available() else "cpu")
        return in_parts(inception, data.to_uint8(x_0).expand(-1, 3, -1, -1))
    raise ValueError(
        f"extractor must be pixels, inception or, for 1×28×28, mnist-classifier, got {extractor!r}, {[*x_0.shape[1:]]}"
    )


_WEIGHTS = Path(__file__).with_name("weights") / "mnist_classifier.safetensors"
_NO_INCEPTION = 'for "inception", pip install torchmetrics torch-fidelity; its weights (91 MB) are then downloaded'


def _nearest(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances to the k nearest rows of y, and their indices, for each row of x; both of shape (N, k)."""
    found = [torch.cdist(part, y).topk(k, largest=False) for part in x.split(1000)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def _flat(**sets: Tensor) -> list[Tensor]:
    """Two sets, given by name, as float64 of shapes (N, D) and (M, D)."""
    for name, z in sets.items():
        if not bool(_check.floating(name, z).isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    x, y = sets.values()
    if x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < 10:
        raise ValueError(
            f"{' and '.join(sets)} must be at least 10 items of one shape, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    return [z.reshape(len(z), -1).double() for z in (x, y)]
