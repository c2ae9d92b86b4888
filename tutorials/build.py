"""Renders the tutorials: executes each percent-format source and writes the notebook beside it.

    python tutorials/build.py               # renders all, full size
    python tutorials/build.py 01 03         # renders tutorials 1 and 3
    python tutorials/build.py --text        # copies changed text into the notebooks; executes nothing
    python tutorials/build.py --smoke       # runs the sources as scripts, small, and writes nothing
    python tutorials/build.py --readme      # draws the README's first picture by the README's first command

The pictures in the notebooks are reduced to 64 to 256 colours. A cell headed `# %% figure="name"` also writes its last
picture to `figures/`, for the README. The extra `tutorials` installs what this needs.
"""

import argparse
import base64
import concurrent.futures
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
LIMIT = 600  # seconds that a tutorial may take
LARGEST = 300_000  # bytes of a picture, and of a notebook
COARSEST = 2.5  # root mean square of the change of a pixel by fewer colours, of 255
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
SMALL = {"TFP_EBM_SMOKE": "1", "MPLBACKEND": "Agg"}  # the environment of the smoke mode


def sources(names):
    """Returns the tutorials whose names start so; all if none is named."""
    found = [p for p in sorted(HERE.glob("[0-9][0-9]_*.py")) if not names or p.name.startswith(tuple(names))]
    if not found:
        raise SystemExit(f"no tutorial is named {' or '.join(names)}")
    return found


def reduced(png):
    """Returns the same picture, as base64, in as few colours as are close to it, or as keep it small."""
    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    kept = b""
    for count in (64, 128, 256):
        few = image.quantize(count, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        few.save(buffer, "PNG", optimize=True)
        if kept and len(buffer.getvalue()) > LARGEST // 2:
            break
        kept = buffer.getvalue()
        difference = np.asarray(few.convert("RGB"), np.float64) - np.asarray(image, np.float64)
        if np.sqrt(np.mean(difference**2)) <= COARSEST:
            break
    return base64.b64encode(kept).decode()


def tidied(notebook):
    """Reduces the pictures and drops what depends on the machine and the time, so that a rerun changes little."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = reduced(data["image/png"])
                data.pop("text/plain", None)
    return notebook


def keep_figures(notebook, stem):
    """Writes the named pictures to `figures/`."""
    for cell in notebook.cells:
        if not (name := cell.metadata.get("figure")):
            continue
        pictures = [o["data"]["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
        if not pictures:
            raise SystemExit(f"{stem}: the cell of figure {name!r} drew nothing")
        png = base64.b64decode(pictures[-1])
        if len(png) > LARGEST:
            raise SystemExit(f"{stem}: figure {name!r} has {len(png)} bytes, more than {LARGEST}")
        write(HERE / "figures" / f"{name}.png", png)


def write(path, content):
    """Writes a file completely or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def render(source):
    """Executes one source; returns a line to print."""
    import jupytext
    import nbclient
    import nbformat

    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    start = time.perf_counter()
    nbclient.NotebookClient(
        notebook,
        timeout=LIMIT,
        kernel_name="python3",
        coalesce_streams=True,  # else outputs are cut where the clock happened to
        resources={"metadata": {"path": str(HERE)}},
    ).execute()
    seconds = time.perf_counter() - start
    if seconds > LIMIT:
        raise SystemExit(f"{source.stem} took {seconds:.0f} s, more than {LIMIT}")
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
    keep_figures(tidied(notebook), source.stem)
    notebook.metadata.pop("language_info", None)
    content = (nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n").encode()
    if len(content) > LARGEST:
        raise SystemExit(f"{source.stem} has {len(content)} bytes, more than {LARGEST}")
    write(source.with_suffix(".ipynb"), content)
    return f"{source.stem}: {seconds:.0f} s, {len(content) // 1000} kB"


def retold(source):
    """Copies the text of one source into its notebook, whose outputs stay; the code must be the same."""
    import jupytext
    import nbformat

    path = source.with_suffix(".ipynb")
    executed = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    cells = jupytext.read(source, fmt="py:percent").cells
    outputs = [cell for cell in executed.cells if cell.cell_type == "code"]
    if [cell.source for cell in outputs] != [cell.source for cell in cells if cell.cell_type == "code"]:
        raise SystemExit(f"{source.stem}: the code has changed too; render it without --text")
    remaining = iter(outputs)
    executed.cells = [next(remaining) if cell.cell_type == "code" else cell for cell in cells]
    for i, cell in enumerate(executed.cells):
        cell["id"] = f"cell-{i}"
    write(path, (nbformat.writes(executed, version=nbformat.NO_CONVERT) + "\n").encode())
    return f"{source.stem}: text copied"


def smoke(source):
    """Runs one source small, as a script; returns a line to print."""
    start = time.perf_counter()
    result = subprocess.run([sys.executable, source], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{source.stem} failed:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
    return f"{source.stem}: {time.perf_counter() - start:.0f} s"


def draw_for_readme():
    """Runs the README's command, and keeps its picture with the settings that it was drawn with; returns a line."""
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "moons"
        command = [sys.executable, "-m", "tfp_ebm", "fit", "two_moons", "--quiet", "--out", str(run)]
        subprocess.run(command, check=True)
        settings = json.loads((run / "report.json").read_text(encoding="utf-8"))["settings"]
        write(HERE / "figures" / "two_moons.png", (run / "figure.png").read_bytes())
    write(HERE / "figures" / "two_moons.json", (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())
    return f"figures/two_moons.png: {settings}"


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="how the tutorials' names start; default: all of them")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--smoke", action="store_true", help="run the sources small, and write nothing")
    mode.add_argument("--text", action="store_true", help="copy changed text into the notebooks, and execute nothing")
    mode.add_argument("--readme", action="store_true", help="draw the README's first picture, and no tutorial")
    parser.add_argument("--jobs", type=int, help="tutorials at the same time; default: 1, with --smoke 2")
    options = parser.parse_args()
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    if options.readme:
        print(draw_for_readme())
        return
    if options.smoke:
        os.environ.update(SMALL)
    else:
        os.environ.pop("TFP_EBM_SMOKE", None)
    with concurrent.futures.ThreadPoolExecutor(options.jobs or (2 if options.smoke else 1)) as pool:
        action = smoke if options.smoke else retold if options.text else render
        for line in pool.map(action, sources(options.names)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
