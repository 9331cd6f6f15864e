"""``interop`` against diffusers: the same outputs and images, nothing lost on the way there and back.

Parity of the network in the configurations of the book, that for CIFAR-10 among them, is in ``test_unet``.
"""

import json
import runpy
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import save_file

from ddpm_lite import (
    GaussianDiffusion,
    Model,
    NoiseSchedule,
    UNet,
    ancestral,
    cosine_schedule,
    interop,
    linear_schedule,
    load,
)
from ddpm_lite.interop import (
    from_pipeline,
    to_pipeline,
    unet_from_diffusers,
    unet_to_diffusers,
)

# config.json and scheduler_config.json of google/ddpm-cifar10-32, but for class names and versions.
PUBLISHED = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": [
        "DownBlock2D",
        "AttnDownBlock2D",
        "DownBlock2D",
        "DownBlock2D",
    ],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
PUBLISHED_SCHEDULER = {
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}
# The same with fewer and smaller layers.
TINY = PUBLISHED | {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
}
CONFIGS = {
    "plain": {},
    "three blocks": {"blocks_per_level": 3, "channel_mults": (1, 2)},
    "one level": {"channel_mults": (1,), "attention_levels": (0,)},
    "no attention": {"attention_levels": (), "blocks_per_level": 1},
    "attention everywhere": {"attention_levels": (2, 0, 1), "head_channels": 4},
    "labels": {"num_classes": 10, "dropout": 0.1, "in_channels": 3},
    "wide": {"channel_mults": (1, 3, 2, 4), "blocks_per_level": 1},
}


def our_unet(**changes) -> UNet:
    return UNet(
        **{"base_channels": 8, "groups": 4, "channel_mults": (1, 2, 2)} | changes
    )


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    weights, others = one.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(
        torch.equal(weight, others[name]) for name, weight in weights.items()
    )


@pytest.fixture
def pipeline(randomised):
    """A pipeline that diffusers built from the tiny published configuration, with 20 steps."""
    scheduler = DDPMScheduler.from_config(
        PUBLISHED_SCHEDULER | {"num_train_timesteps": 20, "beta_end": 0.7}
    )
    return quiet(DDPMPipeline(randomised(UNet2DModel.from_config(TINY)), scheduler))


def quiet(pipeline: DDPMPipeline) -> DDPMPipeline:
    pipeline.unet.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline: DDPMPipeline, steps: int, seed: int = 3) -> torch.Tensor:
    """What the pipeline draws, in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    images = pipeline(2, generator, num_inference_steps=steps, output_type="pt").images
    return 2 * images - 1


# The network


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_network_goes_there_and_comes_back_as_it_was(randomised, config):
    unet = randomised(our_unet(**config))
    size = 2 ** (len(unet.config["channel_mults"]) - 1)
    theirs = unet_to_diffusers(unet, 2 * size)
    again = unet_from_diffusers(theirs)
    assert not theirs.training
    assert not again.training
    assert again.config == unet.config | {
        "attention_levels": sorted(unet.config["attention_levels"])
    }
    assert same_weights(again, unet)
    assert same_weights(unet_to_diffusers(again, 2 * size), theirs)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, unet.config["in_channels"], size, 2 * size, generator=generator)
    t, y = torch.tensor([1, 777]), torch.tensor([3, 9])
    y = y if unet.config["num_classes"] else None
    with torch.no_grad():
        expected, result = theirs(x, t - 1, y).sample, again(x, t, y)
    assert float(expected.abs().max()) > 0.1
    assert torch.allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_the_published_cifar_network_is_the_one_of_the_paper():
    with torch.device("meta"):
        unet = unet_from_diffusers(UNet2DModel.from_config(PUBLISHED))
        paper = UNet(3, 128, (1, 2, 2, 2), attention_levels=(1,), groups=32)
        assert unet.config == paper.config
        exported = unet_to_diffusers(paper, 32).config
    for name, value in PUBLISHED.items():
        mine = exported[name]
        assert (list(mine) if isinstance(mine, tuple) else mine) == value, name


def test_every_weight_of_theirs_is_one_of_ours(randomised):
    """Made distinct: each weight holds a number of its own, so that a swap of two of one shape would be seen."""
    model = UNet2DModel.from_config(TINY)
    with torch.no_grad():
        for i, weight in enumerate(model.parameters()):
            weight.fill_(i)
    ours = {
        name: weight.detach().flatten()[0].item()
        for name, weight in unet_from_diffusers(model).named_parameters()
    }
    assert sorted(ours.values()) == list(range(len(ours)))
    names = [name for name, _ in model.named_parameters()]
    for mine, theirs in {
        "down.1.conv.weight": "down_blocks.0.downsamplers.0.conv.weight",
        "down.2.attention.key.weight": "down_blocks.1.attentions.0.to_k.weight",
        "middle.1.block.time.bias": "mid_block.resnets.1.time_emb_proj.bias",
        "up.1.attention.out.weight": "up_blocks.0.attentions.1.to_out.0.weight",
        "up.4.block.shortcut.weight": "up_blocks.1.resnets.1.conv_shortcut.weight",
        "norm_out.bias": "conv_norm_out.bias",
    }.items():
        assert ours[mine] == names.index(theirs), mine


def test_the_weights_are_a_copy_in_float32_and_the_source_is_left_alone(randomised):
    model = UNet2DModel.from_config(TINY).half().train()
    unet = unet_from_diffusers(model)
    assert {weight.dtype for weight in unet.parameters()} == {torch.float32}
    again = unet_to_diffusers(unet, 8)
    before = again.conv_in.weight.clone()
    with torch.no_grad():
        unet.conv_in.weight.add_(1)
    assert torch.equal(again.conv_in.weight, before)
    assert torch.equal(model.conv_in.weight.float(), before)
    assert model.training
    assert model.dtype == torch.float16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_eps": 1e-5}, "norm_eps must be 1e-06, got 1e-05"),
        ({"freq_shift": 0}, "freq_shift must be 1, got 0"),
        ({"flip_sin_to_cos": True}, "flip_sin_to_cos must be False, got True"),
        ({"downsample_padding": 1}, "downsample_padding must be 0, got 1"),
        ({"center_input_sample": True}, "center_input_sample must be False, got True"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type .* got 'fourier'"),
        ({"time_embedding_dim": 64}, "time_embedding_dim must be None, got 64"),
        ({"act_fn": "relu"}, "act_fn must be 'silu', got 'relu'"),
        (
            {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
            "resnet_time_scale_shift must be 'default', got 'scale_shift'",
        ),
        ({"attn_norm_num_groups": 2}, "attn_norm_num_groups must be None, got 2"),
        ({"add_attention": False}, "add_attention must be True, got False"),
        ({"mid_block_type": None}, "mid_block_type .*, got None"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor must be 1, got 2"),
        ({"downsample_type": "resnet"}, "downsample_type must be 'conv', got 'resnet'"),
        ({"upsample_type": "resnet"}, "upsample_type must be 'conv', got 'resnet'"),
        ({"class_embed_type": "timestep"}, "class_embed_type .*, got 'timestep'"),
        ({"out_channels": 2}, "out_channels must be 1, got 2"),  # a learned variance
        ({"block_out_channels": [8, 12]}, r"block_out_channels .*, got \(8, 12\)"),
        ({"block_out_channels": [16, 8]}, r"block_out_channels .*, got \(16, 8\)"),
        (
            {"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]},
            r"up_block_types must be \('AttnUpBlock2D', 'UpBlock2D'\), got .'UpBlock2D'",
        ),
        (
            {"down_block_types": ["DownBlock2D", "ResnetDownsampleBlock2D"]},
            "down_block_types .*, got .'DownBlock2D', 'ResnetDownsampleBlock2D'",
        ),
        (
            {"norm_eps": 1e-5, "freq_shift": 0},
            "freq_shift must be 1, got 0; .*norm_eps must be 1e-06, got 1e-05",
        ),
    ],
)
def test_a_network_that_ours_cannot_be_is_refused_by_setting_and_value(
    changes, message
):
    with pytest.raises(ValueError, match=message):
        unet_from_diffusers(UNet2DModel.from_config(TINY | changes))


@pytest.mark.parametrize(
    "changes", [{"num_train_timesteps": 50}, {"sample_size": None}]
)
def test_a_setting_without_effect_on_the_network_is_accepted(changes):
    assert unet_from_diffusers(UNet2DModel.from_config(TINY | changes)).config[
        "channel_mults"
    ] == [1, 2]


def test_a_weight_without_a_place_is_refused():
    model = UNet2DModel.from_config(TINY)
    model.mid_block.more = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"mid_block\.more\.weight"):
        unet_from_diffusers(model)
    model = UNet2DModel.from_config(TINY)
    model.up_blocks[0].resnets[1].conv2.bias = None
    with pytest.raises(RuntimeError, match=r"up\.1\.block\.conv_2\.bias"):
        unet_from_diffusers(model)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: unet_from_diffusers(our_unet()),
            TypeError,
            "model must be a UNet2DModel, got UNet",
        ),
        (
            lambda: unet_to_diffusers("x", 8),
            TypeError,
            "unet must be a UNet, got str",
        ),
        (
            lambda: unet_to_diffusers(our_unet(), 6),
            ValueError,
            r"sample_size must be multiples of 4, .* got \(1, 1, 6, 6\)",
        ),
        (
            lambda: unet_to_diffusers(our_unet(channel_mults=(2, 4)), 8),
            ValueError,
            r"channel_mults must begin with 1, got \[2, 4\]",
        ),
        (
            lambda: unet_to_diffusers(our_unet(), 8.0),
            TypeError,
            r"sample_size must be an int, got 8\.0",
        ),
        (
            lambda: from_pipeline(our_unet()),
            TypeError,
            "pipeline must be a DDPMPipeline, got UNet",
        ),
        (lambda: to_pipeline(None), TypeError, "model must be a Model, got NoneType"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_without_diffusers_the_module_imports_and_its_functions_say_what_to_install(
    monkeypatch,
):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    module = runpy.run_path(interop.__file__)
    for call, argument in {
        "unet_from_diffusers": (None,),
        "unet_to_diffusers": (our_unet(), 8),
        "from_pipeline": (None,),
        "to_pipeline": (load("digits"),),
    }.items():
        with pytest.raises(ImportError, match="pip install diffusers"):
            module[call](*argument)


# The pipeline

SAMPLING = [
    pytest.param({}, id="default"),
    pytest.param({"variance": "beta", "clip": 1.0}, id="beta"),
    pytest.param({"variance": "posterior", "clip": None}, id="unclipped"),
    pytest.param({"variance": "beta", "clip": 0.4}, id="beta, 0.4"),
]


def steps_agree(model: Model, pipeline: DDPMPipeline, **options) -> bool:
    """Whether each step of our ancestral sampler is the pipeline's, network and noise included, from the same state.

    Both draw noise from generators of the same seed. The tolerance is for their ᾱ, a product of float32.
    """
    ours, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
    x_T = torch.randn((2, *model.shape), generator=torch.Generator().manual_seed(1))
    pipeline.scheduler.set_timesteps(model.diffusion.T)
    states = list(
        ancestral(model.unet, model.diffusion, x_T, generator=ours, **options)
    )
    times = pipeline.scheduler.timesteps.tolist()
    assert [state.t - 1 for state in states[:-1]] == times
    for now, after in pairwise(states):
        with torch.no_grad():
            eps = pipeline.unet(now.x_t, now.t - 1).sample
        step = pipeline.scheduler.step(eps, now.t - 1, now.x_t, generator=theirs)
        scale = 1 + float(now.x_t.abs().max())
        if float((step.prev_sample - after.x_t).abs().max()) > 1e-5 * scale:
            return False
    return True


@pytest.mark.parametrize("sampling", SAMPLING)
def test_our_model_and_its_pipeline_read_back_take_the_same_steps(
    tiny_model, tmp_path, sampling
):
    card = {"sampling": sampling} if sampling else {}
    diffusion = GaussianDiffusion(linear_schedule(25))
    model = Model(tiny_model.unet, diffusion, (1, 8, 8), card)
    to_pipeline(model).save_pretrained(tmp_path)
    pipeline = quiet(DDPMPipeline.from_pretrained(tmp_path, local_files_only=True))
    options = {"variance": "posterior", "clip": 1.0} | sampling
    assert steps_agree(model, pipeline, **options)
    other = {"posterior": "beta", "beta": "posterior"}[options["variance"]]
    assert not steps_agree(model, pipeline, **options | {"variance": other})
    assert not steps_agree(model, pipeline, **options | {"clip": 0.7})
    for steps in (25, 7):  # 7: the times in between are the same too
        mine = model.sample(2, sampler="ancestral", steps=steps, seed=3, **options)
        if steps == 25 or options["variance"] == "posterior":
            assert torch.allclose(drawn(pipeline, steps), mine, rtol=0, atol=1e-4)
    assert not torch.allclose(drawn(pipeline, 7, seed=4), mine, rtol=0, atol=0.1)


def test_our_model_comes_back_from_its_pipeline_as_it_was(tiny_model, tmp_path):
    for schedule in (linear_schedule(30), cosine_schedule(20)):
        model = Model(tiny_model.unet, GaussianDiffusion(schedule), (1, 8, 8))
        to_pipeline(model).save_pretrained(tmp_path)
        again = from_pipeline(DDPMPipeline.from_pretrained(tmp_path))
        assert torch.equal(again.diffusion.schedule.beta, schedule.beta), "in float64"
        assert again.unet.config == model.unet.config
        assert same_weights(again.unet, model.unet)
        assert again.shape == model.shape
        sampling = {"sampler": "ancestral", "steps": None}
        sampling |= {"variance": "posterior", "clip": 1.0}
        assert again.card == {"sampling": sampling}
        assert torch.equal(
            again.sample(2, seed=0, steps=4), model.sample(2, seed=0, steps=4)
        )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"variance": "beta", "clip": 1.0}),
        ({"variance_type": "fixed_small"}, {"variance": "posterior", "clip": 1.0}),
        ({"clip_sample_range": 0.5}, {"variance": "beta", "clip": 0.5}),
        ({"clip_sample": False}, {"variance": "beta", "clip": None}),
    ],
)
def test_their_pipeline_draws_what_our_model_draws(pipeline, changes, expected):
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, **changes)
    model = from_pipeline(pipeline)
    assert model.card["sampling"] == expected | {"sampler": "ancestral", "steps": None}
    assert steps_agree(model, pipeline, **expected)
    mine = model.sample(2, seed=3, **model.card["sampling"])
    assert torch.allclose(drawn(pipeline, 20), mine, rtol=0, atol=1e-4)
    # And once more around: what we export draws the same.
    assert torch.allclose(drawn(quiet(to_pipeline(model)), 20), mine, rtol=0, atol=1e-4)


def test_an_old_checkpoint_in_the_published_layout_loads(pipeline, tmp_path):
    """All files in one folder, attention weights under the names of 2022, settings that came later not written."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, weight in pipeline.unet.state_dict().items():
        for now, then in old.items():
            name = name.replace(f".{now}.", f".{then}.")
        weights[name] = weight
    assert "mid_block.attentions.0.proj_attn.bias" in weights
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    version = {"_diffusers_version": "0.1.0"}
    for name, content in {
        "config": TINY | version | {"_class_name": "UNet2DModel"},
        "scheduler_config": PUBLISHED_SCHEDULER
        | version
        | {"_class_name": "DDPMScheduler"},
        "model_index": {
            "_class_name": "DDPMPipeline",
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        }
        | version,
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    model = from_pipeline(DDPMPipeline.from_pretrained(tmp_path))
    assert same_weights(model.unet, from_pipeline(pipeline).unet)
    assert model.shape == (1, 8, 8)
    model.save(tmp_path / "ours.safetensors")
    assert load(tmp_path / "ours.safetensors").card == model.card
    assert torch.allclose(
        model.diffusion.schedule.beta, linear_schedule(1000).beta, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"beta_schedule": "linear"}, linear_schedule(1000)),
        ({"beta_schedule": "squaredcos_cap_v2"}, cosine_schedule(1000)),
        (
            {"trained_betas": cosine_schedule(1000, 0.1).beta[1:].tolist()},
            cosine_schedule(1000, 0.1),
        ),
        (
            {"trained_betas": np.linspace(1e-4, 0.02, 1000)},
            linear_schedule(1000),
        ),
    ],
    ids=["linear", "cosine", "list", "array"],
)
def test_betas_are_theirs_exactly_and_ours_of_the_same_formula(
    pipeline, settings, expected
):
    pipeline.scheduler = DDPMScheduler(**settings)
    schedule = from_pipeline(pipeline).diffusion.schedule
    assert torch.equal(schedule.beta[1:].float(), pipeline.scheduler.betas)
    assert torch.allclose(schedule.beta, expected.beta, rtol=1e-6, atol=0)
    if "trained_betas" in settings:
        assert torch.allclose(schedule.beta, expected.beta, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"prediction_type": "v_prediction"},
            "prediction_type must be 'epsilon', got 'v_prediction'",
        ),
        ({"prediction_type": "sample"}, "prediction_type .*, got 'sample'"),
        (
            {"variance_type": "learned_range"},
            "variance_type must be 'fixed_small' or 'fixed_large', got 'learned_range'",
        ),
        ({"variance_type": "fixed_large_log"}, "variance_type .* 'fixed_large_log'"),
        ({"thresholding": True}, "thresholding must be False, got True"),
        (
            {"trained_betas": [0.5] * 20, "rescale_betas_zero_snr": True},
            "rescale_betas_zero_snr must be False, got True",
        ),
        ({"trained_betas": [0.5] * 20}, "num_train_timesteps must be 20, got 1000"),
    ],
)
def test_a_schedule_that_ours_cannot_be_is_refused_by_setting_and_value(
    pipeline, settings, message
):
    pipeline.scheduler = DDPMScheduler(**{"num_train_timesteps": 1000} | settings)
    with pytest.raises(ValueError, match=message):
        from_pipeline(pipeline)


def test_a_pipeline_with_another_scheduler_or_network_is_refused(pipeline):
    other = DDPMPipeline(pipeline.unet, DDIMScheduler())
    with pytest.raises(
        TypeError, match="scheduler must be a DDPMScheduler, got DDIMScheduler"
    ):
        from_pipeline(other)
    size = UNet2DModel.from_config(TINY | {"sample_size": (8, 16)})
    with pytest.raises(TypeError, match=r"sample_size must be an int, got \(8, 16\)"):
        from_pipeline(DDPMPipeline(size, pipeline.scheduler))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"unet": our_unet(num_classes=3)},
            "num_classes must be None, got 3",
        ),
        ({"shape": (1, 8, 16)}, "width must be 8, got 16"),
        (
            {"card": {"sampling": {"variance": "learned"}}},
            "variance must be 'posterior' or 'beta', got 'learned'",
        ),
    ],
)
def test_a_model_that_a_pipeline_cannot_be_is_refused(model, message):
    diffusion = GaussianDiffusion(NoiseSchedule([0.9, 0.99, 0.999]))
    whole = {"unet": our_unet(), "diffusion": diffusion, "shape": (1, 8, 8)} | model
    with pytest.raises(ValueError, match=message):
        to_pipeline(Model(**whole))


def test_the_bundled_model_can_be_exported():
    model = load("digits")
    pipeline = to_pipeline(model)
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), 500
    with torch.no_grad():
        eps = model.unet(x, torch.tensor([t, t]))
        assert torch.allclose(pipeline.unet(x, t - 1).sample, eps, atol=1e-5)
