"""Measures which energy separates digits from other images: AUROC of −E, beside ebmkit's on the same data.

Seven of ten digits of scikit-learn train, the other three are compared with uniform noise, with themselves inverted
(1 − x), with their pixels shuffled (each image in an order of its own), turned by 90°, and from chimeras, the left half
of one digit with the right half of a digit of another class. All pixels are dequantised, (n + u)/17.

The same convolutional network (64 filters of 4×4, stride 2, then 256 units), batches of the same size and the same
number of steps for all. Noise contrastive estimation has the same fitted Gaussian in both libraries, and here a mixture
as well; persistent contrastive divergence is here `recipes.small_images`, and there ebmkit's short-run recipe (its
documentation's constants: step 10, noise .005, gradient clipped to .01, pixels clamped, one chain in twenty restarted).
A classifier trained on the labels stands beside them, with its own three scores.

    python benchmarks/ood.py [--seeds 0 1 2] [--methods ...] [--json out.json]

The peer: ebmkit, from its repository.
"""

import argparse
import collections
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tfp_ebm as ebm

SHAPE = (8, 8, 1)
FILTERS, UNITS = 64, 256


def sets(seed):
    """Digits to train on with their labels, digits held out, and by name the sets that are no digits."""
    x, y = ebm.datasets.digits(dequantize=True, seed=seed, images=True), load_digits().target
    train, held_out, labels, held_out_labels = train_test_split(x, y, test_size=0.3, random_state=seed, stratify=y)
    return train, labels, held_out, outside_of(held_out, held_out_labels, seed)


def outside_of(held_out, labels, seed):
    """By name the sets that are no digits, made of held-out digits."""
    rng = np.random.default_rng(seed)
    others = [rng.choice(np.flatnonzero(labels != label)) for label in labels]
    shuffled = rng.permuted(held_out.reshape(len(held_out), -1), axis=1).reshape(held_out.shape)
    half = held_out.shape[2] // 2
    chimeras = np.concatenate([held_out[:, :, :half], held_out[others][:, :, half:]], 2)
    return {
        "uniform noise": rng.random(held_out.shape, "float32"),
        "inverted": 1.0 - held_out,
        "shuffled": shuffled,
        "rotated": np.rot90(held_out, axes=(1, 2)),
        "half-swapped": chimeras,
    }


def rows_of(train, options, seed):
    """Batches without end, in an order that the seed fixes."""
    return tf.data.Dataset.from_tensor_slices(train).shuffle(len(train), seed=seed).repeat().batch(options.batch_size)


def cosine_adam(options):
    """The optimizer of our models; the peer's is the same in PyTorch."""
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, options.num_steps))


def convnet(seed):
    """The network of all."""
    return ebm.networks.convnet(SHAPE, [FILTERS], kernel_size=4, strides=[2], units=[UNITS], seed=seed)


# --- this package -----------------------------------------------------------------------------------------------------


def nce(noise, train, options, seed):
    """Noise contrastive estimation: the network tilts the Gaussian of the training data, in standardised pixels."""
    network = convnet(seed)
    model = ebm.EnergyModel(network, base_measure=ebm.fit_base(train), seed=seed)
    model.adapt(train)
    loss = ebm.losses.NoiseContrastiveEstimation(noise, options.noise_ratio)
    loss.adapt(train)
    model.compile(cosine_adam(options), loss, jit_compile=True, steps_per_execution=10)
    model.fit(rows_of(train, options, seed), steps_per_epoch=options.num_steps, shuffle=False, verbose=0)
    return model


def pcd(train, options, seed):
    """Persistent chains of MALA in the box of the pixels, as in `digits.py`."""
    model = ebm.recipes.small_images(
        convnet(seed),
        num_steps=options.num_steps,
        kernel_steps=options.kernel_steps,
        capacity=options.capacity,
        seed=seed,
    )
    model.fit(rows_of(train, options, seed), steps_per_epoch=options.num_steps, shuffle=False, verbose=0)
    return model


def classifier(train, labels, options, seed):
    """Logits of the ten classes by the same network with ten outputs; as an energy −log Σ exp of them."""
    trunk = convnet(seed)
    logits = keras.layers.Dense(10)(trunk.layers[-2].output)
    network = keras.Model(trunk.inputs, logits)
    network.compile(cosine_adam(options), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    keras.utils.set_random_seed(seed)  # the order of the batches
    epochs = max(1, options.num_steps * options.batch_size // len(train))
    network.fit(train, labels, batch_size=options.batch_size, epochs=epochs, verbose=0)
    return network


# --- the peer ---------------------------------------------------------------------------------------------------------


def torch_network(seed):
    """The same network in PyTorch, of flat rows, with the same distribution of initial weights: PyTorch's own."""
    import torch

    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 8, 8)),
        torch.nn.Conv2d(1, FILTERS, 4, stride=2, padding=1),
        torch.nn.SiLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * FILTERS, UNITS),
        torch.nn.SiLU(),
        torch.nn.Linear(UNITS, 1, bias=False),
        torch.nn.Flatten(0),
    )


def ebmkit_fit(network, loss, rows, options):
    """ebmkit's trainer, its learning rate decayed along the same cosine; an energy of flat rows in NumPy."""
    import ebm as ebmkit
    import torch

    parameters = [*network.parameters(), *loss.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.num_steps)
    trainer = ebmkit.Trainer(network, loss, optimizer, device="cpu", callback=lambda *_: schedule.step())
    trainer.fit(torch.tensor(rows), options.num_steps, options.batch_size, verbose=False)
    return lambda x: network(torch.tensor(x)).detach().numpy()


def ebmkit_nce(train, options, seed):
    """Noise contrastive estimation against the Gaussian of the training data, in standardised pixels."""
    import ebm as ebmkit
    import torch

    rows = train.reshape(-1, 64)
    loc, scale = rows.mean(0), rows.std(0)
    rows = (rows - loc) / scale
    covariance = torch.tensor(np.cov(rows.T), dtype=torch.float32)
    noise = torch.distributions.MultivariateNormal(torch.zeros(64), covariance)
    loss = ebmkit.NoiseContrastiveEstimation(noise, options.noise_ratio)
    energy = ebmkit_fit(torch_network(seed), loss, rows, options)
    return lambda x: energy((x.reshape(-1, 64) - loc) / scale)


def ebmkit_pcd(train, options, seed):
    """Short cold chains from a replay buffer, with the constants of ebmkit's documentation."""
    import ebm as ebmkit
    import torch

    network = torch_network(seed)
    sampler = ebmkit.LangevinDynamics(
        step_size=10.0, steps=options.kernel_steps, noise_scale=0.005, grad_clip=0.01, clamp=(0.0, 1.0)
    )
    buffer = ebmkit.ReplayBuffer(options.capacity, (64,), init_fn=torch.rand)
    loss = ebmkit.ContrastiveDivergence(sampler, buffer, energy_reg=1.0)
    energy = ebmkit_fit(network, loss, train.reshape(-1, 64), options)
    return lambda x: energy(x.reshape(-1, 64))


# --- judging ----------------------------------------------------------------------------------------------------------

METHODS = {
    "tfp_ebm NCE, Gaussian": lambda *a: nce("gaussian", *a),
    "tfp_ebm NCE, mixture": lambda *a: nce("gaussian_mixture", *a),
    "tfp_ebm PCD": pcd,
    "ebmkit NCE, Gaussian": ebmkit_nce,
    "ebmkit PCD": ebmkit_pcd,
}


def in_tensorflow(energy):
    """An energy of NumPy arrays as one of tensors."""
    return lambda x: tf.convert_to_tensor(energy(x.numpy()), x.dtype)


def scored(data, options, seed):
    """Yields the name of a trained model, a name of one of its scores, the energy, and seconds of training."""
    train, labels, *_ = data
    for name in options.methods:
        start = time.perf_counter()
        model = METHODS[name](train, options, seed)
        seconds = time.perf_counter() - start
        if isinstance(model, ebm.EnergyModel):
            yield name, "log_prob", model, seconds
            yield f"{name}, −‖∇E‖", "gradient", model, seconds
        else:
            yield name, "log_prob", in_tensorflow(model), seconds
    start = time.perf_counter()
    network = classifier(train, labels, options, seed)
    seconds = time.perf_counter() - start
    energy = lambda x: -tf.reduce_logsumexp(network(x, training=False), -1)  # noqa: E731
    yield "classifier, log Σ exp", "log_prob", energy, seconds
    yield "classifier, −‖∇E‖", "gradient", energy, seconds
    yield "classifier, max p(y)", "class_probability", network, seconds


def show(results, seeds):
    """A table in Markdown: the mean over seeds ± the standard error of one seed's value, and the lowest."""
    names = list(next(iter(results.values())))
    print("\n| | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for method, by_set in results.items():
        cells = []
        for name in names:
            values, errors = np.array(by_set[name]).T
            cells.append(f"{values.mean():.3f} ± {np.sqrt(np.mean(errors**2)):.3f} ({values.min():.3f})")
        print(f"| {method} | " + " | ".join(cells) + " |")
    print(f"\nSeeds {seeds}: mean ± standard error of one seed's value (lowest seed).")


def main():
    """Trains, judges, prints the table, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--num-steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--noise-ratio", type=int, default=4)
    parser.add_argument("--kernel-steps", type=int, default=10)
    parser.add_argument("--capacity", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=0, help="of TensorFlow; 0: as many as there are cores")
    parser.add_argument("--json")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    results, seconds = collections.defaultdict(lambda: collections.defaultdict(list)), {}
    for seed in options.seeds:
        data = sets(seed)
        _, _, held_out, outside = data
        for label, kind, energy, seconds[label] in scored(data, options, seed):
            for name, x_out in outside.items():
                auroc = ebm.evaluation.ood_auroc(energy, held_out, x_out, kind)
                results[label][name].append((auroc.value, auroc.standard_error))
            line = ", ".join(f"{name} {values[-1][0]:.3f}" for name, values in results[label].items())
            print(f"seed {seed}, {label}, {seconds[label]:.0f} s: {line}", flush=True)
    show(results, options.seeds)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"options": vars(options), "seconds": seconds, "auroc": results}, file, indent=2)


if __name__ == "__main__":
    main()
