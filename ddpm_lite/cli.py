"""The command line: ``ddpm-lite train``, ``sample`` and ``evaluate``. Chapters 9 and 11 of the book.

A command is a function at the end of this file. Its docstring is the help, its arguments are the options.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import random
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args, get_type_hints

import torch
from tqdm import tqdm

from ddpm_lite import __version__, _check, _distributed, evaluate, plot
from ddpm_lite import data as data_sets
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
    """Run the command line and return its exit status: 0, 1 for an error, 130 for Ctrl-C; a wrong call exits with 2."""
    parser = argparse.ArgumentParser(
        prog="ddpm-lite",
        description="Train a small denoising diffusion model and draw samples from it.",
        epilog="Start with:  ddpm-lite sample digits --out digits.png   (a model that comes with the package)",
    )
    version = f"ddpm-lite {__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for function in (_train, _sample, _evaluate):
        _add(commands, function)
    options = vars(parser.parse_args(arguments))
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options.pop("run")(shlex.join(["ddpm-lite", *arguments]), **options)
    except KeyboardInterrupt:
        print("ddpm-lite: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"ddpm-lite: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        rank, world = _distributed.place()
        if world == 1:
            raise
        print(f"ddpm-lite: process {rank} ends: {error}", file=sys.stderr)
        return 1
    return 0


_CHOICES = {"sampler": sorted(SAMPLERS), "precision": list(PRECISIONS)}


def _add(commands: argparse._SubParsersAction, function: Callable[..., None]) -> None:
    """Make a command of a function: an argument with a default is an option, one without has to be given."""
    about, _, described = inspect.getdoc(function).partition("\n\nArgs:\n")
    title, description, example = about.split("\n\n")
    helps = dict(re.findall(r"^    (\w+): (.*(?:\n     .*)*)", described, re.MULTILINE))
    command = commands.add_parser(
        function.__name__.strip("_"),
        help=title,
        description=description,
        epilog=example,
    )
    command.set_defaults(run=function)
    types = get_type_hints(function)
    for name, argument in [*inspect.signature(function).parameters.items()][1:]:
        kind = (get_args(types[name]) or [types[name]])[0]  # int of int | None
        how = {"type": kind, "choices": _CHOICES.get(name)}
        if kind is bool:
            how = {"action": "store_true"}
        elif argument.default not in (None, argument.empty):
            how["default"] = argument.default
            helps[name] += " (default: %(default)s)"
        if argument.default is not argument.empty:
            name = ("--" if len(name) > 1 else "-") + name.replace("_", "-")
        command.add_argument(name, help=helps[name.strip("-").replace("-", "_")], **how)


class _Stop(contextlib.AbstractContextManager):
    """Notes the first Ctrl-C or SIGTERM in ``signal``, so that the step at hand can end; the second one acts."""

    signal = 0

    def __enter__(self) -> _Stop:
        def note(number: int, _: object) -> None:
            self.signal = number
            self.__exit__()

        numbers = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.signal(number, note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _train(
    command: str,
    data: str = "digits",
    size: int | None = None,
    skip_unreadable: bool = False,
    steps: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    save_every: int = 1000,
    resume: bool = False,
    stop_after: int | None = None,
    precision: str | None = None,
    compile: bool = False,
) -> None:
    """train a model on a data set

    Train a UNet to predict noise (algorithm 1 of DDPM) and write the averaged weights to OUT/model.safetensors.

    Example: ddpm-lite train --data digits --seed 1 --out runs/digits (about a minute on two CPU cores). A GPU is
    used when there is one; for more of them: torchrun --nproc-per-node=N -m ddpm_lite train ...

    Args:
        data: "digits": 1,437 images of 8×8 pixels, part of scikit-learn. "mnist", "fashion-mnist", "cifar10": read
            from $DDPM_LITE_DATA or downloaded. Or a folder of images
        size: for a folder: scale and crop its images to SIZE×SIZE pixels
        skip_unreadable: for a folder: leave out, with a warning, files that cannot be read
        steps: training steps (default: what suits the data)
        seed: fixes the initial weights and all noise
        out: the folder to write (default: runs/DATA)
        save_every: steps between checkpoints (the last two are kept until the run is finished)
        resume: go on from the newest checkpoint in OUT, as if the run had never stopped; start anew if there is none
        stop_after: stop after this step, as if by Ctrl-C, leaving the rest for --resume
        precision: of the network's products (default: what is fastest on the device)
        compile: compile the network first (torch.compile), which takes a minute or more: for long runs on a GPU
    """
    rank, device = _distributed.begin()
    folder = out or Path("runs") / Path(data).name
    path = folder / "model.safetensors"
    if rank == 0:  # fail now, not after an hour, if it cannot be written
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    if not resume and any(folder.glob("step-*.safetensors")):
        raise ValueError(
            f"{folder} holds a run that is not finished; go on with --resume, or give another --out"
        )
    images = _images(data, "train", size, skip_unreadable)
    recipe = RECIPES.get(data) or recipe_for(images.x_0.shape[1:])
    model = new_model(recipe, seed)
    model.unet.to(device)
    if compile:
        model.unet.compile()
    steps = recipe.steps if steps is None else steps
    batch_size = min(recipe.options["batch_size"], len(images.x_0))
    precision = precision or fastest_precision(device)
    parameters = sum(p.numel() for p in model.unet.parameters())
    if rank == 0:
        print(
            f"{data}: {len(images.x_0):,} images; UNet with {parameters:,} parameters on {device} "
            f"in {precision}; {steps:,} steps"
        )
    run = train(
        model.unet,
        model.diffusion,
        images.x_0.to(device),
        images.y if model.unet.config["num_classes"] else None,
        steps=steps,
        seed=seed,
        precision=precision,
        folder=folder,
        save_every=save_every,
        **recipe.options | {"batch_size": batch_size},
    )
    start, state, first, failure = time.perf_counter(), None, None, None
    with _Stop() as stop, tqdm(total=steps, unit="step", disable=rank > 0) as progress:
        try:
            for state in run:
                first = first or state.step
                progress.update(state.step - progress.n)
                if state.step % 50 == 0:  # train waits for the device then, too
                    loss = float(state.losses[-50:].mean())
                    progress.set_postfix(loss=f"{loss:.4f}", refresh=False)
                if stop.signal or state.step == stop_after:
                    break
        except FloatingPointError as error:
            failure = error
            if not state or not all(p.isfinite().all() for p in state.ema.parameters()):
                raise
        run.close()  # writes a checkpoint
    seconds = time.perf_counter() - start
    if rank > 0:
        return
    if state.step < steps:
        where = f"stopped after step {state.step} of {steps}"
        print(f"{where}; --resume goes on from there", file=sys.stderr)
    model.unet = state.ema
    model.card = {
        "command": command,
        "data": f"{data}, training split, {len(images.x_0)} images",
        "parameters": parameters,
        "steps": state.step,
        "batch_size": batch_size,
        "seed": seed,
        "precision": precision,
        "seconds": round(seconds, 1),
        "seconds_are_of_steps": [first, state.step],
        "losses": [round(float(part.mean()), 5) for part in state.losses.split(20)],
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


def _sample(
    command: str,
    model: str,
    n: int = 64,
    sampler: str = "ddim",
    steps: int = 50,
    seed: int | None = None,
    out: Path = Path("samples.png"),
    label: int | None = None,
    emergence: Path | None = None,
) -> None:
    """draw images from a trained model

    Draw images from a model and write them as one PNG.

    Example: ddpm-lite sample runs/digits -n 100 --sampler ancestral --steps 1000 --out digits.png

    Args:
        model: a folder that "train" wrote, a .safetensors file, or the bundled "digits" or "mnist"
        n: number of images
        sampler: ddim: no noise is added, good in few steps. dpm++: the same path in fewer. ancestral: algorithm 2 of
            DDPM, wants many steps
        steps: network evaluations for each image
        seed: for the same images every time
        out: the grid of images
        label: draw this class (for a model trained with labels)
        emergence: also draw six of them emerging from noise, in this PNG
    """
    rank, device = _distributed.begin()
    loaded = load(model)
    _distributed.share_out(loaded.unet.to(device))
    seed = _distributed.agreed(random.getrandbits(32)) if seed is None else seed
    run = loaded.trajectory(n, y=label, sampler=sampler, steps=steps, seed=seed)
    visited = []
    for state in tqdm(run, total=steps + 1, unit="step", disable=rank > 0):
        if emergence:
            visited.append((state.t, state.x_t[:6].clone()))
    if rank > 0:
        return
    plot.save(plot.image_grid(state.x_t, columns=max(1, round(n**0.5))), out)
    print(f"wrote {n} images to {out}")
    if emergence:
        last = len(visited) - 1
        most_near_the_end = {round(last * (1 - (1 - i / 9) ** 2)) for i in range(10)}
        shown = [visited[i] for i in sorted(most_near_the_end)]
        plot.save(plot.emergence(shown), emergence)
        print(f"wrote the way there to {emergence}")


def _evaluate(
    command: str,
    model: str,
    data: str = "digits",
    n: int | None = None,
    sampler: str = "ddim",
    steps: int = 50,
    seed: int = 0,
    extractor: str | None = None,
    out: Path | None = None,
) -> None:
    """measure a model

    Bits per dimension, Fréchet distance, precision, recall and nearest training images.

    Example: ddpm-lite evaluate runs/digits --data digits (under a minute on one CPU core)

    Args:
        model: as for sample
        data: as for train
        n: number of samples (default: that of training images, at most 10,000)
        sampler: as for sample
        steps: as for sample
        seed: of all that is drawn
        extractor: of features: pixels, mnist-classifier or inception (default: mnist-classifier if it fits, or pixels)
        out: the result file (default: evaluation.json, in the folder of the model)
    """
    rank, device = _distributed.begin()
    folder = Path(model) if Path(model).is_dir() else Path(model).parent
    out = out or folder / "evaluation.json"
    with atomic(out) if rank == 0 else contextlib.nullcontext() as temporary:
        loaded = load(model)  # the file is begun before the work, to fail before it
        training = _images(data, "train", loaded.shape[1])
        if training.x_0.dtype == torch.uint8:
            x_0 = data_sets.from_uint8(training.x_0)
            training = test = training._replace(x_0=x_0)
        else:
            test = _images(data, "test")
        one = torch.empty(1, *loaded.shape)
        _check.like(data, training.x_0[:1], model, one)
        _distributed.share_out(loaded.unet.to(device))
        how = {"n": n, "sampler": sampler, "steps": steps, "seed": seed}
        how |= {"extractor": extractor, "levels": 17 if data == "digits" else 256}
        measured = evaluate.measure(loaded, training, test, **how)
        if rank > 0:
            return
        result = {
            "command": command,
            "model": model,
            "data": data,
            "reference_split": "train" if test is training else "test",
            "versions": {"ddpm_lite": __version__, "torch": torch.__version__},
            **measured,
        }
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    table = [f"{key:40}{value:10.3f}" for key, value in measured["measures"].items()]
    print(*table, f"wrote {out}", sep="\n")


def _images(
    data: str, split: str, size: int | None = None, skip_unreadable: bool = False
) -> data_sets.Images:
    """A data set by name, downloaded by the first process alone, or the images of a folder, as uint8."""
    with _distributed.first_alone():
        if data in data_sets.DATA_SETS or not Path(data).is_dir():
            return data_sets.load(data, split)
    if size is None:
        raise ValueError("a folder of images needs --size")
    return data_sets.folder(data, size, skip_unreadable=skip_unreadable)


if __name__ == "__main__":
    sys.exit(main())
