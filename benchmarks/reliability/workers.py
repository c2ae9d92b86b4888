"""Trains on two processes that act as two machines, on loopback, and kills one of them.

First every loss (or those named) trains on both, and their weights must be equal and finite. Then one of two processes
is killed in the middle of a training: the other one must end with an error that names the cause, and both, started
again, must end with the weights of a training that was not killed.

    python benchmarks/reliability/workers.py [--cases persistent denoising] [--kills 4] [--json out.json]
"""

import argparse
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tests"))

EPOCHS, ROWS, BATCH = 12, 49, 16
# Seconds within which a process must notice that the other one is gone.
PATIENCE = 180.0


def train(names, folder, epochs):
    """What each process does: trains the cases, and writes its weights."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    import keras
    import numpy as np
    from every_loss import CASES, X, make

    from tfp_ebm.callbacks import Backup

    class Report(keras.callbacks.Callback):
        """Prints each epoch, which the parent waits for."""

        def on_epoch_end(self, epoch, logs=None):
            """See Keras."""
            print(f"epoch {epoch + 1}", flush=True)

    index = strategy.cluster_resolver.task_id
    for name in names:
        with strategy.scope():
            model = make(name)
        y = CASES[name][2]
        y = None if y is None else y[:ROWS]
        callbacks = [Backup(folder / f"backup of {name}", 0.0), Report()]
        model.fit(X[:ROWS], y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=callbacks)
        weights = [weight.numpy() for weight in model.weights]
        np.savez(folder / f"{name} {index}.npz", *weights)
        print(f"done {name}", flush=True)


def free_ports(number):
    """Ports that nobody listens at now."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(names, folder, epochs):
    """Starts the two processes."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes = []
    for index in range(2):
        cluster = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        command = [sys.executable, __file__, "--train", str(folder), "--epochs", str(epochs), "--cases", *names]
        environment = {**os.environ, "TF_CONFIG": json.dumps(cluster)}
        log = (folder / f"log {index}").open("w")
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True))
    return processes


def wait(processes, seconds):
    """Waits for the processes; ends those that do not end. Returns their exit codes, None for these."""
    limit, codes = time.monotonic() + seconds, []
    for process in processes:
        try:
            process.communicate(timeout=max(limit - time.monotonic(), 1.0))
            codes.append(process.returncode)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            codes.append(None)
    return codes


def weights_of(name, index, folder):
    """The weights that a process wrote; None if it wrote none."""
    import numpy as np

    path = folder / f"{name} {index}.npz"
    if not path.exists():
        return None
    with np.load(path) as file:
        return [file[key] for key in file.files]


def equal(a, b):
    """Whether two lists of arrays are the same, without NaN; an unknown range is a state of infinite entries."""
    import numpy as np

    if a is None or b is None:
        return False
    return all(np.array_equal(u, v) and not np.isnan(u).any() for u, v in zip(a, b, strict=True))


def last_line(folder, index):
    """The last line of what a process wrote on stderr."""
    lines = (folder / f"log {index}").read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def fault_after_kill(name, victim, moment, truth):
    """Kills a process after an epoch, and returns what the other one says, and what is wrong; "" if nothing is."""
    with tempfile.TemporaryDirectory() as text:
        folder = pathlib.Path(text)
        processes = start([name], folder, EPOCHS)
        while (line := processes[victim].stdout.readline()) and line.strip() != f"epoch {moment}":
            pass
        processes[victim].kill()
        begin = time.monotonic()
        code = wait(processes, PATIENCE)[1 - victim]
        seconds, said = time.monotonic() - begin, last_line(folder, 1 - victim)
        if code is None:
            return said, seconds, "the other process hangs"
        codes = wait(start([name], folder, EPOCHS), PATIENCE)
        if codes != [0, 0]:
            return said, seconds, f"the restarted processes ended with {codes}: {last_line(folder, 0)}"
        same = all(equal(weights_of(name, index, folder), truth) for index in range(2))
        return said, seconds, "" if same else "the resumed training has other bits"


def main():
    """Prints tables of what was tried, and what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.train:
        train(options.cases, options.train, options.epochs)
        return
    from every_loss import CASES

    names, results, rng = options.cases or list(CASES), {}, random.Random(options.seed)
    with tempfile.TemporaryDirectory() as text:
        folder = pathlib.Path(text)
        codes = wait(start(names, folder, options.epochs), 120.0 * len(names))
        for name in names:
            fine = equal(weights_of(name, 0, folder), weights_of(name, 1, folder))
            results[name] = "" if fine else f"{codes}: {last_line(folder, 0)}"
            print(f"{name:24s} {results[name] or 'equal on both'}", flush=True)
    if options.kills:
        name = "persistent"
        with tempfile.TemporaryDirectory() as text:
            folder = pathlib.Path(text)
            wait(start([name], folder, EPOCHS), 300.0)
            truth = weights_of(name, 0, folder)
        for number in range(options.kills):
            victim, moment = number % 2, rng.randint(1, EPOCHS - 2)
            said, seconds, fault = fault_after_kill(name, victim, moment, truth)
            results[f"kill {number}"] = fault
            print(f"process {victim} killed after epoch {moment}: {fault or 'resumed with the same bits'}")
            print(f"    the other ended after {seconds:.0f} s: {said}", flush=True)
    print(f"{len(results)} tried, {sum(map(bool, results.values()))} with faults")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1))
    sys.exit(any(results.values()))


if __name__ == "__main__":
    main()
