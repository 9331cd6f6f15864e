"""``model``: a model comes back from its file as it was, and the bundled one draws digits."""

import json
import re
from importlib import resources

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddpm_lite import (
    CheckpointError,
    GaussianDiffusion,
    Model,
    UNet,
    checkpoint,
    data,
    linear_schedule,
    load,
)
from ddpm_lite.evaluate import frechet_distance
from ddpm_lite.train import RECIPES, new_model


def grey(x_0: torch.Tensor) -> torch.Tensor:
    """Images in the units of the distances: 0..16."""
    return 8 * (x_0 + 1)


@pytest.fixture
def saved(tiny_model, tmp_path):
    path = tmp_path / "model.safetensors"
    tiny_model.save(path)
    return path


def rewrite(path, change) -> None:
    """Save the file again with its tensors and its description changed by ``change(tensors, description)``."""
    tensors, description = checkpoint.load(path)
    change(tensors, description)
    checkpoint.save(path, tensors, description)


@pytest.mark.parametrize("place", ["file", "text", "folder"])
def test_a_model_comes_back_as_it_was(tiny_model, saved, place):
    again = load({"file": saved, "text": str(saved), "folder": saved.parent}[place])
    assert again.shape == tiny_model.shape
    assert again.card == tiny_model.card
    assert again.unet.config == tiny_model.unet.config
    assert torch.equal(
        again.diffusion.schedule.alpha_bar, tiny_model.diffusion.schedule.alpha_bar
    )
    assert not again.unet.training
    for name, tensor in tiny_model.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], tensor)
    assert torch.equal(
        again.sample(2, steps=3, seed=0), tiny_model.sample(2, steps=3, seed=0)
    )


def test_weights_in_half_precision_are_loaded_as_float32(tiny_model, saved):
    rewrite(
        saved,
        lambda tensors, _: tensors.update({k: v.half() for k, v in tensors.items()}),
    )
    assert {p.dtype for p in load(saved).unet.parameters()} == {torch.float32}


def test_a_model_with_labels_comes_back(tmp_path, labelled_model):
    labelled_model.save(tmp_path / "x.safetensors")
    assert load(tmp_path / "x.safetensors").unet.config["num_classes"] == 10


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_samples_are_images_fixed_by_the_seed(tiny_model, sampler):
    images = tiny_model.sample(3, sampler=sampler, steps=5, seed=1)
    assert (images.shape, images.dtype) == ((3, 1, 8, 8), torch.float32)
    assert float(images.abs().max()) <= 1
    assert torch.equal(images, tiny_model.sample(3, sampler=sampler, steps=5, seed=1))
    assert not torch.equal(
        images, tiny_model.sample(3, sampler=sampler, steps=5, seed=2)
    )


def test_without_a_seed_samples_are_new_every_time(tiny_model):
    assert not torch.equal(tiny_model.sample(2, steps=3), tiny_model.sample(2, steps=3))


def test_trajectory_ends_at_the_sample(tiny_model):
    states = list(tiny_model.trajectory(2, steps=5, seed=1))
    assert [state.t for state in states] == tiny_model.diffusion.schedule.times(5)
    assert torch.equal(
        states[-1].x_t.clamp(-1, 1), tiny_model.sample(2, steps=5, seed=1)
    )
    assert max(float(state.x_0.abs().max()) for state in states) <= 1 + 1e-6


def test_all_steps_are_taken_when_none_are_given(tiny_model):
    assert len(list(tiny_model.trajectory(1, steps=None, seed=0))) == 51


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"n": 2.0}, TypeError, r"n must be an int, got 2\.0"),
        ({"n": True}, TypeError, "n must be an int, got True"),
        ({"steps": 51}, ValueError, "steps must be between 1 and 50, got 51"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        (
            {"sampler": "euler"},
            ValueError,
            r"sampler must be one of ancestral, ddim, dpm\+\+, got 'euler'",
        ),
        ({"eta": 2}, ValueError, "eta must be between 0 and 1, got 2"),
    ],
)
def test_bad_arguments_of_sample_are_refused_by_name(
    tiny_model, arguments, error, message
):
    with pytest.raises(error, match=message):
        tiny_model.sample(**{"n": 1, "steps": 3} | arguments)


@pytest.mark.parametrize("name", ["didgits", "no/such/folder", "x.safetensors"])
def test_an_unknown_name_is_refused_and_the_bundled_ones_are_listed(name):
    with pytest.raises(
        FileNotFoundError,
        match=rf"no model '{name}': neither a bundled model \(.*digits.*\)",
    ):
        load(name)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"no model '.*{tmp_path.name}'"):
        load(tmp_path)


def test_a_model_cut_short_is_refused(saved):
    content = saved.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1]:
        saved.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t, d: d.update(kind="something else"),
            'holds no model, but "something else"',
        ),
        (lambda t, d: d.clear(), "holds no model, but null"),
        (lambda t, d: d.pop("unet"), "does not fit its description: 'unet'"),
        (
            lambda t, d: d["unet"].update(base_channels=16),
            "does not fit its description",
        ),
        (
            lambda t, d: d["unet"].update(colour="red"),
            "does not fit its description: .*colour",
        ),
        (lambda t, d: d.update(unet=3), "does not fit its description"),
        (
            lambda t, d: d.update(beta=[0.1, 2.0]),
            "does not fit its description: .*beta",
        ),
        (lambda t, d: d.update(beta="x"), "does not fit its description"),
        (lambda t, d: d.pop("shape"), "does not fit its description: 'shape'"),
        (
            lambda t, d: d.update(shape=[3, 8, 8]),
            "does not fit its description: .*shape",
        ),
        (lambda t, d: d.update(shape="abc"), "does not fit its description: .*shape"),
        (lambda t, d: d.update(shape=[1, 7, 8]), "does not fit its description: .*7"),
        (
            lambda t, d: t.pop("conv_in.weight"),
            "does not fit its description: .*conv_in.weight",
        ),
        (
            lambda t, d: t.update(extra=torch.zeros(1)),
            "does not fit its description: .*extra",
        ),
        (
            lambda t, d: t.update({"conv_in.weight": torch.zeros(1)}),
            "does not fit its description: .*conv_in.weight",
        ),
    ],
)
def test_a_file_that_is_no_model_or_does_not_fit_is_refused(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=rf"(?s)model\.safetensors {message}"):
        load(saved)


def test_a_foreign_safetensors_file_is_refused(tmp_path, tiny_model):
    save_file(tiny_model.unet.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors was not written by ddpm_lite"
    ):
        load(tmp_path)


def test_saving_below_a_file_is_an_os_error(tmp_path, tiny_model):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        tiny_model.save(tmp_path / "file" / "model.safetensors")


# The model that comes with the package


@pytest.fixture(scope="module")
def bundled():
    return load("digits")


@pytest.fixture(scope="module")
def weights_folder():
    with resources.as_file(resources.files("ddpm_lite.weights")) as folder:
        yield folder


def test_the_bundled_model_draws_digits_offline_at_once(bundled):
    images = bundled.sample(64, seed=0)
    assert (images.shape, images.dtype) == ((64, 1, 8, 8), torch.float32)
    assert float(images.abs().max()) <= 1
    assert torch.equal(images[:4], load("digits").sample(64, seed=0)[:4])


def test_the_card_of_the_bundled_model_says_where_it_comes_from(
    bundled, weights_folder
):
    card = json.loads((weights_folder / "digits.json").read_text())
    assert card == bundled.card
    assert {"data", "command", "steps", "seed", "quality"} <= card.keys()
    assert {"frechet_distance", "two_sample_accuracy"} <= card["quality"].keys()
    assert card["command"].startswith("ddpm-lite train --data digits")
    assert "digits" in card["data"]


def test_the_bundled_file_is_small_and_holds_finite_float_weights_only(weights_folder):
    path = weights_folder / "digits.safetensors"
    assert path.stat().st_size <= 3_000_000
    for name, tensor in load_file(path).items():
        assert tensor.is_floating_point(), name
        assert bool(tensor.isfinite().all()), name


def test_the_bundled_file_names_no_path_of_the_machine_that_made_it(weights_folder):
    with safe_open(weights_folder / "digits.safetensors", framework="pt") as file:
        assert not re.search(r'[\s"=]/\w', file.metadata()["ddpm_lite"])


def test_the_bundled_model_has_the_schedule_of_the_paper(bundled):
    assert torch.allclose(
        bundled.diffusion.schedule.beta, linear_schedule().beta, rtol=1e-12
    )


def test_the_bundled_model_is_far_better_than_none(bundled):
    """500 samples against the 360 held-out digits, in pixel space. Training digits give about 28."""
    held_out = grey(data.digits("test").x_0)

    def distance(images):
        return frechet_distance(grey(images), held_out)

    ours = distance(bundled.sample(500, seed=0))
    assert ours < 100
    assert (
        ours < distance(new_model(RECIPES["digits"]).sample(500, steps=10, seed=0)) / 5
    )
    noise = torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(
        -1, 1
    )
    assert ours < distance(noise) / 5


def test_a_file_of_the_name_does_not_hide_the_bundled_model(
    bundled, tmp_path, monkeypatch, tiny_model
):
    tiny_model.save(tmp_path / "digits" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert load("digits").unet.config == bundled.unet.config
    assert load("./digits").card == tiny_model.card


@pytest.fixture
def labelled(randomised):
    """A tiny network whose answer depends on the label."""
    unet = UNet(
        1,
        base_channels=4,
        channel_mults=(1,),
        groups=2,
        attention_levels=(),
        num_classes=3,
    )
    return Model(
        randomised(unet).eval(), GaussianDiffusion(linear_schedule(50)), (1, 4, 4)
    )


def test_a_model_with_labels_draws_what_it_is_told(labelled):
    def draw(y):
        return labelled.sample(3, y=y, steps=2, seed=0)

    mixed = draw(torch.tensor([0, 2, -1]))
    for i, y in enumerate((0, 2, None)):
        assert torch.allclose(mixed[i], draw(y)[i], atol=1e-5)
    assert not torch.allclose(draw(0), draw(2), atol=1e-3)
    last = [state.x_t for state in labelled.trajectory(3, y=2, steps=2, seed=0)][-1]
    assert torch.equal(last.clamp(-1, 1), draw(2))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (3, "y must be between -1 and 2, got 3"),
        (torch.zeros(2).long(), r"y must have shape \(3,\)"),
        (-2, "y must be between -1 and 2, got -2"),
    ],
)
def test_a_label_that_does_not_exist_is_refused(labelled, y, message):
    with pytest.raises(ValueError, match=message):
        labelled.sample(3, y=y, steps=2)


def test_labels_for_a_network_without_them_are_refused(tiny_model):
    with pytest.raises(ValueError, match="this network has no labels"):
        tiny_model.sample(2, y=1, steps=2)


def test_many_images_are_drawn_in_batches(labelled, monkeypatch):
    """Each batch takes its noise from where the last one left off; labels stay with their images."""
    y = torch.arange(5) % 3
    monkeypatch.setattr("ddpm_lite.model._ENTRIES_AT_A_TIME", 32)
    images = labelled.sample(5, y=y, steps=2, seed=0)
    assert images.shape == (5, 1, 4, 4)
    assert len(images.flatten(1).unique(dim=0)) == 5
    first = labelled.sample(2, y=y[:2], steps=2, seed=0)
    assert torch.equal(images[:2], first)
    sizes = []
    handle = labelled.unet.register_forward_pre_hook(
        lambda module, inputs: sizes.append(len(inputs[0]))
    )
    labelled.sample(5, steps=1, seed=0)
    handle.remove()
    assert sizes == [2, 2, 1]
