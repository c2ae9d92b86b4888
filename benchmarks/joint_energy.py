"""A classifier of digits that is a density too (JEM), beside the plain classifier of the same network.

`--data digits`: scikit-learn's digits, 8×8; `--data mnist`: the 5000 digits of MNIST of `mnist.py`, 28×28. All networks
of the former have one convolution of 64 filters (4×4, stride 2), 256 units and ten logits; those of MNIST have another
one of 32 filters before it. All have 63 % of the digits, another 7 % for the temperature of their probabilities
(`recipes.calibrate`), and the same number of steps. The joint energy is
`recipes.small_images` of a `networks.JointEnergy`: cross-entropy and persistent chains; its noise on classified rows is
given to a plain classifier, too. On the other 30 %: accuracy, expected calibration error and cross-entropy; the AUROC
of −E(x) = log Σ exp f(x) against images that are no digits (`ood.py`).

For MNIST the chains start at images whose pixels come from different digits, and the first `--density-steps` have the
weight .1 of the density loss, which decreases to the recipe's afterwards.

Draws of each class by `recipes.class_samples` are given to classifiers of `digits.py`, trained on real digits: the
share that they assign to the class of the draw; beside chains of the same energies that start at uniform noise, and
real digits. Refinement: accuracy on digits with noise, before and after some steps of the chains on E(x).

    python benchmarks/joint_energy.py [--data mnist] [--seeds 0 1 2] [--num-steps 3000] [--json out.json]
        [--figure out.png]
"""

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import digits
import keras
import mnist
import numpy as np
import ood
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tfp_ebm as ebm

STEPS = {"digits": 3000, "mnist": 1300}
CAPACITY = {"digits": 1024, "mnist": 512}
LEARNING_RATE = {"digits": 1e-3, "mnist": 3e-4}
DENSITY_STEPS, DENSITY_WEIGHT = {"digits": 0, "mnist": 500}, 0.1


def data_of(name, seed):
    """Digits to train on, digits held out, and the labels of both."""
    if name == "mnist":
        x, y = mnist.images(seed)
    else:
        x, y = ebm.datasets.digits(dequantize=True, seed=seed, images=True), load_digits().target
    return train_test_split(x, y, test_size=0.3, random_state=seed, stratify=y)


def judges_of(name):
    """The classifiers that judge draws, and a function that brings images to their form."""
    if name == "mnist":
        return mnist.classifiers(), mnist.for_judges
    return digits.classifiers()[0], lambda x: np.floor(np.clip(17 * np.reshape(x, [-1, 64]), 0, 16))


def network(options, seed):
    """The classifier: the trunk of `ood.py`, for MNIST with one more convolution, with ten logits."""
    if options.data == "mnist":
        trunk = ebm.networks.convnet(mnist.SHAPE, [32, 64], kernel_size=4, strides=[2, 2], units=[256], seed=seed)
    else:
        trunk = ood.convnet(seed)
    kernel = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=seed)
    return keras.Model(trunk.inputs, keras.layers.Dense(10, kernel_initializer=kernel)(trunk.layers[-2].output))


def rows_of(data, options, seed):
    """Batches without end of (x, label), in an order that the seed fixes."""
    rows = tf.data.Dataset.from_tensor_slices(data)
    return rows.shuffle(len(data[0]), seed=seed).repeat().batch(options.batch_size)


def plain(train, labels, options, seed):
    """The classifier alone, as a model with the same units; its energy is that of its logits."""
    model = ebm.recipes.small_images(
        ebm.networks.JointEnergy(network(options, seed)), num_steps=options.num_steps, seed=seed
    )
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
    model = ebm.recipes.small_images(
        ebm.networks.JointEnergy(network(options, seed)), num_steps=options.num_steps, seed=seed
    )
    loss = ebm.losses.JointEnergyLoss(ebm.losses.DenoisingScoreMatching(1.0), 0.0, model.loss.label_noise)
    model.compile(model.optimizer, loss, steps_per_execution=10)
    rows = rows_of((train, labels), options, seed)
    model.fit(rows, steps_per_epoch=options.num_steps, shuffle=False, verbose=0)
    return model


def joint(train, labels, options, seed):
    """The joint energy; for MNIST first `density_steps` with a large weight of the density."""
    model = ebm.recipes.small_images(
        ebm.networks.JointEnergy(network(options, seed)),
        num_steps=options.num_steps - options.density_steps,
        learning_rate=options.learning_rate,
        kernel_steps=options.kernel_steps,
        capacity=options.capacity,
        seed=seed,
    )
    rows = rows_of((train, labels), options, seed)
    if options.density_steps:
        optimizer, loss = model.optimizer, model.loss
        start_at_pixels(model, train, seed)
        cosine = keras.optimizers.schedules.CosineDecay(1e-3, options.density_steps)
        first = ebm.losses.JointEnergyLoss(loss.density_loss, DENSITY_WEIGHT, loss.label_noise)
        compile_as_recipe(model, keras.optimizers.Adam(cosine, beta_1=0.5), first)
        model.fit(rows, steps_per_epoch=options.density_steps, shuffle=False, verbose=0)
        compile_as_recipe(model, optimizer, loss)
    model.fit(rows, steps_per_epoch=options.num_steps - options.density_steps, shuffle=False, verbose=0)
    return model


def compile_as_recipe(model, optimizer, loss):
    """Compiles with another optimizer or loss, by XLA as the recipe does."""
    model.compile(optimizer, loss, jit_compile=True, steps_per_execution=10, metrics=["accuracy"])


def start_at_pixels(model, train, seed):
    """Starts the chains at images whose pixels are drawn from different digits, each of the distribution of its place.

    At 28×28 the energies of uniform noise and of digits differ by thousands, and chains that start there are left
    behind.
    """
    chains = model.loss.density_loss.chains
    images = np.random.default_rng(seed).permuted(train, axis=0)[: chains.capacity]
    chains.states.assign(model.standardization.to_z(images))
    chains.ages.assign(np.ones(chains.capacity, "int32"))


BUILDERS = {"joint": joint, "plain": plain, "plain with noise": plain_with_noise}


def scores(model, x, y):
    """Accuracy, expected calibration error and cross-entropy."""
    probs = model.class_probabilities(x).numpy()
    error = ebm.evaluation.expected_calibration_error(probs, y)
    entropy = -np.log(np.maximum(probs[np.arange(len(y)), y], 1e-30)).mean()
    return {"accuracy": float(np.mean(probs.argmax(1) == y)), "ece": error, "cross_entropy": float(entropy)}


def right(judges, x, y):
    """By classifier, the share of images that it assigns to the given class."""
    by_name, form = judges
    whole = form(x)
    return {name: float(np.mean(judge.predict(whole) == y)) for name, judge in by_name.items()}


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
    train, held_out, labels, held_out_labels = data_of(options.data, seed)
    number = len(train) // 10
    (kept, train), (kept_labels, labels) = ((part[:number], part[number:]) for part in (train, labels))
    outside = ood.outside_of(held_out, held_out_labels, seed)
    result = {"seed": seed}
    models = {}
    for name, build in BUILDERS.items():
        start, cpu = time.perf_counter(), time.process_time()
        models[name] = model = build(train, labels, options, seed)
        seconds = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - cpu}
        result[name] = seconds | scores(model, held_out, held_out_labels)
        result[name]["temperature"] = ebm.recipes.calibrate(model, kept, kept_labels)
        result[name]["calibrated"] = scores(model, held_out, held_out_labels)
        result[name]["auroc"] = {
            what: ebm.evaluation.ood_auroc(model, held_out, x_out).value for what, x_out in outside.items()
        }
        show(name, result[name])
    model = models["joint"]
    result["noisy"] = refined(model, held_out, held_out_labels, options, seed)
    wanted = np.repeat(np.arange(10), options.draws)
    start = time.perf_counter()
    draws = ebm.recipes.class_samples(model, wanted, num_steps=options.class_steps, seed=seed).numpy()
    seconds = time.perf_counter() - start
    noise = np.random.default_rng(seed).uniform(0.001, 0.999, (len(wanted), *train.shape[1:]))
    from_noise = ebm.recipes.refine(model, noise, wanted, num_steps=options.class_steps, seed=seed).numpy()
    copies, distances = digits.nearest(draws, train)
    result["draws"] = {
        "seconds": seconds,
        "right": right(judges, draws, wanted),
        "from noise": right(judges, from_noise, wanted),
        "held-out digits": right(judges, held_out, held_out_labels),
        "distance": distances,
    }
    return result, draws, copies


def show(name, row):
    """Prints the row of one model."""
    aurocs = ", ".join(f"{what} {value:.3f}" for what, value in row["auroc"].items())
    print(f"{name}, {row['seconds']:.0f} s, {row['processor_seconds']:.0f} s of processors: accuracy", end=" ")
    print(f"{row['accuracy']:.4f}, ECE {row['ece']:.4f}, cross-entropy {row['cross_entropy']:.3f}", end="; ")
    calibrated = row["calibrated"]
    print(f"at T = {row['temperature']:.2f} {calibrated['ece']:.4f}, {calibrated['cross_entropy']:.3f}", end="; ")
    print(f"AUROC: {aurocs}", flush=True)


def main():
    """Trains, judges and prints; writes JSON and the picture of the first seed, a class in each column."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(STEPS), default="digits")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--num-steps", type=int, help=f"training steps, by default {STEPS}")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--kernel-steps", type=int, default=10)
    parser.add_argument("--capacity", type=int, help=f"number of chains, by default {CAPACITY}")
    parser.add_argument("--learning-rate", type=float, help=f"of the joint energy, by default {LEARNING_RATE}")
    parser.add_argument("--density-steps", type=int, help=f"first steps, for the density, by default {DENSITY_STEPS}")
    parser.add_argument("--draws", type=int, default=100, help="of each class")
    parser.add_argument("--class-steps", type=int, default=100, help="steps of the chains of a class")
    parser.add_argument("--refinement-steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0, help="of TensorFlow; 0: as many as there are cores")
    parser.add_argument("--json")
    parser.add_argument("--figure")
    options = parser.parse_args()
    options.num_steps = options.num_steps or STEPS[options.data]
    if options.density_steps is None:
        options.density_steps = DENSITY_STEPS[options.data]
    options.learning_rate = options.learning_rate or LEARNING_RATE[options.data]
    options.capacity = options.capacity or CAPACITY[options.data]
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    judges = judges_of(options.data)
    results = []
    for seed in options.seeds:
        result, draws, copies = run(seed, judges, options)
        results.append(result)
        print(f"seed {seed}, noise: accuracy before and after refinement {result['noisy']}")
        for name, value in result["draws"].items():
            print(f"  draws, {name}: {value}", flush=True)
        if options.figure and seed == options.seeds[0]:
            first = np.arange(len(draws)).reshape(10, -1)[:, :10].T.ravel()
            digits.draw(
                options.figure, {"Draws of the classes 0 to 9": draws[first], "The digits nearest": copies[first]}
            )
        if options.json:
            with open(options.json, "w") as file:
                json.dump({"options": vars(options), "results": results}, file, indent=2)


if __name__ == "__main__":
    main()
