"""Short runs whose numbers must not change: every kernel, every loop over a kernel, and training by chains.

`tests/test_golden.py` compares them with the stored ones to the rounding of another machine. `python -m tests.golden
--exact` compares bit for bit, which holds on the machine that stored them only; without `--exact` it stores them anew.
"""

from __future__ import annotations

import pathlib
import sys
import warnings

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm

FILE = pathlib.Path(__file__).parent / "data" / "golden.npz"


def log_prob(x):
    """A banana, in any number of leading dimensions."""
    return -0.5 * x[..., 0] ** 2 - 0.5 * ((x[..., 1] - 0.5 * x[..., 0] ** 2 + 0.5) / 0.6) ** 2


BASE = tfp.distributions.MultivariateNormalDiag([0.0, 0.0], [2.0, 2.0])


def starts(num_chains):
    return tf.constant(np.random.default_rng(0).normal(size=(num_chains, 2)), tf.float32)


def network():
    inputs = keras.Input((2,))
    rng = np.random.default_rng(1)
    hidden, out = keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)
    model = keras.Model(inputs, out(hidden(inputs)))
    hidden.set_weights([rng.normal(size=(2, 8)), rng.normal(size=8)])
    out.set_weights([rng.normal(size=(8, 1)), np.zeros(1)])
    return model


def kernels():
    m = ebm.mcmc
    return {
        "random_walk": m.RandomWalk(0.7),
        "hmc": m.HMC(0.3, 4, mass=[1.0, 2.0]),
        "mala": m.MALA(0.4),
        "langevin": m.Langevin(0.2, noise_scale=0.1, gradient_clip=2.0, noise_first=True, clamp=(-3.0, 3.0)),
        "nuts": m.NUTS(0.3),
        "adaptive": m.Adaptive(m.HMC(0.3, 3)),
        "sequential": m.Sequential([m.IndependenceMetropolis(BASE), m.MALA(0.4)]),
        "replica_exchange": m.ReplicaExchange(m.HMC(0.3, 2), [1.0, 0.5, 0.2]),
        "tempered_transition": m.TemperedTransition(m.MALA(0.4), BASE, num_temperatures=4),
        "transformed": m.Transformed(m.MALA(0.3), tfp.bijectors.Sigmoid(-4.0, 6.0)),
    }


def chains(kernel, num_chains=6, seed=3, jit_compile=False):
    """The first six chains of a short run."""
    samples = ebm.mcmc.sample(
        log_prob,
        starts(num_chains),
        kernel,
        num_results=4,
        num_burnin_steps=5,
        num_steps_between_results=1,
        seed=seed,
        jit_compile=jit_compile,
    )
    return samples.states.numpy()[:, :6]


def runs():
    """Name: array, of every run."""
    result = {}
    for name, kernel in kernels().items():
        for num_chains in (6, 130) if name in ("hmc", "mala", "random_walk") else (6,):
            result[f"{name}_{num_chains}"] = chains(kernel, num_chains, jit_compile=name == "nuts")
    for num_chains in (6, 130):
        summary = ebm.mcmc.summarize(
            log_prob,
            starts(num_chains),
            ebm.mcmc.MALA(0.4),
            num_results=20,
            num_burnin_steps=5,
            seed=4,
            jit_compile=False,
        )
        result[f"summarize_{num_chains}"] = np.stack([summary.mean, summary.sd])
    model = ebm.EnergyModel(network(), base_measure=BASE)
    model.adapt(starts(50) * 2.0 + 1.0)
    samples = ebm.mcmc.annealed_langevin(
        lambda x, sigma: log_prob(x) / (1.0 + sigma**2), starts(6), [1.0, 0.5, 0.2], step_size=0.02, num_steps=3, seed=5
    )
    result["annealed_langevin"] = samples.states.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimate = ebm.evaluation.annealed_importance_sampling(
            model, num_temperatures=6, num_chains=8, kernel=ebm.mcmc.MALA(0.3), seed=6
        )
    result["ais"] = np.asarray(estimate.log_weights)
    p = ebm.EnergyDistribution(model, kernel=ebm.mcmc.MALA(0.3), num_burnin_steps=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result["distribution"] = p.sample(5, seed=7).numpy()
        result["distribution_chains"] = np.asarray(p.sample_chains(3, 4, seed=8).states)
    for jit_compile in (False, True):
        loss = ebm.losses.PersistentContrastiveDivergence(num_steps=3, capacity=64, jit_compile=jit_compile)
        trained = ebm.EnergyModel(network())
        trained.adapt(starts(50))
        # one step in each program, as when the file was made: TensorFlow rounds otherwise where it has several
        trained.compile(optimizer=keras.optimizers.SGD(0.1), loss=loss, steps_per_execution=1)
        trained.fit(starts(64), batch_size=32, epochs=2, shuffle=False, verbose=0)
        result[f"persistent_{jit_compile}"] = np.concatenate([w.ravel() for w in trained.network.get_weights()])
    cooled = ebm.recipes.li_chen_sommer_2019(network(), event_shape=[2])
    samples = ebm.recipes.li_chen_sommer_2019_samples(cooled, 6, temperatures=[100.0, 10.0, 1.0, 0.0], seed=9)
    result["li_chen_sommer_2019"] = np.asarray(samples)
    return result


def stored():
    """Name: array, of every run in the file."""
    with np.load(FILE) as file:
        return dict(file)


def main():
    result = runs()
    if "--exact" in sys.argv:
        old = stored()
        assert set(old) == set(result), set(old) ^ set(result)
        bad = [name for name in old if not np.array_equal(old[name], result[name])]
        print("differ:", bad or "none")
        sys.exit(bool(bad))
    np.savez_compressed(FILE, **result)


if __name__ == "__main__":
    main()
