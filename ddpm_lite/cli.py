"""The command line: ``ddpm-lite train``, ``sample`` and ``evaluate``. Chapters 9 and 11 of the book."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from ddpm_lite import __version__, _check, data, evaluate, plot, variational_bound
from ddpm_lite.checkpoint import atomic
from ddpm_lite.model import load
from ddpm_lite.sampler import SAMPLERS
from ddpm_lite.train import (
    PRECISIONS,
    RECIPES,
    fastest_precision,
    new_model,
    recipe_for,
    train,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status, 0 or 1; a wrong call exits with 2 at once."""
    parser = _parser()
    options = parser.parse_args(arguments)
    options.command = shlex.join(
        ["ddpm-lite", *(sys.argv[1:] if arguments is None else arguments)]
    )
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("ddpm-lite: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"ddpm-lite: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not dist.is_initialized():
            raise
        print(f"ddpm-lite: process {dist.get_rank()} ends: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ddpm-lite",
        description="Train a small denoising diffusion model and draw samples from it.",
        epilog="Start with:  ddpm-lite sample digits --out digits.png   (a model that comes with the package)",
    )
    parser.add_argument(
        "--version", action="version", version=f"ddpm-lite {__version__}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "train",
        help="train a model on a data set",
        description="Train a UNet to predict noise (algorithm 1 of DDPM) and write the averaged weights to "
        "OUT/model.safetensors.",
        epilog="Example:  ddpm-lite train --data digits --seed 1 --out runs/digits   (about a minute on two "
        "CPU cores). A GPU is used when there is one.",
        formatter_class=_Help,
    )
    command.add_argument(
        "--data",
        metavar="NAME|DIR",
        default="digits",
        help="digits: 1,437 images of 8×8 pixels, part of scikit-learn. mnist, fashion-mnist, cifar10: read from "
        "$DDPM_LITE_DATA or downloaded. Or a folder of images",
    )
    command.add_argument(
        "--size",
        type=int,
        metavar="S",
        help="for a folder: scale and crop its images to S×S pixels",
    )
    command.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="for a folder: leave out, with a warning, files that cannot be read",
    )
    command.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="training steps (default: what suits the data)",
    )
    command.add_argument(
        "--seed", type=int, default=0, help="fixes the initial weights and all noise"
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="the folder to write (default: runs/DATA)",
    )
    command.add_argument(
        "--save-every",
        type=int,
        default=1000,
        metavar="N",
        help="steps between checkpoints (the last two are kept until the run is finished)",
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint in DIR, as if the run had never stopped; start anew if there is none",
    )
    command.add_argument(
        "--stop-after",
        type=int,
        metavar="N",
        help="stop after step N, as if by Ctrl-C, leaving the rest for --resume",
    )
    command.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        help="of the network's products (default: what is fastest on the device)",
    )
    command.set_defaults(run=_train)

    command = commands.add_parser(
        "sample",
        help="draw images from a trained model",
        description="Draw images from a model and write them as one PNG.",
        epilog="Example:  ddpm-lite sample runs/digits -n 100 --sampler ancestral --steps 1000 --out digits.png",
        formatter_class=_Help,
    )
    command.add_argument(
        "model",
        help='a folder that "train" wrote, a .safetensors file, or the bundled "digits"',
    )
    command.add_argument(
        "-n", type=int, default=64, metavar="N", help="number of images"
    )
    command.add_argument(
        "--sampler",
        choices=sorted(SAMPLERS),
        default="ddim",
        help="ddim: no noise is added, good in few steps. dpm++: the same path in fewer. ancestral: algorithm 2 of "
        "DDPM, wants many steps",
    )
    command.add_argument(
        "--steps",
        type=int,
        default=50,
        metavar="N",
        help="network evaluations for each image",
    )
    command.add_argument("--seed", type=int, help="for the same images every time")
    command.add_argument(
        "--out",
        type=Path,
        default=Path("samples.png"),
        metavar="PNG",
        help="the grid of images",
    )
    command.add_argument(
        "--label", type=int, help="draw this class (for a model trained with labels)"
    )
    command.add_argument(
        "--emergence",
        type=Path,
        metavar="PNG",
        help="also draw six of them emerging from noise",
    )
    command.set_defaults(run=_sample)

    command = commands.add_parser(
        "evaluate", help="measure a model", formatter_class=_Help
    )
    command.epilog = "Example:  ddpm-lite evaluate runs/digits --data digits   (under a minute on one CPU core)"
    command.description = "Bits per dimension, Fréchet distance, precision, recall and nearest training images."
    command.add_argument("model", help="as for sample")
    command.add_argument("--data", default="digits", help="as for train")
    command.add_argument("-n", type=int, help="samples (default: at most 10,000)")
    command.add_argument("--sampler", choices=SAMPLERS, default="ddim", help="which")
    command.add_argument("--steps", type=int, default=50, help="as for sample")
    command.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    command.add_argument("--extractor", help="pixels, mnist-classifier or inception")
    command.add_argument("--out", type=Path, help="default: evaluation.json, in RUN")
    command.set_defaults(run=_evaluate)
    return parser


def _train(options: argparse.Namespace) -> None:
    rank, device = _processes()
    folder = options.out or Path("runs") / Path(options.data).name
    path = folder / "model.safetensors"
    if rank == 0:
        with contextlib.suppress(_Discard), atomic(path):
            raise _Discard  # fail now, not after an hour, if it cannot be written
    if not options.resume and any(folder.glob("step-*.safetensors")):
        raise ValueError(
            f"{folder} holds a run that is not finished; go on with --resume, or give another --out"
        )
    if options.data not in RECIPES and Path(options.data).is_dir():
        if options.size is None:
            raise ValueError("a folder of images needs --size")
        images = data.folder(
            options.data, options.size, skip_unreadable=options.skip_unreadable
        )
        recipe = recipe_for(images.x_0.shape[1:])
    else:
        images = data.load(options.data)
        recipe = RECIPES[options.data]
    model = new_model(recipe, options.seed)
    model.unet.to(device)
    steps = recipe.steps if options.steps is None else options.steps
    chosen = recipe.options | {
        "batch_size": min(recipe.options["batch_size"], len(images.x_0))
    }
    precision = options.precision or fastest_precision(device)
    count = sum(p.numel() for p in model.unet.parameters())
    if rank == 0:
        print(
            f"{options.data}: {len(images.x_0):,} images; UNet with {count:,} parameters on {device} "
            f"in {precision}; {steps:,} steps"
        )
    run = train(
        model.unet,
        model.diffusion,
        images.x_0.to(device),
        images.y if model.unet.config["num_classes"] else None,
        steps=steps,
        seed=options.seed,
        precision=precision,
        folder=folder,
        save_every=options.save_every,
        **chosen,
    )
    start, state, first, failure = time.perf_counter(), None, None, None
    with _Stop() as stop, tqdm(total=steps, unit="step", disable=rank > 0) as progress:
        try:
            for state in run:
                first = state.step if first is None else first
                progress.update(state.step - progress.n)
                if state.step % 10 == 0:
                    loss = float(state.losses[-50:].mean())
                    progress.set_postfix(loss=f"{loss:.4f}", refresh=False)
                if stop.signal or state.step == options.stop_after:
                    break
        except FloatingPointError as error:
            failure = error
            if state is None or not all(
                bool(p.isfinite().all()) for p in state.ema.parameters()
            ):
                raise
        run.close()  # writes a checkpoint
    seconds = time.perf_counter() - start
    if rank > 0:
        return
    if state.step < steps:
        print(
            f"stopped after step {state.step} of {steps}; --resume goes on from there",
            file=sys.stderr,
        )
    model.unet = state.ema
    model.card = {
        "command": options.command,
        "data": f"{options.data}, training split, {len(images.x_0)} images",
        "parameters": count,
        "steps": state.step,
        "batch_size": chosen["batch_size"],
        "seed": options.seed,
        "precision": precision,
        "seconds": round(seconds, 1),
        "seconds_are_of_steps": [first, state.step],
        "losses": [round(float(part.mean()), 5) for part in state.losses.split(100)],
        "versions": {"ddpm_lite": __version__, "torch": torch.__version__},
    }
    model.save(path)
    if state.step == steps:
        for checkpoint in folder.glob("step-*.safetensors"):
            checkpoint.unlink()
    print(f"trained in {seconds:.0f} s; wrote {path}")
    if failure:
        raise failure
    if stop.signal:
        raise SystemExit(128 + stop.signal)


def _processes() -> tuple[int, torch.device]:
    """The number of this process among those that torchrun started, 0 if it did not, and its device."""
    cuda = torch.cuda.is_available()
    if "LOCAL_RANK" not in os.environ:
        return 0, torch.device("cuda" if cuda else "cpu")
    device = (
        torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if cuda
        else torch.device("cpu")
    )
    if not dist.is_initialized():
        store, rank, world = next(dist.rendezvous("env://"))
        # A restarted job must not read what the lost one has left in the store.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt {attempt}", store)
        backend = "nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
        atexit.register(dist.destroy_process_group)
    return dist.get_rank(), device


class _Stop(contextlib.AbstractContextManager):
    """Notes the first Ctrl-C or SIGTERM in ``signal``, so that the step at hand can end; the second one acts."""

    signal = 0

    def __enter__(self) -> _Stop:
        def note(number: int, _: object) -> None:
            self.signal = number
            self.__exit__()

        self.before = {
            number: signal.signal(number, note)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _sample(options: argparse.Namespace) -> None:
    model = load(options.model)
    model.unet.to("cuda" if torch.cuda.is_available() else "cpu")
    run = model.trajectory(
        options.n,
        y=options.label,
        sampler=options.sampler,
        steps=options.steps,
        seed=options.seed,
    )
    visited = []
    for state in tqdm(run, total=options.steps + 1, unit="step"):
        visited.append((state.t, state.x_t[:6].cpu()))
    plot.save(
        plot.image_grid(state.x_t, columns=max(1, round(options.n**0.5))), options.out
    )
    print(f"wrote {options.n} images to {options.out}")
    if options.emergence:
        last = len(visited) - 1
        indices = sorted(
            {round(last * (1 - (1 - i / 9) ** 2)) for i in range(10)}
        )  # most happens near the end
        shown = [visited[i] for i in indices]
        plot.save(plot.emergence(shown), options.emergence)
        print(f"wrote the way there to {options.emergence}")


def _evaluate(options: argparse.Namespace) -> None:
    folder = Path(options.model) if Path(options.model).is_dir() else Path()
    out = options.out or folder / "evaluation.json"
    with atomic(out) as temporary:  # fails before the work, if it must
        result = _measure(options)
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    table = [f"{key:40}{value:10.3f}" for key, value in result["measures"].items()]
    print(*table, f"wrote {out}", sep="\n")


def _measure(options: argparse.Namespace) -> dict[str, object]:
    """What the result file holds: the options, how else it was measured, and the measures."""
    model, name, seed = load(options.model), options.data, options.seed
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.unet.to(device)
    options.reference_split = "train" if Path(name).is_dir() else "test"
    if Path(name).is_dir():
        images = data.folder(name, model.shape[1])
        train = test = images._replace(x_0=data.from_uint8(images.x_0))
    else:
        train, test = (data.load(name, split) for split in ("train", "test"))
    _check.like(name, train.x_0[:1], options.model, torch.empty(1, *model.shape))
    extractor = ["pixels", "mnist-classifier"][model.shape == (1, 28, 28)]
    options.extractor = extractor = options.extractor or extractor
    n = options.n = min(len(train.x_0), 10_000) if options.n is None else options.n
    levels = options.levels = 17 if name == "digits" else 256
    options.versions = {"ddpm_lite": __version__, "torch": torch.__version__}
    real = evaluate.features(test.x_0, extractor, levels)

    generator = torch.Generator().manual_seed(seed)
    x_0 = test.x_0[torch.randperm(len(test.x_0), generator=generator)[:360]].to(device)
    how = {"samples": min(20, model.diffusion.T - 1), "variance": "beta", "clip": 1.0}
    bound = variational_bound(
        model.unet, model.diffusion, x_0, levels=levels, generator=generator, **how
    )
    options.bound = how | {"images": len(x_0)}
    row = {"bits_per_dimension": float(bound.total.mean())}
    row["standard_error_of_bits_per_dimension"] = bound.standard_error

    y = train.y.repeat(1 + n // len(train.y))[:n]
    y = y if model.unet.class_embedding else None
    x_0 = model.sample(n, y=y, sampler=options.sampler, steps=options.steps, seed=seed)
    x = evaluate.features(x_0, extractor, levels)
    row["frechet_distance"] = evaluate.frechet_distance(x, real)
    row["two_sample_accuracy"] = evaluate.two_sample_accuracy(x, real)
    row["precision"], row["recall"] = evaluate.precision_recall(real, x)
    greys = [evaluate.features(z, "pixels", levels) for z in (x_0, train.x_0)]
    ratio, _ = evaluate.nearest_neighbours(*greys)
    row["nearest_ratio_below_1"] = float((ratio < 1).double().mean())
    row["nearest_ratio_smallest"] = float(ratio.min())
    if y is not None:
        classifier = evaluate.fit_classifier(x_0.cpu(), y, seed)
        row["classifier_accuracy"] = evaluate.classifier_accuracy(classifier, *test)
    del options.run, options.out
    return {**vars(options), "measures": {k: round(v, 4) for k, v in row.items()}}


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each default, unless there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return (
            action.help if action.default is None else super()._get_help_string(action)
        )


class _Discard(Exception):
    pass


if __name__ == "__main__":
    sys.exit(main())
