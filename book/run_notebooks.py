"""Run notebooks in place and store their outputs, the same way on every machine.

    python book/run_notebooks.py book/05_posterior.ipynb ...

Each notebook runs in an empty folder, with the installed package and nothing else, as a reader's would. What
depends on the machine or the moment (kernel details, time stamps, random cell ids) is left out of the file.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(path: Path) -> None:
    """Execute one notebook; it is rewritten only if every cell ran."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=600,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        ).execute()
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        if cell.cell_type == "code":
            cell.outputs = _merge_streams(cell.outputs)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    print(
        f"{path}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1000:.0f} KB",
        flush=True,
    )


def _merge_streams(
    outputs: list[nbformat.NotebookNode],
) -> list[nbformat.NotebookNode]:
    """Join pieces of one stream: how a kernel cuts what is printed depends on the moment."""
    merged: list[nbformat.NotebookNode] = []
    for output in outputs:
        if (
            output.output_type == "stream"
            and merged
            and merged[-1].get("name") == output.name
        ):
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name))
