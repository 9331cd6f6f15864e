"""What DDIM should do with the noise when it clips the estimate of x_0.

    python benchmarks/clipping.py

x_t is a mixture of x_0 and ε. When a sampler clips its estimate of x_0, the estimate of ε no longer belongs to it.
Our DDIM moves it along; the DDIMScheduler of diffusers does so only with ``use_clipped_model_output=True``. This
script samples a network from a short training (500 steps, constant learning rate 1e-3, EMA decay 0.995) with the
scheduler of diffusers, both ways, from the same noise, and measures the samples as ``digits.py`` does.
"""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
from measure import digits_quality, environment, write_json

from ddpm_lite import data
from ddpm_lite.train import RECIPES, new_model, train

STEPS, SAMPLES, SAMPLING_STEPS = 500, 1437, 50
RESULT = Path(__file__).parent / "results" / "clipping.json"


@torch.no_grad()
def sample(unet: torch.nn.Module, move_noise_along: bool) -> torch.Tensor:
    """DDIM by diffusers; its times count from 0."""
    scheduler = diffusers.DDIMScheduler(clip_sample=True)
    scheduler.set_timesteps(SAMPLING_STEPS)
    x = torch.randn(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for t in scheduler.timesteps:
        eps = unet(x, torch.full((SAMPLES,), int(t) + 1))
        x = scheduler.step(
            eps, t, x, use_clipped_model_output=move_noise_along
        ).prev_sample
    return x.clamp(-1, 1)


def main() -> None:
    """Train, sample twice, write the result."""
    torch.set_num_threads(1)
    model = new_model(RECIPES["digits"], seed=0)
    run = train(
        model.unet,
        model.diffusion,
        data.digits("train").x_0,
        steps=1000 * STEPS,  # of a half cosine this long, the part we run is flat
        batch_size=64,
        learning_rate=1e-3,
        warmup=0,
        ema_decay=0.995,
        seed=0,
    )
    for state in run:
        if state.step == STEPS:
            break
    result = {"command": "python benchmarks/clipping.py"}
    for name, along in (("noise left as it was", False), ("noise moved along", True)):
        result[name] = digits_quality(sample(state.ema, along))
        print(name, result[name], flush=True)
    result["environment"] = {**environment(), "diffusers": diffusers.__version__}
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
