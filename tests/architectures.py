"""Random energy networks, and what must hold for any of them: the properties of a model from energy to export.

`random_case` takes a `random.Random`, so that both hypothesis (`st.randoms`) and a script can draw cases.
"""

import contextlib
import warnings

import keras
import numpy as np
import tensorflow as tf

import tfp_ebm as ebm

LOSSES = {
    "denoising": lambda: ebm.losses.DenoisingScoreMatching(0.3),
    "sliced": lambda: ebm.losses.SlicedScoreMatching(),
    "exact": lambda: ebm.losses.ScoreMatching(),
    "contrastive": lambda: ebm.losses.NoiseContrastiveEstimation(noise_ratio=2.0),
    "short chains": lambda: ebm.losses.ContrastiveDivergence(ebm.mcmc.Langevin(0.1), 2),
    "persistent": lambda: ebm.losses.PersistentContrastiveDivergence(ebm.mcmc.MALA(0.1), 2, capacity=32),
}
# Relative error of an energy of a few units, by the dtype in which the network computes.
TOLERANCES = {"float64": 1e-9, "float32": 2e-4, "mixed_bfloat16": 0.1, "mixed_float16": 0.02}
POLICIES = tuple(TOLERANCES)
_SMOOTH = ("tanh", "silu", "softplus", "gelu", "sigmoid", "elu")


def random_case(rng):
    """The plain values that describe a model and its data."""
    rank = rng.choice([1, 1, 1, 2, 3])
    event = tuple(rng.choice([1, 2, 3, 5]) for _ in range(rank))
    event = (*event[:-1], rng.choice([1, 2])) if rank == 3 else event
    policy = rng.choice(POLICIES)
    blocks = ["dense", "residual", "norm", "gate", "fourier"] + (["convolution"] if rank > 1 else [])
    return {
        "event": event,
        "policy": policy,
        "blocks": [rng.choice(blocks) for _ in range(rng.choice([0, 1, 2, 3]))],
        "activation": rng.choice(_SMOOTH),
        "units": rng.choice([1, 3, 8]),
        "tilted": rng.random() < 0.4,
        "vector_output": rng.random() < 0.5,
        "rows": rng.choice([2, 3, 7, 16]),
        "batch": rng.choice([1, 2, 5]),
        "leading": tuple(rng.choice([1, 2, 3]) for _ in range(rng.choice([0, 1, 2, 3]))),
        "offset": rng.choice([0.0, 0.0, 100.0]),
        "scale": rng.choice([1.0, 1.0, 1e-3, 1e3]),
        "loss": rng.choice(list(LOSSES)),
        "seed": rng.randrange(2**31),
    }


def network_of(case):
    """The network of a case: blocks on the event, then dense layers, then one number."""
    policy, activation, units = case["policy"], case["activation"], case["units"]
    dtype = keras.DTypePolicy(policy)
    layers, inputs = keras.layers, keras.Input(case["event"], dtype=dtype.variable_dtype)
    x, seed = inputs, case["seed"]

    def dense(x, width, seed):
        initial = keras.initializers.GlorotNormal(seed)
        return layers.Dense(width, activation, kernel_initializer=initial, dtype=dtype)(x)

    for i, block in enumerate(case["blocks"]):
        if block == "convolution" and len(x.shape) > 2:
            kind = layers.Conv1D if len(x.shape) == 3 else layers.Conv2D
            x = kind(units, 3, padding="same", activation=activation, dtype=dtype)(x)
        elif block == "norm":
            x = ebm.networks.LayerNormalization(dtype=dtype)(dense(x, units + 1, seed + i))
        elif block == "residual":
            width = x.shape[-1]
            x = layers.Add(dtype=dtype)([x, dense(x, width, seed + i)])
        elif block == "gate":
            x = layers.Multiply(dtype=dtype)([dense(x, units, seed + i), dense(x, units, seed + i + 100)])
        elif block == "fourier" and len(x.shape) == 2:
            x = ebm.networks.FourierFeatures(4, seed=i, dtype=dtype)(x)
        else:
            x = dense(x, units, seed + i)
    x = x if len(x.shape) == 2 else layers.Flatten(dtype=dtype)(x)
    output = layers.Dense(1, use_bias=False, dtype=dtype)(dense(x, units, seed))
    return keras.Model(inputs, layers.Reshape((), dtype=dtype)(output) if case["vector_output"] else output)


def model_of(case, x):
    """The model of a case, adapted to x."""
    base = ebm.fit_base(x) if case["tilted"] and x.shape[0] > 8 and x[0].ndim == 1 else None
    if base is not None and x.dtype == np.float64:
        base = type(base)(tf.cast(base.loc, tf.float64), tf.cast(base.scale_tril, tf.float64))
    model = ebm.EnergyModel(network_of(case), base_measure=base, seed=case["seed"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of one row, or few
        model.adapt(x)
    return model


def check(case, folder):
    """Raises AssertionError, naming the property, if the model of a case has not one of the properties.

    Args:
      case: from `random_case`.
      folder: a place for files, which does not exist yet.
    """
    rng = np.random.default_rng(case["seed"])
    dtype = "float64" if case["policy"] == "float64" else "float32"
    x = (case["offset"] + rng.normal(size=(case["rows"], *case["event"]))) * case["scale"]
    x = x.astype(dtype)
    model = model_of(case, x)
    tolerance = TOLERANCES[case["policy"]]

    energies = np.asarray(model.energy(x))
    assert energies.shape == (len(x),) and energies.dtype == dtype, "energy: shape or dtype"
    assert np.isfinite(energies).all(), "energy: not finite"
    spread = 1.0 + np.abs(energies).max()

    def near(a, b, what, scale=spread, share=1.0):
        worst = float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max(initial=0.0))
        assert worst <= share * tolerance * scale, (
            f"{what}: differs by {worst:.3g}, allowed {share * tolerance * scale:.3g}"
        )

    states = x[rng.integers(len(x), size=case["leading"])] if case["leading"] else x[0]
    lead = case["leading"]
    near(np.ravel(model.energy(states)), model.energy(states.reshape(-1, *case["event"])), "energy: leading dimensions")
    score = np.asarray(model.score(states))
    assert score.shape == states.shape and model.energy(states).shape == lead, "leading dimensions: shape"
    _check_derivatives(case, model, x, near)

    model.compile(keras.optimizers.Adam(1e-3), LOSSES[case["loss"]]())
    with _quiet():
        logs = model.fit(x, batch_size=min(case["batch"], len(x)), epochs=1, verbose=0).history
    steps = -(-len(x) // min(case["batch"], len(x)))
    assert int(model._step.numpy()) == steps, "fit: the counter of steps"
    assert all(np.isfinite(weight.numpy()).all() for weight in model.weights if "float" in weight.dtype), "fit: weights"
    assert np.isfinite(logs["loss"]).all(), "fit: loss"

    folder.mkdir()
    energies = np.asarray(model.energy(x))
    model.save(folder / "model.keras")
    loaded = keras.saving.load_model(folder / "model.keras")
    np.testing.assert_array_equal(loaded.energy(x), energies, err_msg="save: energy")
    for a, b in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=f"save: {b.path}")
    with _quiet():
        model.export(folder / "exported", kernel=ebm.mcmc.MALA(0.1), verbose=False)
    served = tf.saved_model.load(str(folder / "exported"))
    near(served.energy(tf.constant(x)), energies, "export: energy", share=1e-2)
    drawn = served.sample(tf.constant(x), tf.constant([1, 2]), tf.constant(2)).numpy()
    assert drawn.shape == x.shape and np.isfinite(drawn).all(), "export: sample"


def _check_derivatives(case, model, x, near):
    """Compares score and Laplacian with other ways to compute them."""
    at = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(at)
        energy = model.energy(at)
    gradient = tape.gradient(energy, at).numpy()
    size = max(1.0, float(np.abs(gradient).max()))
    near(-gradient, model.score(at), "score: gradient of the energy", size)
    if case["policy"] == "float64":
        step = 1e-6 * case["scale"]
        direction = np.random.default_rng(1).normal(size=x.shape)
        ahead, behind = (np.asarray(model.energy(x + sign * step * direction)) for sign in (1, -1))
        slope = -(np.asarray(model.score(x)) * direction).reshape(len(x), -1).sum(1)
        worst = np.abs((ahead - behind) / (2 * step) - slope).max() / max(1.0, np.abs(slope).max())
        assert worst < 1e-5, f"score: finite differences differ by {worst:.3g}"
    forward = np.asarray(ebm.derivatives.laplacian(model, x))
    reverse = np.asarray(ebm.derivatives.laplacian(model, x, method="reverse"))
    size = max(1.0, float(np.abs(reverse).max()))
    near(forward, reverse, "laplacian: two methods", size, share=5.0)


@contextlib.contextmanager
def _quiet():
    """Without warnings of the statistics of a training of a few rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
