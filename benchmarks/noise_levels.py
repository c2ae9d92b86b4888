"""Energies over noise levels: their KL on known densities, their own log Z, and digits.

On the plane: `recipes.noise_levels`, 5000 steps with batches of 256, 50 000 rows, judged as in `quality.py`, on a grid
of ±12, at the smallest noise scale of the recipe. "unequal" has eight Gaussians with weights proportional to 1 … 8,
"far" two Gaussians twelve deviations apart with weights .3 and .7. Beside the KL stand log Z on the grid, which is 0 if
the model knows it, and the largest error of a share of a mode ("unequal" and "far"). The checkerboard has settings for
data with edges.

Families: the same recipe on 20 000 rows of families of `tables.py`. KL by 20 000 fresh rows with the model's own log Z,
and log Z by the draws of `EnergyDistribution.draw`.

Digits: `recipes.noise_level_images` on nine tenths of scikit-learn's digits. Bits per dimension of the rest, by the
model's own log p and with log Z by draws; the draws are judged by the classifiers of `digits.py`.

    python benchmarks/noise_levels.py [--cells checkerboard unequal banana_8_20000 digits] [--seeds 0 1 2]
        [--options '{"sigma_min": 0.01}'] [--out noise_levels.jsonl]
"""

import argparse
import json
import math
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np

PLANE = ("two_gaussians", "eight_gaussians", "unequal", "two_moons", "banana", "rings", "checkerboard", "far")
NUM_ROWS, BATCH_SIZE, NUM_STEPS = 50_000, 256, 5000
NUM_DRAWS = 1024
# Settings for data with edges, under those of --options.
EDGES = {"sigma_min": 0.01, "num_components": 1, "num_waves": 6, "is_bounded": True}


def mixture(locs, width, probs):
    """A mixture of round Gaussians, as a distribution of TFP."""
    import tensorflow_probability as tfp

    tfd = tfp.distributions
    parts = tfd.MultivariateNormalDiag(np.asarray(locs, float), np.full(2, width))
    return tfd.MixtureSameFamily(tfd.Categorical(probs=np.asarray(probs, float)), parts)


def modes_of(name):
    """The centres of the modes whose shares are judged, and the shares; None for other targets."""
    if name == "far":
        return np.array([[-3.0, 0.0], [3.0, 0.0]]), np.array([0.3, 0.7])
    if name == "unequal":
        angles = 2 * math.pi * np.arange(8) / 8
        return 2 * np.stack([np.cos(angles), np.sin(angles)], -1), np.arange(1, 9) / 36
    return None


def plane(name, seed, options):
    """Trains the recipe on a target of the plane and judges it on the grid."""
    import quality

    import tfp_ebm as ebm
    from tfp_ebm.energy.data import shuffled_batches

    nodes, cell = quality.grid()
    if (modes := modes_of(name)) is None:
        target, log_p = quality.target_of(name)
    else:
        target = mixture(modes[0], 0.5 if name == "far" else 0.2, modes[1])
        log_p = np.concatenate([target.log_prob(part).numpy() for part in np.array_split(nodes, 200)])
    x = target.sample(NUM_ROWS, seed=[seed, 0]).numpy().astype("float32")
    start = time.process_time()
    options = (EDGES if name == "checkerboard" else {}) | options
    model = ebm.recipes.noise_levels(x, NUM_STEPS, seed=seed, **options)
    batches = shuffled_batches(x, BATCH_SIZE, seed)
    model.fit(batches, epochs=1, steps_per_epoch=NUM_STEPS, shuffle=False, verbose=0)
    result = {"seconds": time.process_time() - start}
    sharp = model.given(model.loss.sigma_min)
    energies = np.asarray(ebm.evaluation.densities.energies(sharp, nodes), np.float64)
    result |= quality.judge(log_p, energies, nodes, cell)
    if modes is not None:
        owner = np.argmin(((nodes[:, None] - modes[0]) ** 2).sum(-1), 1)
        mass = np.bincount(owner, np.exp(-energies - result["log_normalizer"]) * cell, len(modes[0]))
        drawn = np.asarray(x, float)
        truth = np.bincount(np.argmin(((drawn[:, None] - modes[0]) ** 2).sum(-1), 1), minlength=len(mass)) / len(x)
        result["share_error"] = float(np.abs(mass - modes[1]).max())
        result["share_error_of_rows"] = float(np.abs(truth - modes[1]).max())
    return result


def family(name, seed, options):
    """Trains the recipe on rows of a family of `tables.py`."""
    import tables_data

    import tfp_ebm as ebm
    from tfp_ebm.energy.data import shuffled_batches

    x, test, log_p = tables_data.cell(name, seed)
    start = time.process_time()
    options = dict(options)
    num_steps = options.pop("num_steps", NUM_STEPS)
    model = ebm.recipes.noise_levels(x.astype("float32"), num_steps, seed=seed, **options)
    batches = shuffled_batches(x.astype("float32"), BATCH_SIZE, seed)
    model.fit(batches, epochs=1, steps_per_epoch=num_steps, shuffle=False, verbose=0)
    seconds = time.process_time() - start
    sharp = model.given(model.loss.sigma_min)
    own = ebm.evaluation.densities.energies(sharp, test.astype("float32"))
    gaps = log_p + np.asarray(own, np.float64)
    result = {"seconds": seconds, "kl": float(gaps.mean()), "kl_error": float(gaps.std() / math.sqrt(len(gaps)))}
    return result | log_normalizer_of_draws(sharp, seed)[0]


def log_normalizer_of_draws(sharp, seed):
    """log Z by draws down the noise, with the verdict; and the draws."""
    import tfp_ebm as ebm

    start = time.process_time()
    draws = ebm.EnergyDistribution(sharp).draw(NUM_DRAWS, seed=seed)
    value, error = draws.log_normalizer.value, draws.log_normalizer.standard_error
    seconds = time.process_time() - start
    found = {"drawn_log_normalizer": value, "drawn_error": error, "trouble": list(draws.trouble)}
    return found | {"seconds_of_draws": seconds}, draws.states.numpy()


def dequantised_batches(whole, seed):
    """Batches of whole pixels 0 … 16 without end, each with fresh noise (n + u)/17."""
    import tensorflow as tf

    def with_noise(number, batch):
        noise = tf.random.stateless_uniform(tf.shape(batch), tf.stack([tf.constant(seed, tf.int64), number]))
        return (batch + noise) / 17

    rows = tf.data.Dataset.from_tensor_slices(whole).shuffle(len(whole), seed=seed).repeat()
    return rows.batch(BATCH_SIZE, drop_remainder=True).enumerate().map(with_noise).prefetch(16)


def digits(seed, options):
    """Trains the recipe for images on digits; writes a picture of draws beside the results."""
    import digits as judges_of

    import tfp_ebm as ebm

    options = dict(options)
    num_steps, figure = options.pop("num_steps", NUM_STEPS), options.pop("figure", None)
    whole = ebm.datasets.digits(dequantize=False, images=True)
    x = ebm.datasets.digits(dequantize=True, seed=seed, images=True)
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = x[order[180:]], x[order[:180]]
    start = time.process_time()
    model = ebm.recipes.noise_level_images(train, num_steps=num_steps, seed=seed, **options)
    batches = dequantised_batches(whole[order[180:]], seed)
    model.fit(batches, epochs=1, steps_per_epoch=num_steps, shuffle=False, verbose=0)
    result = {"seconds": time.process_time() - start}
    sharp = model.given(model.loss.sigma_min)
    found, states = log_normalizer_of_draws(sharp, seed)
    own = ebm.evaluation.bits_per_dimension(sharp, test, 0.0, bin_width=1 / 17)
    of_rows = ebm.evaluation.bits_per_dimension(sharp, train, 0.0, bin_width=1 / 17)
    result |= {"bits": own.value, "bits_error": own.standard_error, "bits_of_training_rows": of_rows.value} | found
    result["bits_by_draws"] = own.value + found["drawn_log_normalizer"] / (64 * math.log(2))
    judges, _ = judges_of.classifiers()
    result["verdict"] = judges_of.judge(judges, states)
    copies, (result["distance"], result["distance_of_digits"]) = judges_of.nearest(states, train)
    if figure:
        rows = {"Digits": test[:100], "Draws": states[:100], "The digits nearest to those": copies[:100]}
        judges_of.draw(figure, rows)
    return result


def main():
    """Runs the chosen cells, and prints and appends a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", default=list(PLANE))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--options", type=json.loads, default={}, help="arguments of the recipe, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    for seed in arguments.seeds:
        for name in arguments.cells:
            options = arguments.options
            run = plane if name in PLANE else digits if name == "digits" else family
            result = run(seed, options) if name == "digits" else run(name, seed, options)
            line = json.dumps({"cell": name, "seed": seed, "options": options} | result)
            print(line, flush=True)
            if arguments.out:
                with open(arguments.out, "a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
