"""The contestants of `sampling.py`: the same chains on the same energy, each in its own code.

The energy is ½‖x‖² plus a network, so that it has tails; all start from the same standard normal draws, at the same
step size ε of the leapfrog step, and keep every state. A builder returns `run(num_steps)`, which goes on from where it
was and blocks until it is done; `run.report()` returns the effective sample size per step of all
chains together, by the same estimator for all.
"""

import dataclasses
import functools

import numpy as np
from peers import Case, Contestant, jax_total_energy, torch_network

LEAPFROG_STEPS = 10
STEPS_PER_CALL = {"ULA": 100, "MALA": 100, "HMC": 20, "NUTS": 10}
_ESS_STEPS, _ESS_CHAINS, _ESS_COORDINATES = 400, 64, 8


@dataclasses.dataclass(frozen=True)
class SamplingCase(Case):
    """A network, as many chains as `batch`, and the step sizes of Langevin and of Hamiltonian dynamics."""

    langevin_step: float = 0.3
    leapfrog_step: float = 0.15

    def step_size(self, sampler):
        """ε."""
        return self.langevin_step if sampler in ("ULA", "MALA") else self.leapfrog_step

    def flops(self, objective):
        """Matrix products of a step: every kernel once forwards and once backwards per evaluation. NUTS: unknown."""
        if objective == "product":
            return super().flops(objective)
        evaluations = {"ULA": 1, "MALA": 1, "HMC": LEAPFROG_STEPS}.get(objective, float("nan"))
        return evaluations * 4 * self.batch * sum(np.prod(kernel) * places for kernel, places in self.layers())

    def start(self):
        """States to begin with, `[chains, d]`."""
        return self.batches(1)[0]


class Chains:
    """`run` of a function `(call number) -> states [steps, chains, d]` that goes on from call to call."""

    def __init__(self, sampler, call, chain_axis=1):
        self.steps_per_call, self.call, self.chain_axis, self.count = STEPS_PER_CALL[sampler], call, chain_axis, 0

    def __call__(self, num_steps):
        """Runs the steps and returns a number of the last state."""
        for _ in range(num_steps // self.steps_per_call):
            states = self.call(self.count)
            self.count += 1
        return float(states[-1, -1, -1])

    def report(self):
        """Effective draws per step, all chains together, of the coordinate that mixes worst."""
        parts = []
        for _ in range(-(-_ESS_STEPS // self.steps_per_call)):
            states = np.moveaxis(np.asarray(self.call(self.count)), self.chain_axis, 1)
            parts.append(states[:, :_ESS_CHAINS, :_ESS_COORDINATES])
            self.count += 1
        num_chains = states.shape[1]
        return {"ess_per_step": num_chains * ess_per_draw(np.concatenate(parts).astype("float64"))}


def ess_per_draw(x):
    """1/(1 + 2Σρₖ) of `[steps, chains, d]`, the least over coordinates: ρₖ averaged over the chains, Geyer's initial
    positive sequence."""
    number = len(x)
    spectrum = np.fft.rfft(x - x.mean((0, 1)), 2 * number, axis=0)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2, axis=0)[:number].mean(1) / np.arange(number, 0, -1)[:, None]
    rho = covariance / covariance[0]
    pairs = rho[0 : number // 2 * 2 : 2] + rho[1 : number // 2 * 2 : 2]
    pairs = np.where(np.cumsum(pairs <= 0, axis=0) > 0, 0, pairs)
    return float(1 / np.max(2 * pairs.sum(0) - 1))


# --- tfp_ebm ---------------------------------------------------------------------------------------------------------


def tfp_ebm(case, sampler, jit_compile):
    """Runs what a user runs: `ebm.mcmc.sample` of a target."""
    import tensorflow as tf

    import tfp_ebm as ebm

    network = ebm.networks.mlp(case.event_shape, case.units)
    network.set_weights(case.weights())

    def target(x):
        return -network(x)[:, 0] - 0.5 * tf.reduce_sum(x**2, -1)

    step_size = case.step_size(sampler)
    kernel = {
        "ULA": ebm.mcmc.Langevin,
        "MALA": ebm.mcmc.MALA,
        "HMC": functools.partial(ebm.mcmc.HMC, num_leapfrog_steps=LEAPFROG_STEPS),
        "NUTS": ebm.mcmc.NUTS,
    }[sampler](step_size)
    state = tf.constant(case.start())

    def call(count):
        nonlocal state
        states = ebm.mcmc.sample(
            target, state, kernel, num_results=STEPS_PER_CALL[sampler], seed=count, jit_compile=jit_compile
        ).states
        state = states[-1]
        return states

    return Chains(sampler, call)


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def torch_energy(case, module=None):
    """The energy as a module of the given class, `[chains, d] -> [chains]`."""
    import torch

    class Energy(module or torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = torch_network(case)

        def forward(self, x):
            return self.network(x).squeeze(-1) + 0.5 * (x**2).sum(-1)

    return Energy()


def ebmkit(case, sampler):
    """ebmkit's samplers; its Langevin step sizes are ε²/2."""
    import ebm
    import torch

    step, steps = case.step_size(sampler), STEPS_PER_CALL[sampler]
    chain = {
        "ULA": lambda: ebm.LangevinDynamics(step**2 / 2, steps),
        "MALA": lambda: ebm.MALA(step**2 / 2, steps),
        "HMC": lambda: ebm.HMC(step, LEAPFROG_STEPS, steps),
        "NUTS": lambda: ebm.NUTS(step, steps, warmup=0),
    }[sampler]()
    energy, state = torch_energy(case), torch.tensor(case.start())

    def call(count):
        nonlocal state
        states = chain.sample(energy, state, return_trajectory=True)[1:]
        state = states[-1]
        return states

    return Chains(sampler, call)


def torchebm(case, sampler):
    """torchebm's samplers; its Langevin step size is ε²/2."""
    import torch
    import torchebm.core
    import torchebm.samplers

    step, energy = case.step_size(sampler), torch_energy(case, torchebm.core.BaseModel)
    chain = {
        "ULA": lambda: torchebm.samplers.LangevinDynamics(energy, step_size=step**2 / 2),
        "HMC": lambda: torchebm.samplers.HamiltonianMonteCarlo(energy, step_size=step, n_leapfrog_steps=LEAPFROG_STEPS),
    }[sampler]()
    state = torch.tensor(case.start())

    def call(count):
        nonlocal state
        states = chain.sample(x=state, n_steps=STEPS_PER_CALL[sampler], return_trajectory=True)
        state = states[:, -1]
        return states

    return Chains(sampler, call, chain_axis=0)


# --- JAX -------------------------------------------------------------------------------------------------------------


def jax_log_density(case):
    """log p of one x up to a constant, or the sum over a batch."""
    import jax

    weights = [jax.numpy.asarray(array) for array in case.weights()]
    return lambda x: -jax_total_energy(case, weights, x) - 0.5 * (x**2).sum()


def jax_ula(case, sampler):
    """Langevin written by hand, the whole loop compiled."""
    import jax

    gradient, step = jax.grad(jax_log_density(case)), case.step_size(sampler)

    def one_step(x, key):
        x = x + 0.5 * step**2 * gradient(x) + step * jax.random.normal(key, x.shape)
        return x, x

    return jax_chains(sampler, one_step, jax.numpy.asarray(case.start()))


def jax_chains(sampler, one_step, state):
    """`run` of a step (state, key) -> (state, positions)."""
    import jax

    @functools.partial(jax.jit, donate_argnums=0)
    def scan(state, seed):
        return jax.lax.scan(one_step, state, jax.random.split(jax.random.key(seed), STEPS_PER_CALL[sampler]))

    def call(count):
        nonlocal state
        state, states = scan(state, count)
        return jax.block_until_ready(states)

    return Chains(sampler, call)


def blackjax(case, sampler):
    """blackjax's kernels, mapped over the chains; its MALA step size is ε²/2."""
    import blackjax as bj
    import jax

    density, step, mass = jax_log_density(case), case.step_size(sampler), np.ones(case.dimension, "float32")
    kernel = {
        "MALA": lambda: bj.mala(density, step**2 / 2),
        "HMC": lambda: bj.hmc(density, step, mass, LEAPFROG_STEPS),
        "NUTS": lambda: bj.nuts(density, step, mass),
    }[sampler]()

    def one_step(state, key):
        state, _ = jax.vmap(kernel.step)(jax.random.split(key, case.batch), state)
        return state, state.position

    return jax_chains(sampler, one_step, jax.vmap(kernel.init)(jax.numpy.asarray(case.start())))


def numpyro(case, sampler):
    """numpyro's HMC (of one step for MALA) and NUTS, vectorised over the chains by itself, without adaptation."""
    import jax
    from numpyro import infer

    density = jax_log_density(case)
    fixed = {"step_size": case.step_size(sampler), "adapt_step_size": False, "adapt_mass_matrix": False}
    if sampler == "NUTS":
        kernel = infer.NUTS(potential_fn=lambda x: -density(x), **fixed)
    else:
        steps = 1 if sampler == "MALA" else LEAPFROG_STEPS
        kernel = infer.HMC(potential_fn=lambda x: -density(x), num_steps=steps, trajectory_length=None, **fixed)
    keys = jax.random.split(jax.random.PRNGKey(0), case.batch)
    state = kernel.init(keys, 0, jax.numpy.asarray(case.start()), (), {})

    def one_step(state, key):  # the state has keys of its own
        state = kernel.sample(state, (), {})
        return state, state.z

    return jax_chains(sampler, one_step, state)


def contestants(sampler):
    """Returns who takes part with this sampler, by name; steps come in multiples of a call."""
    every = {
        "tfp_ebm graph": (("tfp_ebm",), functools.partial(tfp_ebm, jit_compile=False)),
        "tfp_ebm XLA": (("tfp_ebm",), functools.partial(tfp_ebm, jit_compile=True)),
        "ebmkit": (("torch", "ebm"), ebmkit),
        "torchebm": (("torch", "torchebm.samplers"), torchebm),
        "JAX": (("jax",), jax_ula),
        "blackjax": (("jax", "blackjax"), blackjax),
        "numpyro": (("jax", "numpyro"), numpyro),
    }
    absent = {
        "ULA": ("blackjax", "numpyro"),
        "MALA": ("torchebm", "JAX"),
        "HMC": ("JAX",),
        "NUTS": ("torchebm", "JAX"),
    }[sampler]
    return {
        name: Contestant(modules, build, STEPS_PER_CALL[sampler])
        for name, (modules, build) in every.items()
        if name not in absent
    }
