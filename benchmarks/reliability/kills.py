"""Kills processes that train, save, export and sample at random moments, and counts what was lost of what was saved.

A child process does one job over and over: it saves, prints the number of what it has saved, and changes the model
before it saves again. The parent kills it with SIGKILL at a random moment, and then loads the file. A file that does
not load, or holds something older than what was reported as saved, is lost. Training is killed during `fit` with
`callbacks.Backup`, or with Keras's `BackupAndRestore` (`fit_of_keras`), and resumed: the weights must be those of a run
that was not killed. `arrays` and `directory` write without Keras, and so often: they try what replaces a file and a
directory.

    python benchmarks/reliability/kills.py [--kills 50] [--jobs save save_weights export fit] [--json out.json]
"""

import argparse
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.callbacks import Backup
from tfp_ebm.files import load_arrays, save_arrays, written_atomically

JOBS = ("save", "save_weights", "export", "fit", "fit_of_keras", "arrays", "directory")
BACKUPS = {"fit": lambda folder: Backup(folder, 0.0), "fit_of_keras": keras.callbacks.BackupAndRestore}
EPOCHS = 60
UNIT = 4096  # of the number in a weight: exact in float32, and small


def model_of(number):
    """A small model whose weights hold `number`, so that a file shows which save it is of."""
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[16], seed=0))
    model.adapt(np.random.default_rng(0).normal(size=(100, 2)))
    set_number(model, number)
    return model


def set_number(model, number):
    """Stores a number in the first weight of the network."""
    weight = model.network.weights[0]
    value = weight.numpy()
    value.flat[0] = number / UNIT
    weight.assign(value)


class Report(keras.callbacks.Callback):
    """Prints the number of each epoch once its backup is written."""

    def on_epoch_end(self, epoch, logs=None):
        """See Keras."""
        print(epoch + 1, flush=True)


def trained(out, backup=None):
    """Writes the weights after `EPOCHS` of persistent chains; with a callback, backed up and resumed there."""
    x = np.random.default_rng(0).normal(size=(256, 2)).astype("float32")
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[16], seed=0), base_measure=ebm.fit_base(x))
    loss = ebm.losses.PersistentContrastiveDivergence(ebm.mcmc.Langevin(0.2), 2, 128)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    callbacks = [] if backup is None else [backup]
    if out is None:
        callbacks.append(Report())
    model.fit(x, batch_size=64, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    if out is not None:
        with out.open("wb") as file:
            np.savez(file, *[weight.numpy() for weight in model.weights])


def work(job, folder):
    """What the child does until it is killed."""
    if job in BACKUPS:
        trained(None, BACKUPS[job](folder / "backup"))
        signal.pause()
    model = None if job in ("arrays", "directory") else model_of(0)
    for number in range(1, 10**6):
        if model is not None:
            set_number(model, number)
        if job == "arrays":
            save_arrays(folder / "a.npz", {"number": number, "others": np.zeros(10_000)})
        elif job == "directory":
            with written_atomically(folder / "place") as place:
                place.mkdir()
                for name in "ab":
                    (place / name).write_text(str(number))
        elif job == "export":
            model.export(folder / "saved_model", kernel=ebm.mcmc.MALA(0.1), verbose=False)
        else:
            getattr(model, job)(folder / {"save": "model.keras", "save_weights": "a.weights.h5"}[job])
        print(number, flush=True)


def saved_number(job, folder):
    """The number in what was saved."""
    if job == "arrays":
        return int(load_arrays(folder / "a.npz")["number"])
    if job == "directory":
        numbers = {int((folder / "place" / name).read_text()) for name in "ab"}
        return numbers.pop() if len(numbers) == 1 else -1
    if job == "export":
        served = tf.saved_model.load(str(folder / "saved_model"))
        kernels = [variable for variable in served.variables if variable.shape.rank == 2]
        return int(kernels[0].numpy().flat[0] * UNIT)
    if job == "save":
        return int(keras.saving.load_model(folder / "model.keras").network.weights[0].numpy().flat[0] * UNIT)
    model = model_of(0)
    model.load_weights(folder / "a.weights.h5")
    return int(model.network.weights[0].numpy().flat[0] * UNIT)


def forked(function, *arguments):
    """Runs a function in a process of its own; returns its number and the file that it prints to.

    A fork saves the imports. It is safe as long as this process itself runs no operation of TensorFlow.
    """
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, os.fdopen(read)
    os.dup2(write, sys.stdout.fileno())
    status = 1
    try:
        function(*arguments)
        sys.stdout.flush()
        status = 0
    finally:
        os._exit(status)


def killed(job, folder, moment):
    """Starts a child, kills it `moment` seconds after its first save, and returns the last number that it printed."""
    child, output = forked(work, job, folder)
    first = output.readline()
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    numbers = [int(line) for line in [first, *output.read().split("\n")[:-1]] if line.strip().isdigit()]
    return numbers[-1]


def check(job, folder, last, expected):
    """Prints what is wrong with what was saved; nothing if all is right."""
    try:
        if job in BACKUPS:
            trained(folder / "again", BACKUPS[job](folder / "backup"))
            with np.load(folder / "again") as weights, np.load(expected) as others:
                if not all((weights[name] == others[name]).all() for name in others):
                    print("the resumed run differs from one that was not killed")
        elif (number := saved_number(job, folder)) not in (last, last + 1):
            print(f"{number} is in the file, {last} was saved")
    except Exception as error:  # whatever it is, the file is lost
        print(f"{type(error).__name__}: {str(error).splitlines()[0][:100]}")


def outcome(function, *arguments):
    """What a function prints in a process of its own."""
    child, output = forked(function, *arguments)
    text = output.read().strip()
    return text if os.waitpid(child, 0)[1] == 0 else text + " (the check itself failed)"


def main():
    """Kills, checks, and prints a table: tried and lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--seconds", type=float, default=0.5, help="the latest moment, after the first save")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    options = parser.parse_args()
    rng, results = random.Random(options.seed), {}
    with tempfile.TemporaryDirectory() as name:
        expected = pathlib.Path(name) / "expected"
        if BACKUPS.keys() & options.jobs:
            outcome(trained, expected)
        for job in options.jobs:
            lost, saves = [], 0
            for i in range(options.kills):
                folder, moment = pathlib.Path(name) / f"{job}{i}", rng.uniform(0.0, options.seconds)
                folder.mkdir()
                last = killed(job, folder, moment)
                saves += last
                if fault := outcome(check, job, folder, last, expected):
                    lost.append({"seconds": moment, "after": last, "fault": fault})
            results[job] = {"killed": options.kills, "saves": saves, "lost": lost}
            print(f"{job:14s} {saves} saves, killed {options.kills} times, lost {len(lost)}", flush=True)
            for entry in lost:
                print(f"    after {entry['seconds']:.3f} s: {entry['fault']}", flush=True)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1))
    sys.exit(any(result["lost"] for result in results.values()))


if __name__ == "__main__":
    main()
