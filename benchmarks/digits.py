"""Persistent contrastive divergence on scikit-learn's digits: a convolutional energy on the box of the pixels.

Dequantised pixels (n + u)/17 in [0, 1]^64, MALA with an adapted step through the box's sigmoid, a buffer of persistent
chains without restarts. Samples are the chains of the buffer, at temperature 1, and the same chains after more steps
on p^(1/T), as such models are usually shown. They are judged by classifiers trained on the real digits: the share of
which a classifier is at least 90 % sure, beside held-out digits, digits with their pixels shuffled, and uniform noise,
which tell how much a classifier's confidence means.

    python benchmarks/digits.py [--seeds 0 1 2 3 4] [--num-steps 2500] [--json out.json] [--figure out.png]
"""

import argparse
import json
import os
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import matplotlib
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

import tfp_ebm as ebm

SHAPE = (8, 8, 1)
CONFIDENT = 0.9


def classifiers():
    """By name, trained on 70 % of the digits; and the other 30 %."""
    digits = load_digits()
    x, held_out, y, _ = train_test_split(digits.data / 16, digits.target, test_size=0.3, random_state=0)
    judges = {
        "MLP": MLPClassifier((64,), max_iter=400, random_state=0),
        "MLP, weight decay": MLPClassifier((128,), alpha=0.1, max_iter=400, random_state=0),
        "SVC": SVC(C=10, probability=True, random_state=0),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: judge.fit(x, y) for name, judge in judges.items()}, held_out


def judge(judges, x):
    """Of each classifier: the share it is sure of, and how many of each class among those."""
    whole = np.floor(np.clip(17 * np.reshape(x, [-1, 64]), 0, 16)) / 16
    results = {}
    for name, classifier in judges.items():
        probabilities = classifier.predict_proba(whole)
        sure = probabilities.max(1) >= CONFIDENT
        counts = np.bincount(probabilities.argmax(1)[sure], minlength=10)
        results[name] = {"sure": float(sure.mean()), "classes": counts.tolist()}
    return results


def train(seed, options):
    """A model, and what came of its training."""
    x = ebm.datasets.digits(dequantize=True, seed=seed, images=True)
    base = tfp.distributions.Independent(tfp.distributions.Uniform(tf.zeros(SHAPE), tf.ones(SHAPE)), 3)
    network = ebm.networks.convnet(SHAPE, options.filters, units=options.units, seed=seed)
    model = ebm.EnergyModel(network, seed=seed)
    kernel = ebm.mcmc.Transformed(ebm.mcmc.Adaptive(ebm.mcmc.MALA(0.1)), tfp.bijectors.Sigmoid(0.0, 1.0))
    loss = ebm.losses.PersistentContrastiveDivergence(
        kernel, options.kernel_steps, options.capacity, base=base, global_move=None
    )
    schedule = keras.optimizers.schedules.CosineDecay(options.learning_rate, options.num_steps)
    model.compile(keras.optimizers.Adam(schedule, beta_1=0.5), loss, jit_compile=True, steps_per_execution=10)
    batches = tf.data.Dataset.from_tensor_slices(x).shuffle(len(x), seed=seed).repeat().batch(options.batch_size)
    start = time.perf_counter()
    history = model.fit(batches, epochs=10, steps_per_epoch=options.num_steps // 10, shuffle=False, verbose=0).history
    seconds = time.perf_counter() - start
    return model, loss, {"seconds": seconds} | {name: values[-1] for name, values in history.items()}


def cold(model, loss, temperature, num_steps, seed):
    """The chains of the buffer after `num_steps` more steps on p^(1/T)."""

    def target(x):
        return model.unnormalized_log_prob(x) / temperature

    kernel = ebm.mcmc.Transformed(
        ebm.mcmc.MALA(float(loss.step_size.numpy()) * temperature**0.5), tfp.bijectors.Sigmoid(0.0, 1.0)
    )
    return ebm.mcmc.sample(
        target, loss.chains.states.numpy(), kernel, num_results=1, num_burnin_steps=num_steps, seed=seed
    ).states[0]


def draw(path, rows):
    """A picture: of each title ten times ten images."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(rows), figsize=(4 * len(rows), 4.3), layout="constrained")
    for axis, (title, images) in zip(axes, rows.items(), strict=True):
        images = np.pad(np.reshape(images[:100], [10, 10, 8, 8]), [(0, 0), (0, 0), (1, 1), (1, 1)])
        axis.imshow(images.transpose(0, 2, 1, 3).reshape(100, 100), cmap="gray_r", vmin=0, vmax=1)
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main():
    """Trains, judges and prints; writes JSON and the picture of the first seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--num-steps", type=int, default=2500)
    parser.add_argument("--kernel-steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--capacity", type=int, default=1024)
    parser.add_argument("--filters", nargs="*", type=int, default=[32, 64])
    parser.add_argument("--units", nargs="*", type=int, default=[128])
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--temperatures", nargs="*", type=float, default=[0.7, 0.5])
    parser.add_argument("--cold-steps", type=int, default=40)
    parser.add_argument("--json")
    parser.add_argument("--figure")
    options = parser.parse_args()
    judges, held_out = classifiers()
    rng = np.random.default_rng(0)
    shuffled = np.stack([rng.permutation(row) for row in held_out])
    controls = {"held-out digits": held_out, "shuffled": shuffled, "noise": rng.integers(0, 17, [2000, 64]) / 16}
    results = {name: judge(judges, (16 * x + 0.5) / 17) for name, x in controls.items()}
    for name, verdict in results.items():
        print(f"{name:24s}", {who: round(value["sure"], 3) for who, value in verdict.items()}, flush=True)
    runs = []
    for seed in options.seeds:
        model, loss, run = train(seed, options)
        samples = {"T = 1": loss.chains.states.numpy()}
        for temperature in options.temperatures:
            samples[f"T = {temperature:g}"] = cold(model, loss, temperature, options.cold_steps, seed).numpy()
        run["verdicts"] = {name: judge(judges, x) for name, x in samples.items()}
        runs.append({"seed": seed} | run)
        print(f"seed {seed}: {run['seconds']:.0f} s, gap {run['energy_gap']:.2f}, restarted {run['num_restarted']:.0f}")
        for name, verdict in run["verdicts"].items():
            for who, value in verdict.items():
                print(f"  {name:8s} {who:18s} sure of {value['sure']:.3f}, by class {value['classes']}", flush=True)
        if options.figure and seed == options.seeds[0]:
            real = ebm.datasets.digits(dequantize=True, seed=seed, images=True)
            draw(options.figure, {"Data": rng.permutation(real)} | {f"Samples, {k}": v for k, v in samples.items()})
        if options.json:
            with open(options.json, "w") as file:
                json.dump({"controls": results, "runs": runs, "options": vars(options)}, file, indent=2)


if __name__ == "__main__":
    main()
