"""Long runs: whether memory stays flat, nothing is traced again, no value is lost, and threads leave each other alone.

Parts: `training` (persistent chains trained for `--minutes`; the slope of memory in time, with its standard error, and
the traces of the step after the first epoch), `kernels` (a million steps of each kernel on a small target, by eight
chains; states and log densities that are not finite, and means off by more than five standard errors, are counted),
`serving` (10 000 calls of an exported model from 8 threads, each compared bit for bit with what one thread gets).

    python benchmarks/reliability/soak.py [--parts training kernels serving] [--minutes 60] [--steps 1000000]
"""

import argparse
import concurrent.futures
import gc
import json
import os
import pathlib
import sys
import tempfile
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm

PARTS = ("training", "kernels", "serving")
CHAINS = 8
BASE = tfp.distributions.MultivariateNormalDiag([0.0, 0.0], [2.0, 2.0])


def megabytes():
    """The memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def line(times, values, blocks=20):
    """The slope of a line through the means of blocks of values, and its standard error.

    Neighbouring values depend on each other; the means of blocks hardly do.
    """
    times, values = ([part.mean() for part in np.array_split(np.asarray(v, float), blocks)] for v in (times, values))
    times, values = np.array(times), np.array(values)
    centred = times - times.mean()
    slope = (centred * values).sum() / (centred**2).sum()
    residuals = values - values.mean() - slope * centred
    return float(slope), float(np.sqrt((residuals**2).sum() / (len(times) - 2) / (centred**2).sum()))


def training(options):
    """Persistent chains, epoch after epoch."""
    traces = []

    class Counting(ebm.losses.PersistentContrastiveDivergence):
        def call(self, *args, **kwargs):
            traces.append(1)
            return super().call(*args, **kwargs)

    x = ebm.datasets.two_moons(2048, seed=0)
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[32, 32], seed=0), base_measure=ebm.fit_base(x))
    model.adapt(x)
    model.compile(keras.optimizers.Adam(1e-3), Counting(num_steps=10, capacity=1024))
    start, times, memory, traced = time.perf_counter(), [], [], []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if not np.isfinite(logs["loss"]):
                sys.exit("the loss is not finite")
            # Keras's history grows by some hundred bytes an epoch, by its nature: ten megabytes in this hour
            for values in (self.model.history.epoch, *self.model.history.history.values()):
                values.clear()
            if epoch % 10 == 0:
                gc.collect()
                times.append(time.perf_counter() - start)
                memory.append(megabytes())
                traced.append(len(traces))
                self.model.stop_training = times[-1] > 60 * options.minutes

    model.fit(x, batch_size=256, epochs=10**9, verbose=0, callbacks=[Watch()])
    begin = len(times) // 5  # caches fill at first
    slope, error = line(np.array(times[begin:]) / 3600, memory[begin:])
    return {
        "epochs": 10 * len(times) - 9,
        "steps": int(model.optimizer.iterations.numpy()),
        "seconds": round(times[-1], 1),
        "megabytes": [round(memory[begin], 1), round(memory[-1], 1)],
        "megabytes_per_hour": round(slope, 2),
        "standard_error": round(error, 2),
        "traces_first_epoch": traced[0],
        "traces_later": traced[-1] - traced[0],
        "lost": int(traced[-1] > traced[0] or slope > max(5.0, 4 * error)),
    }


def log_prob(x):
    """A standard normal density, in any number of leading dimensions."""
    return -0.5 * tf.reduce_sum(x**2, -1)


def _walk(x, seed):
    return x + 0.8 * ebm.random.normal(tf.shape(x), seed, x.dtype)


def all_kernels():
    """Each kernel of the package, by name."""
    m = ebm.mcmc
    return {
        "RandomWalk": m.RandomWalk(1.0),
        "MetropolisHastings": m.MetropolisHastings(_walk),
        "IndependenceMetropolis": m.IndependenceMetropolis(BASE),
        "HMC": m.HMC(0.3, 3),
        "MALA": m.MALA(0.8),
        "Langevin": m.Langevin(0.1),
        "NUTS": m.NUTS(0.6, max_tree_depth=4),
        "Adaptive": m.Adaptive(m.HMC(0.3, 3)),
        "Sequential": m.Sequential([m.IndependenceMetropolis(BASE), m.MALA(0.8)]),
        "ReplicaExchange": m.ReplicaExchange(m.MALA(0.8), [1.0, 0.5, 0.2]),
        "TemperedTransition": m.TemperedTransition(m.MALA(0.8), BASE, num_temperatures=3),
        "Transformed": m.Transformed(m.MALA(0.5), tfp.bijectors.Sigmoid(-8.0, 8.0)),
    }


def kernels(options):
    """A million steps of each kernel, by chains that go on from call to call."""
    result = {"lost": 0}
    per_chain = max(10, options.steps // CHAINS)
    for name, kernel in all_kernels().items():
        start = time.perf_counter()
        x = tf.constant(np.random.default_rng(0).normal(size=(CHAINS, 2)), tf.float32)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            summary = ebm.mcmc.summarize(log_prob, x, kernel, num_results=per_chain, num_burnin_steps=20, seed=1)
        error = np.abs(np.asarray(summary.mean) / np.asarray(summary.mcse)).max()
        bad = int(summary.num_nonfinite) + int(not np.isfinite(np.asarray(summary.sd)).all())
        bad += int(not error < 5)
        result[name] = {
            "steps": per_chain * CHAINS,
            "nonfinite": int(summary.num_nonfinite),
            "mean_in_standard_errors": round(float(error), 2),
            "sd": [round(float(value), 4) for value in np.asarray(summary.sd)],
            "warnings": [str(warning.message)[:120] for warning in caught if warning.category is UserWarning],
            "seconds": round(time.perf_counter() - start, 1),
        }
        result["lost"] += bad
        print(f"    {name:24s} {result[name]}", flush=True)
    return result


def serving(options):
    """Calls from 8 threads of what one thread has called before."""
    x = ebm.datasets.two_moons(512, seed=0)
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[32], seed=0), base_measure=ebm.fit_base(x))
    model.adapt(x)
    calls = max(80, options.steps // 100)
    with tempfile.TemporaryDirectory() as folder:
        model.export(f"{folder}/served", kernel=ebm.mcmc.MALA(0.2), verbose=False)
        served = tf.saved_model.load(f"{folder}/served")
    batches = [tf.constant(x[i : i + 1 + i % 7]) for i in range(32)]

    def call(i):
        batch = batches[i % len(batches)]
        if i % 4 == 0:
            return served.sample(batch, tf.constant([i % 32, 1]), tf.constant(3)).numpy()
        return getattr(served, ("energy", "score", "unnormalized_log_prob")[i % 3])(batch).numpy()

    cycle = 4 * 3 * 32
    expected = [call(i) for i in range(cycle)]
    # the other endpoints depend on i through the batch and the endpoint alone, the draws through the seed
    before, start = megabytes(), time.perf_counter()
    wrong, failed, memory = 0, 0, []
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(call, i) for i in range(calls)]
        for i, future in enumerate(futures):
            try:
                wrong += not np.array_equal(future.result(), expected[i % cycle])
            except Exception as error:
                failed += 1
                print(f"    call {i}: {type(error).__name__}: {error}")
            if i % (calls // 20) == 0:
                memory.append(megabytes())
    return {
        "calls": calls,
        "threads": 8,
        "failed": failed,
        "wrong": wrong,
        "megabytes": [round(before, 1), round(memory[len(memory) // 2], 1), round(megabytes(), 1)],
        "seconds": round(time.perf_counter() - start, 1),
        "lost": failed + wrong,
    }


def main():
    """Runs the parts, prints what they found, and fails if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--json")
    options = parser.parse_args()
    results = {}
    for part in options.parts:
        print(part, flush=True)
        results[part] = globals()[part](options)
        if part != "kernels":
            print(f"    {results[part]}", flush=True)
    lost = sum(result["lost"] for result in results.values())
    print(f"lost: {lost}")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1))
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
