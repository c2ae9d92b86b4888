"""Sequential Monte Carlo beside BlackJAX's adaptive tempered one: effective draws per second of a processor core.

The same targets, base and number of particles for both. One independent run after another, in turns, each contestant in
a process of its own on one core; the time is that of the processor, so that other work on the machine counts little,
and compilation is not in it: ours is measured with its defaults, under which XLA compiles where that pays in one call,
and with `jit_compile=True`. The effective number of draws of a run is Var f / E (mean of f − E f)² over the runs, the
harmonic mean over functions f whose expectation is known. So a bias counts, and no sampler judges itself; only for the
network the expectations are the means of our runs.

BlackJAX chooses the temperatures, by the same effective sample size, but neither step sizes nor numbers of moves: it
makes three moves of six leapfrog steps at each temperature, with each of some step sizes, in units of the standard
deviations of the base, and its best counts. Ours chooses its moves, of four to eight leapfrog steps, and resamples
draws from the base, or from a density fitted to fewer particles, where these are near enough, instead of annealing all.

    python benchmarks/particles.py [--cases two_moons] [--runs 24] [--json out.json]

The peer: `pip install jax blackjax` (the extra `bench`).
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import sys
import time

import numpy as np

NUM_PARTICLES, LEAPFROG_STEPS, NUM_MOVES, ESS = 2048, 6, 3, 0.9
STEP_SIZES = (0.1, 0.2, 0.4)
CASES = ("two_moons", "many_well", "network")
AIM = 1.5


def parts_of(case):
    """Returns the numbers that a target is made of, and the base's standard deviations, as arrays."""
    rng = np.random.default_rng(0)
    if case == "two_moons":
        nodes, weights = np.polynomial.legendre.leggauss(80)
        t = math.pi * 0.5 * (nodes + 1)
        upper, lower = np.stack([np.cos(t), np.sin(t)], 1), np.stack([1 - np.cos(t), 0.5 - np.sin(t)], 1)
        curve = 1.5 * (np.concatenate([upper, lower]) - [0.5, 0.25])
        log_weights = np.log(np.tile(weights / 4, 2)) - math.log(2 * math.pi * 0.15**2)
        return {"curve": curve, "log_weights": log_weights}, 1.5 * np.array([1.31, 0.76])
    if case == "many_well":
        return {}, np.tile([1.65, 1.0], 16)
    sizes = (64, 256, 256, 1)
    layers = [rng.normal(size=pair) * math.sqrt(2 / pair[0]) for pair in itertools.pairwise(sizes)]
    return {f"layer{i}": layer for i, layer in enumerate(layers)}, np.full(64, 1.5)


def log_density(case, parts, x, lib):
    """log f of `[n, d]` (TensorFlow) or `[1, d]` (JAX, under vmap), by functions of `lib`."""
    if case == "two_moons":
        squares = lib.sum((x[:, None, :] - parts["curve"]) ** 2, -1)
        return lib.logsumexp(parts["log_weights"] - squares / (2 * 0.15**2), -1)
    if case == "many_well":
        well, other = x[:, 0::2], x[:, 1::2]
        return lib.sum(-(well**4) + 6 * well**2 + 0.5 * well - 0.5 * other**2, -1)
    hidden = x
    for i in range(2):
        hidden = lib.silu(hidden @ parts[f"layer{i}"])
    return 2 * (hidden @ parts["layer2"])[:, 0] - 0.5 * lib.sum(x**2, -1)


def functions_of(case, x):
    """The functions whose means are judged, `[n, columns]`."""
    if case == "two_moons":
        return np.concatenate([x, x**2, x[:, :1] * x[:, 1:]], 1)
    if case == "many_well":
        return np.concatenate([x[:, 0::2] > 0, x[:, :2] ** 2], 1)
    return np.concatenate([x[:, :8], x[:, :8] ** 2], 1)


class Ours:
    """`mcmc.sequential_monte_carlo`, with its defaults, or compiled by XLA as BlackJAX is."""

    def __init__(self, case, jit_compile):
        import tensorflow as tf
        import tensorflow_probability as tfp

        from tfp_ebm import mcmc

        class Lib:
            sum, logsumexp, silu = tf.reduce_sum, tf.reduce_logsumexp, tf.nn.silu

        parts, scale = parts_of(case)
        parts = {name: tf.constant(part, tf.float32) for name, part in parts.items()}
        self.base = tfp.distributions.MultivariateNormalDiag(np.zeros(len(scale), "float32"), scale.astype("float32"))
        self.target = lambda x: log_density(case, parts, x, Lib)
        self.run, self.case, self.jit_compile = mcmc.sequential_monte_carlo, case, jit_compile

    def __call__(self, seed):
        """Returns the means of the functions, log Z, and notes."""
        options = {"num_samples": NUM_PARTICLES, "seed": seed, "jit_compile": self.jit_compile}
        draws = self.run(self.target, self.base, **options)
        means = functions_of(self.case, draws.states.numpy().astype("float64")).mean(0)
        return means, draws.log_normalizer.value, {"temperatures": len(draws.inverse_temperatures) - 1}


class BlackJAX:
    """BlackJAX's adaptive tempered SMC with systematic resampling and HMC."""

    def __init__(self, case, step_size):
        import blackjax
        import blackjax.smc.resampling as resampling
        import jax
        import jax.numpy as jnp

        class Lib:
            sum, logsumexp, silu = jnp.sum, jax.scipy.special.logsumexp, jax.nn.silu

        parts, scale = parts_of(case)
        parts = {name: jnp.asarray(part, jnp.float32) for name, part in parts.items()}
        scale = jnp.asarray(scale, jnp.float32)

        def log_base(x):
            return -0.5 * jnp.sum((x / scale) ** 2) - jnp.sum(jnp.log(scale)) - 0.5 * len(scale) * math.log(2 * math.pi)

        def log_ratio(x):
            return log_density(case, parts, x[None], Lib)[0] - log_base(x)

        size = {"step_size": step_size * len(scale) ** -0.25, "inverse_mass_matrix": scale**2}
        kernel = blackjax.adaptive_tempered_smc(
            log_base,
            log_ratio,
            blackjax.hmc.build_kernel(),
            blackjax.hmc.init,
            blackjax.smc.extend_params({**size, "num_integration_steps": LEAPFROG_STEPS}),
            resampling.systematic,
            ESS,
            num_mcmc_steps=NUM_MOVES,
        )

        def run(key):
            first, key = jax.random.split(key)
            state = kernel.init(scale * jax.random.normal(first, (NUM_PARTICLES, len(scale))))

            def step(carry):
                count, state, key, log_z = carry
                key, own = jax.random.split(key)
                state, info = kernel.step(own, state)
                return count + 1, state, key, log_z + info.log_likelihood_increment

            begin = (0, state, key, jnp.zeros([]))
            return jax.lax.while_loop(lambda carry: (carry[1].tempering_param < 1) & (carry[0] < 400), step, begin)

        self.run, self.case, self.key = jax.jit(run), case, jax.random.key

    def __call__(self, seed):
        """Returns the weighted means of the functions, log Z, and notes."""
        count, state, _, log_z = self.run(self.key(seed))
        weights, x = np.asarray(state.weights, "float64"), np.asarray(state.particles, "float64")
        return weights @ functions_of(self.case, x) / weights.sum(), float(log_z), {"temperatures": int(count)}


def serve(connection, make, case, option, core):
    """A contestant's process: runs once per seed it gets; sends the result, its processor and its wall seconds."""
    os.sched_setaffinity(0, [core])
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    try:
        contestant = make(case, option)
        while (seed := connection.recv()) is not None:
            wall, own = time.perf_counter(), time.process_time()
            result = contestant(seed)
            connection.send((result, time.process_time() - own, time.perf_counter() - wall))
    except Exception as error:  # a peer's failure is a result
        connection.send(f"{type(error).__name__}: {str(error).splitlines()[0][:90]}")


def measure(case, num_runs):
    """Runs all contestants in turns, and returns a row for each."""
    context = multiprocessing.get_context("spawn")
    named = [(f"tfp_ebm{name}", Ours, jit) for name, jit in (("", "auto"), (", XLA", True))]
    named += [(f"blackjax, step {step}", BlackJAX, step) for step in STEP_SIZES]
    core = min(os.sched_getaffinity(0))
    pipes, rows = {}, {}
    for name, make, option in named:
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(there, make, case, option, core), daemon=True)
        process.start()
        pipes[name], rows[name] = here, []
    for seed in range(-2, num_runs):  # the first two compile
        for name, pipe in pipes.items():
            if isinstance(rows[name], list):
                pipe.send(seed + 2)
                answer = pipe.recv()
                if isinstance(answer, str):
                    rows[name] = answer
                elif seed >= 0:
                    rows[name].append(answer)
    for pipe in pipes.values():
        pipe.send(None)
    return rows


def truth(case, rows):
    """Expectations and variances of the functions: of many exact draws, or of all runs' draws."""
    from tfp_ebm import targets

    if case == "network":
        own = rows["tfp_ebm"]
        means = np.mean([result[0] for result, _, _ in own], 0)
        second = means[8:]
        return means, np.concatenate([second - means[:8] ** 2, 2 * (second - means[:8] ** 2) ** 2])
    target = targets.two_moons() if case == "two_moons" else targets.many_well(32)
    values = functions_of(case, target.sample(2_000_000 if case == "two_moons" else 200_000, seed=0).numpy())
    values = values.astype("float64")
    means = values.mean(0)
    if case == "many_well":
        means[:16] = target.shares[1]
    return means, values.var(0)


def show(case, rows, num_runs):
    """Prints the rows of a case, and returns them as dictionaries."""
    expectation, variance = truth(case, rows)
    print(f"\n{case}: {NUM_PARTICLES} particles, {num_runs} runs, load {os.getloadavg()[0]:.1f}")
    found = []
    for name, runs in rows.items():
        if isinstance(runs, str):
            print(f"  {name:22s} {runs}")
            continue
        means = np.stack([result[0] for result, _, _ in runs])
        log_z = np.array([result[1] for result, _, _ in runs])
        errors = np.square(means - expectation).mean(0) / variance
        if case == "network" and name.startswith("tfp_ebm"):  # its own mean, of the same seeds, is the reference
            errors *= num_runs / (num_runs - 1)
        ess = 1 / errors.mean()
        seconds = float(np.median([own for _, own, _ in runs]))
        row = {
            "case": case,
            "contestant": name,
            "ess": ess,
            "cpu_s": seconds,
            "wall_s": float(np.median([wall for _, _, wall in runs])),
            "ess_per_s": ess / seconds,
            "log_z": log_z.mean(),
            "log_z_sd": log_z.std(ddof=1),
            "temperatures": np.mean([result[2]["temperatures"] for result, _, _ in runs]),
        }
        found.append(row)
        print(
            f"  {name:22s} effective draws {ess:7.0f}, CPU {seconds:6.2f} s, wall {row['wall_s']:6.2f} s, per CPU "
            f"second {row['ess_per_s']:7.0f}, log Z {row['log_z']:.3f} (sd {row['log_z_sd']:.3f}), "
            f"{row['temperatures']:.0f} temperatures"
        )
    theirs = [row["ess_per_s"] for row in found if not row["contestant"].startswith("tfp_ebm")]
    for row in found:
        if row["contestant"].startswith("tfp_ebm") and theirs:
            ratio = row["ess_per_s"] / max(theirs)
            verdict = "holds" if ratio >= AIM else "FALLS SHORT"
            print(f"  {row['contestant']}: {ratio:.2f}x BlackJAX's best, aim {AIM}x: {verdict}")
    sys.stdout.flush()
    return found


def main():
    """Measures what is asked for, prints the tables, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--runs", type=int, default=24, help="independent runs of each contestant")
    parser.add_argument("--json", help="where to write the rows")
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    rows = []
    for case in options.cases:
        rows += show(case, measure(case, options.runs), options.runs)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
