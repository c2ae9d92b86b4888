"""Persistent contrastive divergence on scikit-learn's digits: a convolutional energy on the box of the pixels.

`recipes.small_images` on dequantised pixels (n + u)/17 in [0, 1]^64: MALA with an adapted step through the box's
sigmoid, a buffer of persistent chains without restarts. Samples are the chains of the buffer when training ends, at
temperature 1, all of them; on demand also the same chains after more steps on p^(1/T). Seconds are those of `fit`,
compilation included.

They are judged by classifiers trained on the real digits as scikit-learn gives them: the share of which a classifier is
at least 90 % sure, and how many of each class are among those; beside held-out digits, digits with their pixels
shuffled, and uniform noise, which show how much a classifier's confidence means. The distance to the nearest digit that
was trained on, beside that of digits to the nearest other digit, shows whether samples are copies.

    python benchmarks/digits.py [--seeds 0 1 2 3 4] [--num-steps 3000] [--json out.json] [--figure out.png]
"""

import argparse
import json
import math
import os
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import matplotlib
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

import tfp_ebm as ebm

SHAPE = (8, 8, 1)
CONFIDENT = 0.9


def classifiers():
    """By name, trained on 70 % of the digits; and the other 30 %."""
    digits = load_digits()
    x, held_out, y, _ = train_test_split(digits.data, digits.target, test_size=0.3, random_state=0)
    judges = {
        "logistic": LogisticRegression(max_iter=5000),
        "MLP": MLPClassifier((64,), max_iter=400, random_state=0),
        "MLP, decay": MLPClassifier((128,), alpha=1.0, max_iter=400, random_state=0),
        "SVC": SVC(C=10, probability=True, random_state=0),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: judge.fit(x, y) for name, judge in judges.items()}, held_out


def judge(judges, x):
    """Of each classifier: the share it is sure of, and how many of each class among those."""
    whole = np.floor(np.clip(17 * np.reshape(x, [-1, 64]), 0, 16))
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
    network = ebm.networks.convnet(
        SHAPE, options.filters, options.kernel_size, options.strides, units=options.units, seed=seed
    )
    model = ebm.recipes.small_images(
        network,
        num_steps=options.num_steps,
        learning_rate=options.learning_rate,
        kernel_steps=options.kernel_steps,
        capacity=options.capacity,
        seed=seed,
    )
    batches = tf.data.Dataset.from_tensor_slices(x).shuffle(len(x), seed=seed).repeat().batch(options.batch_size)
    start = time.perf_counter()
    history = model.fit(batches, epochs=10, steps_per_epoch=options.num_steps // 10, shuffle=False, verbose=0).history
    seconds, load = time.perf_counter() - start, os.getloadavg()[1]
    return model, {"seconds": seconds, "load": load} | {name: values[-1] for name, values in history.items()}


def chains(model):
    """The chains of the buffer, in x."""
    return model.standardization.to_x(model.loss.chains.states.value).numpy()


def cold(model, temperature, num_steps, seed):
    """The chains of the buffer after `num_steps` more steps on p^(1/T)."""

    def target(x):
        return model.unnormalized_log_prob(x) / temperature

    step_size = float(model.loss.step_size.numpy()) * temperature**0.5
    kernel = ebm.mcmc.Transformed(ebm.mcmc.MALA(step_size), tfp.bijectors.Sigmoid(0.0, 1.0))
    return (
        ebm.mcmc.sample(target, chains(model), kernel, num_results=1, num_burnin_steps=num_steps, seed=seed)
        .states[0]
        .numpy()
    )


def nearest(samples, digits):
    """The digit nearest to each sample, and the median distance; beside it that of digits to the nearest other."""
    samples, digits = samples.reshape(len(samples), -1), digits.reshape(len(digits), -1)
    distances, among = pairwise_distances(samples, digits), pairwise_distances(digits)
    np.fill_diagonal(among, np.inf)
    medians = float(np.median(distances.min(1))), float(np.median(among.min(1)))
    return digits[distances.argmin(1)], medians


def draw(path, rows):
    """A picture: of each title ten times ten images."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(rows), figsize=(4 * len(rows), 4.3), layout="constrained")
    for axis, (title, images) in zip(axes, rows.items(), strict=True):
        side = math.isqrt(images[0].size)
        images = np.pad(np.reshape(images[:100], [10, 10, side, side]), [(0, 0), (0, 0), (1, 1), (1, 1)])
        whole = 10 * (side + 2)
        axis.imshow(images.transpose(0, 2, 1, 3).reshape(whole, whole), cmap="gray_r", vmin=0, vmax=1)
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main():
    """Trains, judges and prints; writes JSON and the picture of the first seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--num-steps", type=int, default=3000)
    parser.add_argument("--kernel-steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--capacity", type=int, default=1024)
    parser.add_argument("--filters", nargs="*", type=int, default=[64])
    parser.add_argument("--kernel-size", type=int, default=4)
    parser.add_argument("--strides", nargs="*", type=int, default=[2])
    parser.add_argument("--units", nargs="*", type=int, default=[256])
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--temperatures", nargs="*", type=float, default=[])
    parser.add_argument("--cold-steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=0, help="of TensorFlow; 0: as many as there are cores")
    parser.add_argument("--json")
    parser.add_argument("--figure")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    judges, held_out = classifiers()
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(held_out, axis=1)
    controls = {"held-out digits": held_out, "shuffled": shuffled, "noise": rng.integers(0, 17, [2000, 64])}
    results = {name: judge(judges, (x + 0.5) / 17) for name, x in controls.items()}
    for name, verdict in results.items():
        print(f"{name:24s}", {who: round(value["sure"], 3) for who, value in verdict.items()}, flush=True)
    runs = []
    for seed in options.seeds:
        model, run = train(seed, options)
        samples = {"T = 1": chains(model)}
        for temperature in options.temperatures:
            samples[f"T = {temperature:g}"] = cold(model, temperature, options.cold_steps, seed)
        run["verdicts"] = {name: judge(judges, x) for name, x in samples.items()}
        real = ebm.datasets.digits(dequantize=True, seed=seed, images=True)
        copies, (run["distance"], run["distance_of_digits"]) = nearest(samples["T = 1"], real)
        runs.append({"seed": seed} | run)
        print(
            f"seed {seed}: {run['seconds']:.0f} s at load {run['load']:.1f}, gap {run['energy_gap']:.2f}, restarted "
            f"{run['num_restarted']:.3f} a step, nearest digit at {run['distance']:.2f} (of a digit: "
            f"{run['distance_of_digits']:.2f})"
        )
        for name, verdict in run["verdicts"].items():
            for who, value in verdict.items():
                print(f"  {name:8s} {who:12s} sure of {value['sure']:.3f}, by class {value['classes']}", flush=True)
        if options.figure and seed == options.seeds[0]:
            pictures = {f"Samples, {name}": x for name, x in samples.items()}
            draw(options.figure, {"Digits": rng.permutation(real)} | pictures | {"The digits nearest to those": copies})
        if options.json:
            with open(options.json, "w") as file:
                json.dump({"controls": results, "runs": runs, "options": vars(options)}, file, indent=2)


if __name__ == "__main__":
    main()
