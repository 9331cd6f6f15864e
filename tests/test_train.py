"""``train``: the loop does what algorithm 1 says, the same way every time."""

import copy
import inspect
import math
import pathlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ddpm_lite import (
    GaussianDiffusion,
    NoiseSchedule,
    UNet,
    checkpoint,
    data,
    linear_schedule,
)
from ddpm_lite.train import RECIPES, fastest_precision, new_model, recipe_for, train


class Spy(nn.Module):
    """A network that keeps what it was asked, and predicts w + 0 x_t."""

    def __init__(self, start: float = 0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.calls = []

    def __deepcopy__(self, memo):
        return Spy(self.w.item())

    def forward(self, x_t, t, y=None):
        self.calls.append((x_t, t, y))
        return self.w + 0 * x_t


def small_unet(seed=0) -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(base_channels=8, channel_mults=(1, 2), blocks_per_level=1, groups=4)


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


IMAGES = data.digits("test").x_0[:40]


def run(diffusion, steps=6, seed=0, model_seed=0):
    model = small_unet(model_seed)
    states = [
        (state.step, float(state.loss))
        for state in train(
            model, diffusion, IMAGES, steps=steps, batch_size=8, seed=seed
        )
    ]
    return states, weights(model)


def test_same_seed_gives_the_same_bits_whatever_the_global_seed(diffusion):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        losses, result = run(diffusion)
        torch.manual_seed(2)
        losses_again, result_again = run(diffusion)
    assert losses == losses_again
    assert torch.equal(result, result_again)
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]


def test_another_seed_gives_another_result(diffusion):
    (losses, result), (other_losses, other) = run(diffusion), run(diffusion, seed=1)
    assert not torch.equal(result, other)
    assert losses != other_losses


@pytest.mark.parametrize("ema_decay", [0.0, 0.5, 0.999])
def test_the_average_is_that_of_its_formula(diffusion, ema_decay):
    model = small_unet()
    average = weights(model).double().numpy()
    for state in train(
        model, diffusion, IMAGES, steps=20, batch_size=8, ema_decay=ema_decay
    ):
        d = min(ema_decay, (state.step + 1) / (state.step + 10))
        average = d * average + (1 - d) * weights(model).double().numpy()
        assert np.allclose(weights(state.ema).numpy(), average, rtol=1e-5, atol=1e-6)
    swapped = (1 - d) * average + d * weights(model).double().numpy()
    assert ema_decay in (0.0, 0.5) or not np.allclose(
        weights(state.ema).numpy(), swapped, rtol=1e-5, atol=1e-6
    )


def test_the_average_is_one_network_in_evaluation_mode_without_gradients(diffusion):
    model = small_unet()
    averages = [
        state.ema for state in train(model, diffusion, IMAGES, steps=3, batch_size=8)
    ]
    assert averages[0] is averages[-1]
    assert averages[0] is not model
    assert not averages[0].training
    assert model.training
    assert not any(p.requires_grad for p in averages[0].parameters())


@pytest.fixture
def optimizer_calls():
    """What reaches the optimiser in each step: the learning rate and the norm of the gradient."""
    calls = []

    def record(optimizer, args, kwargs):
        (group,) = optimizer.param_groups
        calls.append(
            (
                group["lr"],
                math.sqrt(sum(float(p.grad.square().sum()) for p in group["params"])),
            )
        )

    handle = register_optimizer_step_pre_hook(record)
    yield calls
    handle.remove()


@pytest.mark.parametrize("warmup", [0, 1, 10, 100])
def test_the_learning_rate_rises_evenly_and_falls_like_half_a_cosine(
    diffusion, optimizer_calls, warmup
):
    list(
        train(
            Spy(),
            diffusion,
            torch.zeros(8, 1),
            steps=40,
            batch_size=8,
            learning_rate=0.3,
            warmup=warmup,
        )
    )
    rates = np.array([lr for lr, _ in optimizer_calls])
    step = np.arange(40)
    cosine = (1 + np.cos(np.pi * step / 40)) / 2
    assert np.allclose(
        rates, 0.3 * cosine * np.minimum(1, (step + 1) / max(warmup, 1)), rtol=1e-9
    )
    assert 0 < rates[-1] < 0.3 * 0.002, "the last step is small but not lost"


def test_a_large_gradient_is_scaled_down_and_a_small_one_is_not(
    diffusion, optimizer_calls
):
    """With w = 1000 the gradient of (ε - w)² is near 2000, with w = 0 it is small."""
    x_0 = torch.zeros(8, 1)
    for largest in (0.7, 1e9):
        options = {"steps": 3, "batch_size": 8, "max_grad_norm": largest}
        list(train(Spy(1000.0), diffusion, x_0, **options))
    norms = [norm for _, norm in optimizer_calls]
    assert norms[:3] == pytest.approx([0.7] * 3, rel=1e-4)
    assert norms[3:] == pytest.approx([2000] * 3, rel=0.01)


def test_each_epoch_takes_every_item_once_in_a_new_order_and_labels_stay_with_their_items(
    diffusion,
):
    """Items are told apart by their values, so large that noise cannot mix them up; labels by their numbers."""
    n, batch_size = 23, 5
    x_0, y = (
        1e6 * torch.arange(1, n + 1).view(n, 1).double(),
        torch.arange(100, 100 + n),
    )
    model = Spy()
    list(
        train(
            model,
            diffusion,
            x_0,
            y,
            steps=12,
            batch_size=batch_size,
            label_dropout=0.0,
        )
    )
    epochs = []
    for i, (x_t, t, labels) in enumerate(model.calls):
        items = (
            (x_t[:, 0] / diffusion.schedule.alpha_bar[t].sqrt() / 1e6).round().long()
        )
        assert torch.equal(labels, items + 99)
        assert len(items) == batch_size
        if i % (n // batch_size) == 0:
            epochs.append([])
        epochs[-1] += items.tolist()
    assert len(epochs) == 3
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == 20
    assert epochs[0] != epochs[1]


def test_a_share_of_the_labels_is_dropped_and_uint8_images_are_scaled(diffusion):
    images = torch.full((512, 1, 2, 2), 255, dtype=torch.uint8)
    model = Spy()
    options = {"steps": 2, "batch_size": 512, "label_dropout": 0.25}
    list(train(model, diffusion, images, torch.full((512,), 3), **options))
    floats = Spy()
    list(
        train(
            floats,
            diffusion,
            torch.ones(512, 1, 2, 2),
            torch.full((512,), 3),
            **options,
        )
    )
    for (x_t, t, y), (x_t_float, _, y_float) in zip(model.calls, floats.calls):
        assert set(y.tolist()) == {-1, 3}
        assert 0.17 < (y == -1).float().mean() < 0.33  # 4 sigma
        assert torch.equal(y, y_float)
        assert torch.equal(x_t, x_t_float)
        del t
    assert not torch.equal(model.calls[0][2], model.calls[1][2])


def test_without_labels_the_network_gets_none(diffusion):
    model = Spy()
    list(train(model, diffusion, torch.zeros(8, 1), steps=2, batch_size=8))
    assert [y for _, _, y in model.calls] == [None, None]


def test_times_and_noise_differ_from_item_to_item_and_step_to_step(diffusion):
    model = Spy()
    list(train(model, diffusion, torch.zeros(64, 1), steps=2, batch_size=64))
    (x_1, t_1, _), (x_2, t_2, _) = model.calls
    assert len(t_1.unique()) > 50
    assert not torch.equal(t_1, t_2)
    assert len(torch.cat([x_1, x_2]).unique()) == 128


def test_the_loss_falls_on_a_small_problem(diffusion):
    """One point: the network can learn to read ε off x_t. Without learning the loss stays at 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet(
            base_channels=16,
            channel_mults=(1,),
            blocks_per_level=1,
            attention_levels=(),
            groups=4,
        )
    losses = [
        float(s.loss)
        for s in train(
            unet,
            diffusion,
            IMAGES[:1].repeat(32, 1, 1, 1),
            steps=150,
            batch_size=32,
            warmup=20,
        )
    ]
    assert np.mean(losses[:3]) > 0.8
    assert np.mean(losses[-20:]) < 0.3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_last_good_average(
    diffusion, bad
):
    class Breaks(Spy):
        def forward(self, x_t, t, y=None):
            return super().forward(x_t, t) * (bad if len(self.calls) == 4 else 1)

    model, state = Breaks(2.0), None

    def go():
        nonlocal state
        for state in train(model, diffusion, torch.zeros(8, 1), steps=10, batch_size=8):
            average = copy.deepcopy(state.ema)
        return average

    with pytest.raises(
        FloatingPointError, match=r"the loss is (nan|inf) and .* at step 4"
    ):
        go()
    assert state.step == 3
    assert bool(weights(state.ema).isfinite().all())
    assert bool(weights(model).isfinite().all())


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(diffusion):
    """The loss can be finite where its gradient is not, as that of √ at 0."""

    class Breaks(Spy):
        def forward(self, x_t, t, y=None):
            result = super().forward(x_t, t)
            return result + (0 * self.w).sqrt() if len(self.calls) == 4 else result

    model, states = Breaks(2.0), []
    with pytest.raises(FloatingPointError, match="at step 4"):
        states.extend(
            train(model, diffusion, torch.zeros(8, 1), steps=10, batch_size=8)
        )
    assert bool(weights(model).isfinite().all())


# Checkpoints: a run that was broken off and continued is the run that was not.


def labelled_unet(seed=0, dropout=0.2) -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(
            base_channels=8,
            channel_mults=(1, 2),
            blocks_per_level=1,
            groups=4,
            dropout=dropout,
            num_classes=10,
        )


def run_in(folder, diffusion, leave_after=None, unet=None, **options):
    """Train for 12 steps in a folder, or until a step; the last state."""
    options = {
        "steps": 12,
        "batch_size": 16,
        "save_every": 4,
        "folder": folder,
    } | options
    labels = torch.arange(len(IMAGES)) % 10
    for state in train(unet or labelled_unet(), diffusion, IMAGES, labels, **options):
        if state.step == leave_after:
            break
    return state


def last_checkpoint(folder):
    return sorted(folder.glob("step-*.safetensors"))[-1]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The last checkpoint of a run that was never broken off."""
    folder = tmp_path_factory.mktemp("unbroken")
    diffusion = GaussianDiffusion(linear_schedule(50))
    run_in(folder, diffusion)
    return checkpoint.load(last_checkpoint(folder))


def assert_same(found, expected):
    (tensors, description), (other, other_description) = found, expected
    assert description == other_description
    assert set(tensors) == set(other)
    assert all(torch.equal(tensors[name], other[name]) for name in tensors)


@pytest.fixture
def diffusion_50():
    return GaussianDiffusion(linear_schedule(50))


@pytest.mark.parametrize("breaks", [(4,), (5,), (1, 2, 7, 11)])
def test_a_run_continued_has_the_bits_of_one_never_broken(
    tmp_path, diffusion_50, unbroken, breaks
):
    """Weights, average, optimiser and losses, for a network with labels and dropout; the global seed is no matter."""
    for step in (*breaks, None):
        torch.manual_seed(step or 0)
        state = run_in(tmp_path, diffusion_50, leave_after=step)
    assert (state.step, len(state.losses)) == (12, 12)
    assert_same(checkpoint.load(last_checkpoint(tmp_path)), unbroken)
    assert {
        "adam.0.exp_avg",
        "model.conv_in.weight",
        "ema.conv_in.weight",
        "losses",
    } <= set(unbroken[0])


def test_a_finished_run_gives_its_last_state_again(tmp_path, diffusion_50, unbroken):
    run_in(tmp_path, diffusion_50)
    before = last_checkpoint(tmp_path).read_bytes()
    state = run_in(tmp_path, diffusion_50)
    assert state.step == 12
    assert torch.equal(state.losses, unbroken[0]["losses"])
    assert torch.equal(state.loss, state.losses[-1])
    assert torch.equal(state.ema.conv_in.weight, unbroken[0]["ema.conv_in.weight"])
    assert last_checkpoint(tmp_path).read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "text"])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    tmp_path, diffusion_50, unbroken, damage
):
    run_in(tmp_path, diffusion_50, leave_after=10)
    path = last_checkpoint(tmp_path)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(
        {
            "truncated": content[:-1000],
            "one bit": content,
            "empty": b"",
            "text": b"not weights",
        }[damage]
    )
    (tmp_path / ".step-00000011-x.safetensors").write_bytes(b"left by a killed process")
    with pytest.warns(UserWarning, match=rf"{path.name}.* damaged.*; going back"):
        run_in(tmp_path, diffusion_50)
    assert_same(checkpoint.load(last_checkpoint(tmp_path)), unbroken)
    assert not list(tmp_path.glob(".step-*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"seed": 1},
            r"seed = 0, got 1; give it the same arguments, or another folder",
        ),
        ({"batch_size": 8}, "batch_size = 16, got 8"),
        ({"precision": "bfloat16"}, "precision = float32, got bfloat16"),
        ({"steps": 13}, "steps = 12, got 13"),
    ],
)
def test_a_run_is_not_continued_as_another(tmp_path, diffusion_50, change, message):
    run_in(tmp_path, diffusion_50, leave_after=3)
    with pytest.raises(ValueError, match=message):
        run_in(tmp_path, diffusion_50, **change)


def test_other_data_or_another_network_is_refused(tmp_path, diffusion_50, diffusion):
    run_in(tmp_path, diffusion_50, leave_after=3)
    with pytest.raises(ValueError, match="has schedule ="):
        run_in(tmp_path, diffusion)
    with pytest.raises(ValueError, match="has data ="):
        list(
            train(
                labelled_unet(),
                diffusion_50,
                -IMAGES,
                torch.zeros(len(IMAGES)).long(),
                steps=12,
                batch_size=16,
                folder=tmp_path,
            )
        )
    with pytest.raises(ValueError, match=r"has labels = \d+, got None"):
        list(
            train(
                labelled_unet(),
                diffusion_50,
                IMAGES,
                steps=12,
                batch_size=16,
                folder=tmp_path,
            )
        )
    with pytest.raises(checkpoint.CheckpointError, match="belongs to another network"):
        list(
            train(
                small_unet(),
                diffusion_50,
                IMAGES,
                torch.arange(len(IMAGES)) % 10,
                steps=12,
                batch_size=16,
                folder=tmp_path,
            )
        )


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path, diffusion_50, monkeypatch
):
    run_in(tmp_path, diffusion_50, leave_after=4)

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        run_in(tmp_path, diffusion_50)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004.safetensors"]


def test_what_is_not_finite_is_never_written(tmp_path, diffusion):
    class Breaks(Spy):
        def forward(self, x_t, t, y=None):
            return super().forward(x_t, t) * (math.nan if len(self.calls) == 7 else 1)

    with pytest.raises(FloatingPointError, match=r"the loss is nan .* at step 7"):
        list(
            train(
                Breaks(2.0),
                diffusion,
                torch.zeros(8, 1),
                steps=20,
                batch_size=8,
                folder=tmp_path,
                save_every=3,
            )
        )
    tensors, description = checkpoint.load(last_checkpoint(tmp_path))
    assert description["step"] == 6
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


# Compiled.


def test_a_compiled_network_is_trained_alike_and_goes_on_from_the_same_files(
    tmp_path, diffusion_50, unbroken
):
    unet = labelled_unet()
    unet.compile(backend="aot_eager")
    state = run_in(tmp_path, diffusion_50, leave_after=5, unet=unet)
    assert unet._compiled_call_impl
    assert not state.ema._compiled_call_impl
    run_in(tmp_path, diffusion_50)  # not compiled
    found, _ = checkpoint.load(last_checkpoint(tmp_path))
    for name, expected in unbroken[0].items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-5)


# Precision.


def test_half_precision_follows_single_precision(diffusion):
    losses = {}
    for precision in ("float32", "bfloat16", "float16"):
        states = train(
            small_unet(), diffusion, IMAGES, steps=6, batch_size=8, precision=precision
        )
        losses[precision] = [float(state.loss) for state in states]
        assert losses[precision] != losses["float32"] or precision == "float32"
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["float16"] == pytest.approx(losses["float32"], rel=0.02)


def test_an_overflow_in_float16_is_skipped_and_counted_and_too_many_end_the_run(
    diffusion,
):
    """Gradients beyond 65,504 have no float16 value: with scale 65,536 a slope above 1 overflows."""

    class Steep(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)
            self.factor = factor
            nn.init.constant_(self.layer.weight, 1e-3)

        def forward(self, x_t, t):
            return self.factor * self.layer(x_t)

    options = {"steps": 30, "batch_size": 8, "precision": "float16"}
    *_, last = train(Steep(100.0), diffusion, torch.zeros(8, 1), **options)
    assert 0 < last.skipped < 15
    before = Steep(1e30)
    with pytest.raises(FloatingPointError, match="at step 21"):
        list(train(before, diffusion, torch.zeros(8, 1), **options))
    assert before.layer.weight.item() == pytest.approx(1e-3)


def test_unknown_precision_is_refused_and_the_fastest_is_known():
    with pytest.raises(
        ValueError, match=r"precision must be one of float32, .* got 'x'"
    ):
        list(
            train(Spy(), None, torch.zeros(8, 1), steps=1, batch_size=1, precision="x")
        )
    assert fastest_precision("cpu") in ("float32", "bfloat16")
    assert fastest_precision("mps") == "float32"


X = torch.zeros(8, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"x_0": X.to(torch.uint8)},
            TypeError,
            r"x_0 must be floating point, got torch\.uint8; .*from_uint8",
        ),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 2.0}, TypeError, "steps must be an int, got 2.0"),
        ({"batch_size": 9}, ValueError, "batch_size must be between 1 and 8, got 9"),
        ({"batch_size": 0}, ValueError, "batch_size must be between 1 and 8, got 0"),
        ({"warmup": -1}, ValueError, "warmup must be at least 0, got -1"),
        ({"ema_decay": -0.1}, ValueError, r"ema_decay must be .* got -0\.1"),
        ({"ema_decay": 1.0}, ValueError, r"ema_decay must be .* got 1\.0"),
        ({"ema_decay": math.nan}, ValueError, "ema_decay must be .* got nan"),
        ({"learning_rate": -1.0}, ValueError, r"learning_rate must be .* got -1\.0"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate must be .* got nan"),
        ({"max_grad_norm": -1.0}, ValueError, r"max_grad_norm must be .* got -1\.0"),
        ({"seed": 1.5}, TypeError, r"seed must be an int, got 1\.5"),
        ({"save_every": 0}, ValueError, "save_every must be at least 1, got 0"),
        ({"label_dropout": 1.5}, ValueError, r"label_dropout must be .* got 1\.5"),
        (
            {"y": torch.zeros(7).long()},
            ValueError,
            r"y must be 8 integer labels, got torch\.int64 of shape \(7,\)",
        ),
        (
            {"y": torch.zeros(8)},
            ValueError,
            r"y must be 8 integer labels, got torch\.float32",
        ),
    ],
)
def test_bad_input_is_refused_by_name(diffusion, arguments, error, message):
    arguments = {"x_0": X, "steps": 2, "batch_size": 4} | arguments
    with pytest.raises(error, match=message):
        list(train(Spy(), diffusion, **arguments))


def test_a_new_model_is_fixed_by_its_seed_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, same, other = (new_model(RECIPES["digits"], seed) for seed in (0, 0, 1))
    assert torch.equal(weights(first.unet), weights(same.unet))
    assert not torch.equal(weights(first.unet), weights(other.unet))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_fits_its_data(name):
    """On the meta device, where the network of Ho et al. for CIFAR-10 costs nothing."""
    recipe = RECIPES[name]
    with torch.device("meta"):
        unet = UNet(recipe.shape[0], **recipe.unet)
        x = torch.zeros(2, *recipe.shape)
        unet.check_shape("x", x.shape)
    assert recipe.steps > 0
    assert name in data.DATA_SETS
    assert set(recipe.options) <= set(inspect.signature(train).parameters)
    if name == "cifar10":
        assert sum(p.numel() for p in unet.parameters()) == 35_746_307


@pytest.mark.parametrize("size", [1, 3, 8, 12, 28, 30, 32, 64, 96])
def test_any_size_has_a_recipe(size):
    recipe = recipe_for((3, size, size))
    with torch.device("meta"):
        unet = UNet(recipe.shape[0], **recipe.unet)
    unet.check_shape("x", (1, *recipe.shape))
    lowest = size / 2 ** (len(recipe.unet["channel_mults"]) - 1)
    assert lowest >= min(size, 4)
    assert (len(recipe.unet["attention_levels"]) == 1) == (size in (32, 64))


def test_a_bad_seed_is_refused():
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        new_model(RECIPES["digits"], -1)


def test_flipping_mirrors_about_half_of_the_images():
    images = torch.zeros(400, 1, 2, 2)
    images[..., 0] = 1.0
    model = Spy()
    with pytest.warns(UserWarning, match="x_T keeps 100 %"):
        quiet = GaussianDiffusion(NoiseSchedule([1e-6]))
    list(train(model, quiet, images, steps=1, batch_size=400, flip=True))
    left = model.calls[0][0][:, 0, :, 0] > 0.5
    assert bool((left.all(1) | ~left.any(1)).all()), "whole columns change places"
    assert 140 < left.all(1).sum() < 260  # 6 sigma
