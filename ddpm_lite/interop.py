"""Networks and pipelines of diffusers, from theirs to ours and back, weight for weight. Chapter 8 of the book.

A published checkpoint becomes a ``Model``, and a ``Model`` becomes a pipeline that works without us:

>>> model = from_pipeline(DDPMPipeline.from_pretrained("google/ddpm-cifar10-32"))
>>> images = model.sample(16, **model.card["sampling"])
>>> to_pipeline(model).save_pretrained("folder")

Only this module needs diffusers, which is not installed with the package. They count time from 0 and we from 1, but
``UNet`` takes that 1 off by itself: ``unet(x_t, t)`` is ``model(x_t, t - 1).sample``.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from ddpm_lite import GaussianDiffusion, Model, NoiseSchedule, UNet

if TYPE_CHECKING:
    import diffusers

# Settings that mean the same in both, ours first.
_SAME = {"in_channels": "in_channels", "groups": "norm_num_groups"}
_SAME |= {"blocks_per_level": "layers_per_block", "dropout": "dropout"}
_SAME |= {"head_channels": "attention_head_dim", "num_classes": "num_class_embeds"}
# What is built into ours, and is not their default.
_FIXED = {"norm_eps": 1e-6, "freq_shift": 1, "flip_sin_to_cos": False}
_FIXED |= {"downsample_padding": 0}
# Layers of a residual block, then those of self-attention.
_LAYERS = {"norm_1": "norm1", "conv_1": "conv1", "norm_2": "norm2", "conv_2": "conv2"}
_LAYERS |= {"time": "time_emb_proj", "shortcut": "conv_shortcut", "norm": "group_norm"}
_LAYERS |= {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
# Variances of a step, theirs first.
_VARIANCES = {"fixed_small": "posterior", "fixed_large": "beta"}


def unet_from_diffusers(model: diffusers.UNet2DModel) -> UNet:
    """Our network with the configuration of theirs and a copy of its weights.

    Args:
        model: built as the published DDPM checkpoints are: blocks ``DownBlock2D`` and ``AttnDownBlock2D``, their mirror
            image on the way up, ``downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6``, and
            diffusers' defaults in all that ``UNet`` has no argument for.

    Returns:
        The network in evaluation mode, in float32 on the CPU. If it has labels, give them: it was trained with them.

    Raises:
        ImportError: without diffusers.
        TypeError: if ``model`` is something else.
        ValueError: for settings that ``UNet`` cannot represent; the message lists each with its value.
    """
    settings = _instance("model", model, _theirs("UNet2DModel")).config.items()
    theirs = {n: tuple(v) if isinstance(v, list) else v for n, v in settings}
    channels, levels = theirs["block_out_channels"], theirs["down_block_types"]
    config = {ours: theirs[name] for ours, name in _SAME.items()} | {
        "base_channels": channels[0],
        "channel_mults": [max(1, c // channels[0]) for c in channels],
        "attention_levels": [i for i, b in enumerate(levels) if b.startswith("Attn")],
    }
    defaults = inspect.signature(type(model)).parameters.items()
    accepted = {name: p.default for name, p in defaults} | _settings(config)
    for name in ("sample_size", "num_train_timesteps"):  # neither changes the network
        del accepted[name]
    _require(theirs, **{name: [value] for name, value in accepted.items()})
    unet = UNet(**config)
    names = {_their_name(n, unet): n for n in unet.state_dict()}
    unet.load_state_dict({names.get(n, n): w for n, w in model.state_dict().items()})
    return unet.eval()


def unet_to_diffusers(unet: UNet, sample_size: int) -> diffusers.UNet2DModel:
    """Their network with the configuration of ours and a copy of its weights: undoes ``unet_from_diffusers``.

    Args:
        unet: the network.
        sample_size: height and width of the images that a pipeline will draw with it.

    Returns:
        The network in evaluation mode, in float32 on the CPU. If it has labels, it cannot be called without.

    Raises:
        ImportError: without diffusers.
        TypeError, ValueError: if ``unet`` is no ``UNet``, if it cannot take images of this size, or if its
            ``channel_mults`` do not begin with 1: their first layer has the width of the first level.
    """
    config, weights = _instance("unet", unet, UNet).config, unet.state_dict().items()
    if (mults := config["channel_mults"])[0] != 1:
        raise ValueError(f"channel_mults must begin with 1, got {mults}")
    unet.check_shape("sample_size", (1, config["in_channels"], *[sample_size] * 2))
    model = _theirs("UNet2DModel")(sample_size=sample_size, **_settings(config))
    model.load_state_dict({_their_name(name, unet): w for name, w in weights})
    return model.eval()


def from_pipeline(pipeline: diffusers.DDPMPipeline) -> Model:
    """The network of a pipeline with its schedule, β for β.

    Returns:
        A model in evaluation mode, in float32 on the CPU. ``card["sampling"]`` has the arguments with which ``sample``
        does what the pipeline does: the ancestral sampler in all T steps, with the variance and the clipping of
        its scheduler.

    Raises:
        ImportError: without diffusers.
        TypeError: if ``pipeline`` is something else, or its scheduler is no ``DDPMScheduler``.
        ValueError: for settings that we cannot represent, such as a prediction other than ε, a learned variance, or
            images that are not square; the message lists each with its value.
    """
    _instance("pipeline", pipeline, _theirs("DDPMPipeline"))
    scheduler = pipeline.scheduler
    theirs = _instance("scheduler", scheduler, _theirs("DDPMScheduler")).config
    _require(theirs, prediction_type=["epsilon"], variance_type=list(_VARIANCES))
    _require(theirs, thresholding=[False], rescale_betas_zero_snr=[False])
    _require(theirs, num_train_timesteps=[len(scheduler.betas)])
    beta = scheduler.betas if theirs.trained_betas is None else theirs.trained_betas
    unet, size = unet_from_diffusers(pipeline.unet), pipeline.unet.config.sample_size
    shape = (unet.config["in_channels"], size, size)
    unet.check_shape("sample_size", (1, *shape))
    clip = theirs.clip_sample_range if theirs.clip_sample else None
    sampling = {"sampler": "ancestral", "steps": None, "clip": clip}
    sampling["variance"] = _VARIANCES[theirs.variance_type]
    diffusion = GaussianDiffusion(NoiseSchedule(beta))
    return Model(unet, diffusion, shape, {"sampling": sampling})


def to_pipeline(model: Model) -> diffusers.DDPMPipeline:
    """A pipeline that draws as ``model`` does by the ancestral sampler, to keep with its ``save_pretrained``.

    The variance and the clipping are those in ``model.card["sampling"]``; by default "posterior" and 1, as in
    ``Model.sample``. Call it with ``num_inference_steps=model.diffusion.T``: its default is 1000, whatever T is. With
    fewer steps it visits the times that we visit, but rounds halves to even, and with the variance "beta" adds noise in
    the last step too.

    Raises:
        ImportError: without diffusers.
        TypeError: if ``model`` is no ``Model``.
        ValueError: for a network with labels, which a pipeline cannot pass on, images that are not square, and a
            variance that diffusers does not know.
    """
    unet, (_, size, width) = _instance("model", model, Model).unet, model.shape
    sampling = {"variance": "posterior", "clip": 1.0} | model.card.get("sampling", {})
    names = {ours: name for name, ours in _VARIANCES.items()}
    _require(unet.config | {"width": width}, num_classes=[None], width=[size])
    _require(sampling, variance=list(names))
    scheduler = _theirs("DDPMScheduler")(
        model.diffusion.T,
        trained_betas=model.diffusion.schedule.beta[1:].tolist(),
        variance_type=names[sampling["variance"]],
        clip_sample=sampling["clip"] is not None,
        clip_sample_range=sampling["clip"] or 1.0,
        timestep_spacing="trailing",
    )
    return _theirs("DDPMPipeline")(unet_to_diffusers(unet, size), scheduler)


def _settings(config: dict) -> dict[str, object]:
    """Their arguments for the network that ``UNet(**config)`` is of ours."""
    channels = tuple(config["base_channels"] * m for m in config["channel_mults"])
    kinds = ["Attn" * (i in config["attention_levels"]) for i in range(len(channels))]
    return _FIXED | {
        **{name: config[ours] for ours, name in _SAME.items()},
        "out_channels": config["in_channels"],
        "block_out_channels": channels,
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
    }


def _their_name(name: str, unet: UNet) -> str:
    """Their name of a weight: down.3.block.conv_1.bias is down_blocks.1.resnets.0.conv1.bias with 2 blocks a level."""
    part, index, *rest = name.split(".")
    if part not in ("down", "middle", "up"):
        return name.replace("norm_out", "conv_norm_out")
    # Ours are numbered through; theirs by level: its residual blocks, on the way up one more, and a change of size.
    level, j = divmod(int(index), unet.config["blocks_per_level"] + 1 + (part == "up"))
    place = f"{part}_blocks.{level}" if part != "middle" else "mid_block"
    if rest[0] == "conv":
        return f"{place}.{part}samplers.0.conv.{rest[1]}"
    kind = "resnets" if rest[0] == "block" else "attentions"
    return f"{place}.{kind}.{j}.{_LAYERS[rest[1]]}.{rest[2]}"


def _require(settings: dict, **accepted: list) -> None:
    """Raise ValueError, naming each setting and its value, unless all have one of the accepted values."""
    wrong = [
        f"{name} must be {' or '.join(map(repr, values))}, got {settings[name]!r}"
        for name, values in accepted.items()
        if settings[name] not in values
    ]
    if wrong:
        raise ValueError("; ".join(wrong))


def _instance(name: str, value: object, kind: type) -> object:
    """``value``, or TypeError if it is of another kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
    return value


def _theirs(name: str) -> type:
    """The class of this name in diffusers, or ImportError with what to install."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError("ddpm_lite.interop needs: pip install diffusers") from error
    return getattr(diffusers, name)
