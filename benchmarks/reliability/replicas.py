"""Trains every loss on two replicas, and counts what is not as on one device.

The devices are two logical processors of this machine. For each loss of the tests, 49 rows in batches of 16 make a last
batch of one row, so that one replica has none. Checked: all numbers are finite; the copies of each weight on the two
replicas are equal, buffers and step sizes among them; a training that is cut and resumed (`callbacks.Backup`) has the
same bits; the losses without noise end with the weights of one device, to rounding.

    python benchmarks/reliability/replicas.py [--cases persistent denoising] [--json out.json]
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tests"))

import numpy as np
import tensorflow as tf

ROWS, BATCH = 49, 16
# Losses whose value does not depend on random numbers; and how far weights may differ, which Adam's steps magnify.
WITHOUT_NOISE, TOLERANCE = ("score matching",), 1e-5


def copies(variable):
    """The copies of a Keras variable on the replicas."""
    return [value.numpy() for value in tf.distribute.get_strategy().experimental_local_results(variable.value)]


def trained(name, epochs, backup=None, strategy=None):
    """A model of a case, trained in a strategy's scope; and the history."""
    from every_loss import CASES, X, make

    from tfp_ebm.callbacks import Backup

    with (strategy or tf.distribute.get_strategy()).scope():
        model = make(name)
    y = CASES[name][2]
    callbacks = [] if backup is None else [Backup(backup, 0.0)]
    y = None if y is None else y[:ROWS]
    history = model.fit(X[:ROWS], y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=callbacks).history
    return model, history


def faults_of(name, strategy, folder):
    """What is wrong with a loss on two replicas; an empty list if nothing is."""
    faults = []
    model, history = trained(name, 3, None, strategy)
    numbers = [*history.values(), *(weight.numpy() for weight in model.trainable_weights)]
    # a range that is not known is a state with infinite entries
    is_nan = any(np.isnan(weight.numpy()).any() for weight in model.non_trainable_weights)
    if is_nan or not all(np.isfinite(values).all() for values in numbers):
        faults.append("not finite")
    with strategy.scope():
        for weight in model.weights:
            first, *others = copies(weight)
            if not all(np.array_equal(first, other) for other in others):
                faults.append(f"copies of {weight.path} differ")
    trained(name, 1, folder, strategy)
    resumed, _ = trained(name, 3, folder, strategy)
    if not all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(model.weights, resumed.weights, strict=True)):
        faults.append("the resumed training has other bits")
    if name in WITHOUT_NOISE:
        alone, _ = trained(name, 3)
        for a, b in zip(model.weights, alone.weights, strict=True):
            error = np.abs(a.numpy() - b.numpy()).max() if a.shape.rank else 0.0
            if error > TOLERANCE:
                faults.append(f"{a.path} differs by {error:.1e} from one device")
    return faults


def main():
    """Prints a table: each loss, and its faults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--json")
    options = parser.parse_args()
    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
    from every_loss import CASES

    strategy, results = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), {}
    for name in options.cases or CASES:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                results[name] = faults_of(name, strategy, folder)
            except Exception as error:
                results[name] = [f"{type(error).__name__}: {str(error).splitlines()[0]}"]
        faults = "; ".join(results[name]) or "as on one device"
        print(f"{name:24s} {time.perf_counter() - start:5.1f} s  {faults}", flush=True)
    print(f"{len(results)} losses tried, {sum(map(bool, results.values()))} with faults")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1))
    sys.exit(any(results.values()))


if __name__ == "__main__":
    main()
