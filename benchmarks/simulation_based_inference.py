"""Simulation-based inference: two moons, a Gaussian mixture and SLCP beside the package `sbi`, by classifier tests.

The simulators are those of Lueckmann et al. 2021 (sbibm), written here; their reference posteriors are exact draws. For
each method the value is C2ST, the accuracy of scikit-learn's network that tells draws of the method from those of the
reference, ½ if it cannot, mean over observations that the prior and the simulator made. A run that is done is not
repeated.

    python benchmarks/simulation_based_inference.py --out runs/sbi [--seeds 0] [--tasks two_moons] [--methods npe nre]

The folder then has `runs/` and `sbi.md`. `pip install sbi` for the peers: NPE with a neural spline flow, and NRE-C.
"""

import sys
import time

import numpy as np
from jobs import command_line, run_missing, wrote_one

NUM_SIMULATIONS, NUM_DRAWS = 10_000, 2000


# --- tasks: the box of the prior, the simulator, exact draws of the posterior -----------------------------------------


class TwoMoons:
    """A crescent around a place that |θ₁ + θ₂| and θ₂ − θ₁ move: two crescents as posterior."""

    low, high = np.full(2, -1.0), np.full(2, 1.0)

    @staticmethod
    def crescent(rng, number):
        """Draws of the crescent at θ = 0."""
        angle, radius = rng.uniform(-np.pi / 2, np.pi / 2, number), rng.normal(0.1, 0.01, number)
        return np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], 1)

    def simulate(self, theta, rng):
        """One x for each θ."""
        shift = np.stack([-np.abs(theta.sum(1)), theta[:, 1] - theta[:, 0]], 1) / np.sqrt(2)
        return self.crescent(rng, len(theta)) + shift

    def posterior(self, x, number, rng):
        """Exact draws: θ follows from x and a draw of the crescent up to a sign; the prior refuses some."""
        found = np.zeros([0, 2])
        while len(found) < number:
            shift = x - self.crescent(rng, 4 * number)
            half_sum = np.where(rng.random(len(shift)) < 0.5, 1, -1) * -shift[:, 0]
            theta = np.stack([half_sum - shift[:, 1], half_sum + shift[:, 1]], 1) / np.sqrt(2)
            found = np.concatenate([found, theta[(shift[:, 0] < 0) & (np.abs(theta) < 1).all(1)]])
        return found[:number]


class GaussianMixture:
    """x = θ plus noise of standard deviation 1 or .1."""

    low, high = np.full(2, -10.0), np.full(2, 10.0)

    @staticmethod
    def noise(rng, number):
        """Draws of x − θ."""
        return rng.normal(size=(number, 2)) * np.where(rng.random((number, 1)) < 0.5, 1.0, 0.1)

    def simulate(self, theta, rng):
        """One x for each θ."""
        return theta + self.noise(rng, len(theta))

    def posterior(self, x, number, rng):
        """Exact draws: x minus noise, inside of the prior's box."""
        theta = x - self.noise(rng, 100 * number)
        return theta[(np.abs(theta) < 10).all(1)][:number]


class Slcp:
    """Four points of a Gaussian whose mean, widths (squared) and correlation (by tanh) are the five θ."""

    low, high = np.full(5, -3.0), np.full(5, 3.0)

    @staticmethod
    def covariance(widths):
        """Covariances `[rows, 2, 2]` of the last three parameters."""
        first, second, correlation = widths[:, 0] ** 2, widths[:, 1] ** 2, np.tanh(widths[:, 2])
        entries = [first**2, correlation * first * second, correlation * first * second, second**2]
        return np.stack(entries, 1).reshape(-1, 2, 2)

    @staticmethod
    def factor(covariance):
        """Their Cholesky factors, also where they are nearly singular."""
        a = np.sqrt(np.maximum(covariance[:, 0, 0], 1e-300))
        b = covariance[:, 1, 0] / a
        c = np.sqrt(np.maximum(covariance[:, 1, 1] - b**2, 1e-300))
        return np.stack([a, np.zeros_like(a), b, c], 1).reshape(-1, 2, 2)

    def simulate(self, theta, rng):
        """Eight numbers for each θ."""
        factor = self.factor(self.covariance(theta[:, 2:]))
        points = theta[:, None, :2] + np.einsum("nij,nkj->nki", factor, rng.normal(size=(len(theta), 4, 2)))
        return points.reshape(-1, 8)

    def posterior(self, x, number, rng, num_proposals=4_000_000):
        """Draws: the mean's Gaussian is integrated, widths and correlation are resampled, the box refuses means.

        Given the others, the mean is N(mean of the points, Σ/4) inside of its box, so that the weight of the others is
        |Σ|^(−3/2) exp(−½ tr Σ⁻¹S), with S the scatter of the points.
        """
        points = x.reshape(4, 2)
        centred = points - points.mean(0)
        scatter = centred.T @ centred
        widths = rng.uniform(-3, 3, (num_proposals, 3))
        first, second, correlation = widths[:, 0] ** 2, widths[:, 1] ** 2, np.tanh(widths[:, 2])
        rest = 1 - correlation**2
        trace = scatter[0, 0] / first**2 + scatter[1, 1] / second**2
        trace = (trace - 2 * correlation * scatter[0, 1] / (first * second)) / rest
        log_weights = -1.5 * (2 * np.log(first) + 2 * np.log(second) + np.log(rest)) - 0.5 * trace
        weights = np.exp(log_weights - np.nanmax(log_weights))
        weights = np.where(np.isfinite(weights), weights, 0.0)
        chosen = widths[rng.choice(num_proposals, 16 * number, p=weights / weights.sum())]
        factor = self.factor(self.covariance(chosen)) / 2
        mean = points.mean(0) + np.einsum("nij,nj->ni", factor, rng.normal(size=(len(chosen), 2)))
        return np.concatenate([mean, chosen], 1)[(np.abs(mean) < 3).all(1)][:number]


TASKS = {"two_moons": TwoMoons(), "gaussian_mixture": GaussianMixture(), "slcp": Slcp()}


def simulations(task, number, seed):
    """Pairs (θ, x) from prior and simulator."""
    rng = np.random.default_rng([seed, 7])
    theta = rng.uniform(task.low, task.high, (number, len(task.low)))
    return theta, task.simulate(theta, rng)


def c2st(draws, reference, seed=0):
    """The accuracy of a network that tells the two apart, by five folds, as in sbibm."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    draws = np.asarray(draws, float)[: len(reference)]
    loc, scale = reference.mean(0), reference.std(0)
    rows = (np.concatenate([draws, reference]) - loc) / scale
    labels = np.arange(len(rows)) >= len(draws)
    size = 10 * rows.shape[1]
    classifier = MLPClassifier((size, size), max_iter=1000, random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, rows, labels, cv=folds).mean())


# --- methods: (task, θ, x, seed) -> a function that draws the posterior of an observation ----------------------------


def npe(task, theta, x, seed):
    """Autoregressive energies of θ given x."""
    import tfp_ebm as ebm

    model = ebm.recipes.neural_posterior_estimation(theta, x, (task.low, task.high), seed=seed)
    return lambda at: model.given(at[None]).sample(NUM_DRAWS, seed=1)[:, 0].numpy()


def nre(task, theta, x, seed):
    """The prior times a ratio learned by contrast, drawn by sequential Monte Carlo."""
    import tfp_ebm as ebm

    model = ebm.recipes.neural_ratio_estimation(theta, x, (task.low, task.high), seed=seed)
    return lambda at: ebm.EnergyDistribution(model.given(at)).sample(NUM_DRAWS, seed=1).numpy()


def _peer(task, theta, x, seed, make, **sampling):
    import torch
    from sbi.utils import BoxUniform

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    prior = BoxUniform(torch.tensor(task.low).float(), torch.tensor(task.high).float())
    inference = make(prior)
    inference.append_simulations(torch.tensor(theta).float(), torch.tensor(x).float())
    inference.train()
    posterior = inference.build_posterior(**sampling)
    return lambda at: posterior.sample((NUM_DRAWS,), x=torch.tensor(at).float()[None], show_progress_bars=False).numpy()


def sbi_npe(task, theta, x, seed):
    """The package sbi's posterior estimation with a neural spline flow, all else at its defaults."""
    from sbi.inference import NPE

    return _peer(task, theta, x, seed, lambda prior: NPE(prior, density_estimator="nsf", show_progress_bars=False))


def sbi_nre(task, theta, x, seed):
    """The package sbi's NRE-C, drawn by its slice sampler, all else at its defaults."""
    from sbi.inference import NRE_C

    chains = {"method": "slice_np_vectorized", "num_chains": 100, "thin": 5, "warmup_steps": 100}
    parameters = {"sample_with": "mcmc", "mcmc_method": chains.pop("method"), "mcmc_parameters": chains}
    return _peer(task, theta, x, seed, lambda prior: NRE_C(prior, show_progress_bars=False), **parameters)


METHODS = {"npe": npe, "nre": nre, "sbi_npe": sbi_npe, "sbi_nre": sbi_nre}


def run(name, seed, method, num_observations, num_simulations=NUM_SIMULATIONS):
    """Trains one method on one task, and returns its C2ST for each observation, and the seconds of the clock."""
    task = TASKS[name]
    theta, x = simulations(task, num_simulations, seed)
    start = time.monotonic()
    draw = METHODS[method](task, theta, x, seed)
    training = time.monotonic() - start
    _, observed = simulations(task, num_observations, 1000)
    values, seconds = [], []
    for number, at in enumerate(observed):
        reference = task.posterior(at, NUM_DRAWS, np.random.default_rng([number, 3]))
        start = time.monotonic()
        draws = draw(at)
        seconds.append(time.monotonic() - start)
        values.append(c2st(draws, reference))
    return {"c2st": values, "training": training, "sampling": float(np.median(seconds))}


def table(results, seeds):
    """A Markdown table of mean C2ST over observations and seeds."""
    lines = ["| task | " + " | ".join(METHODS) + " |", "|---" * (len(METHODS) + 1) + "|"]
    for name in TASKS:
        cells = []
        for method in METHODS:
            found = [results[name, str(seed), method] for seed in seeds if (name, str(seed), method) in results]
            if not found:
                cells.append("–")
                continue
            value = np.mean([result["c2st"] for result in found])
            training, sampling = (np.mean([result[key] for result in found]) for key in ("training", "sampling"))
            cells.append(f"{value:.3f} ({training:.0f} s + {sampling:.1f} s)")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    """Runs what is missing, and writes the table."""
    parser = command_line(__doc__, tasks=TASKS, methods=METHODS)
    parser.add_argument("--observations", type=int, default=5)
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has the package sbi")
    options = parser.parse_args()
    if wrote_one(options, run, options.observations):
        return
    more = ("--observations", str(options.observations))
    peers = {method: options.peer_python for method in options.methods if method.startswith("sbi_")}
    results = run_missing(__file__, options.out, options.tasks, options.seeds, options.methods, more, peers)
    (options.out / "sbi.md").write_text(table(results, options.seeds))


if __name__ == "__main__":
    main()
