"""A classifier of digits that is a density too (JEM), beside the plain classifier of the same network.

All have one convolution of 64 filters (4×4, stride 2), 256 units and ten logits, 70 % of scikit-learn's digits, the
same number of steps of the same optimizer. The joint energy is `recipes.small_images` of a `networks.JointEnergy`:
cross-entropy and persistent chains; its noise on classified rows is given to a plain classifier, too. On the other
30 %: accuracy, expected calibration error and cross-entropy; the AUROC of −E(x) = log Σ exp f(x) against images that
are no digits (`ood.py`).

Draws of each class by `recipes.class_samples` are given to classifiers of `digits.py`, trained on real digits: the
share that they assign to the class of the draw; beside chains of the same energies that start at uniform noise, and
real digits. Refinement: accuracy on digits with noise, before and after some steps of the chains on E(x).

    python benchmarks/joint_energy.py [--seeds 0 1 2] [--num-steps 3000] [--json out.json] [--figure out.png]
"""

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
from digits import SHAPE, classifiers, draw, nearest
from ood import convnet, sets
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tfp_ebm as ebm

LABELS = np.repeat(np.arange(10), 100)


def network(seed):
    """The classifier: the trunk of `ood.py` with ten logits."""
    trunk = convnet(seed)
    kernel = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=seed)
    return keras.Model(trunk.inputs, keras.layers.Dense(10, kernel_initializer=kernel)(trunk.layers[-2].output))


def rows_of(data, options, seed):
    """Batches without end of (x, label), in an order that the seed fixes."""
    rows = tf.data.Dataset.from_tensor_slices(data)
    return rows.shuffle(len(data[0]), seed=seed).repeat().batch(options.batch_size)


def plain(train, labels, options, seed):
    """The classifier alone, as a model with the same units; its energy is that of its logits."""
    model = ebm.recipes.small_images(ebm.networks.JointEnergy(network(seed)), num_steps=options.num_steps, seed=seed)
    classifier = model.network.classifier
    classifier.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, options.num_steps), beta_1=0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    z = model.standardization.to_z(train).numpy()
    classifier.fit(rows_of((z, labels), options, seed), steps_per_epoch=options.num_steps, shuffle=False, verbose=0)
    return model


def plain_with_noise(train, labels, options, seed):
    """The same, with the noise on its rows that the joint energy has."""
    model = ebm.recipes.small_images(ebm.networks.JointEnergy(network(seed)), num_steps=options.num_steps, seed=seed)
    loss = ebm.losses.JointEnergyLoss(ebm.losses.DenoisingScoreMatching(1.0), 0.0, model.loss.label_noise)
    model.compile(model.optimizer, loss, steps_per_execution=10)
    rows = rows_of((train, labels), options, seed)
    model.fit(rows, steps_per_epoch=options.num_steps, shuffle=False, verbose=0)
    return model


def joint(train, labels, options, seed):
    """The joint energy."""
    model = ebm.recipes.small_images(
        ebm.networks.JointEnergy(network(seed)),
        num_steps=options.num_steps,
        kernel_steps=options.kernel_steps,
        capacity=options.capacity,
        seed=seed,
    )
    rows = rows_of((train, labels), options, seed)
    model.fit(rows, steps_per_epoch=options.num_steps, shuffle=False, verbose=0)
    return model


BUILDERS = {"plain": plain, "plain with noise": plain_with_noise, "joint": joint}


def scores(model, x, y):
    """Accuracy, expected calibration error and cross-entropy."""
    probs = model.class_probabilities(x).numpy()
    error = ebm.evaluation.expected_calibration_error(probs, y)
    entropy = -np.log(np.maximum(probs[np.arange(len(y)), y], 1e-30)).mean()
    return {"accuracy": float(np.mean(probs.argmax(1) == y)), "ece": error, "cross_entropy": float(entropy)}


def right(judges, x, y):
    """By classifier, the share of images that it assigns to the given class."""
    whole = np.floor(np.clip(17 * np.reshape(x, [-1, 64]), 0, 16))
    return {name: float(np.mean(judge.predict(whole) == y)) for name, judge in judges.items()}


def refined(model, x, y, options, seed):
    """Accuracy on digits with noise, before and after steps on E(x)."""
    rng, result = np.random.default_rng(seed), {}
    for noise in (0.1, 0.2, 0.3):
        noisy = np.clip(x + noise * rng.normal(size=x.shape), 0.001, 0.999).astype("float32")
        moved = ebm.recipes.refine(model, noisy, num_steps=options.refinement_steps, seed=seed)
        result[f"{noise:g}"] = [scores(model, part, y)["accuracy"] for part in (noisy, moved)]
    return result


def run(seed, judges, options):
    """Everything of one seed, and the draws."""
    train, labels, held_out, outside = sets(seed)
    y = load_digits().target
    _, held_out_labels = train_test_split(y, test_size=0.3, random_state=seed, stratify=y)
    result = {"seed": seed}
    for name, build in BUILDERS.items():
        start = time.perf_counter()
        model = build(train, labels, options, seed)
        result[name] = {"seconds": time.perf_counter() - start} | scores(model, held_out, held_out_labels)
        result[name]["auroc"] = {
            what: ebm.evaluation.ood_auroc(model, held_out, x_out).value for what, x_out in outside.items()
        }
        result[name]["noisy"] = refined(model, held_out, held_out_labels, options, seed) if name == "joint" else None
    start = time.perf_counter()
    draws = ebm.recipes.class_samples(model, LABELS, num_steps=options.class_steps, seed=seed).numpy()
    seconds = time.perf_counter() - start
    noise = np.random.default_rng(seed).uniform(0.001, 0.999, (len(LABELS), *SHAPE))
    from_noise = ebm.recipes.refine(model, noise, LABELS, num_steps=options.class_steps, seed=seed).numpy()
    copies, distances = nearest(draws, train)
    result["draws"] = {
        "seconds": seconds,
        "right": right(judges, draws, LABELS),
        "from noise": right(judges, from_noise, LABELS),
        "held-out digits": right(judges, held_out, held_out_labels),
        "distance": distances,
    }
    return result, draws, copies


def show(result):
    """Prints one seed."""
    for name in BUILDERS:
        row = result[name]
        aurocs = ", ".join(f"{what} {value:.3f}" for what, value in row["auroc"].items())
        print(
            f"seed {result['seed']}, {name}, {row['seconds']:.0f} s: accuracy {row['accuracy']:.4f}, ECE "
            f"{row['ece']:.4f}, cross-entropy {row['cross_entropy']:.3f}; AUROC: {aurocs}"
        )
    print(f"  noise: accuracy before and after refinement {result['joint']['noisy']}")
    for name, value in result["draws"].items():
        print(f"  draws, {name}: {value}", flush=True)


def main():
    """Trains, judges and prints; writes JSON and the picture of the first seed, a class in each column."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--num-steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--kernel-steps", type=int, default=10)
    parser.add_argument("--capacity", type=int, default=1024)
    parser.add_argument("--class-steps", type=int, default=100, help="steps of the chains of a class")
    parser.add_argument("--refinement-steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0, help="of TensorFlow; 0: as many as there are cores")
    parser.add_argument("--json")
    parser.add_argument("--figure")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    judges, _ = classifiers()
    results = []
    for seed in options.seeds:
        result, draws, copies = run(seed, judges, options)
        results.append(result)
        show(result)
        if options.figure and seed == options.seeds[0]:
            first = np.arange(len(LABELS)).reshape(10, 100)[:, :10].T.ravel()
            draw(options.figure, {"Draws of the classes 0 to 9": draws[first], "The digits nearest": copies[first]})
        if options.json:
            with open(options.json, "w") as file:
                json.dump({"options": vars(options), "results": results}, file, indent=2)


if __name__ == "__main__":
    main()
