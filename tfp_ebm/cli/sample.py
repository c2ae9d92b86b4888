"""`sample`: draws from a fitted model, exactly, by particles or by chains, and fills the empty cells of a table."""

from __future__ import annotations

import argparse
import math
import pathlib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_ebm import mcmc, recipes
from tfp_ebm.arguments import check_count, check_positive
from tfp_ebm.cli.data import decoded, named_as
from tfp_ebm.cli.messages import flag, note, shows_progress
from tfp_ebm.cli.runs import check_file, load_run, save_frame, save_rows
from tfp_ebm.datasets.columns import TableEncoder
from tfp_ebm.datasets.loading import default_columns, load_frame
from tfp_ebm.mcmc.diagnostics import MAX_RHAT
from tfp_ebm.model.default_draws import suits_sequential_monte_carlo
from tfp_ebm.model.distribution import EnergyDistribution
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.model.exact_draws import draws_exactly
from tfp_ebm.recipes.imputation import with_gaps

if TYPE_CHECKING:
    import pandas

# The options of chains, with their defaults where these do not depend on the model.
_CHAINS: dict[str, Any] = {"burnin": 300, "thin": 5, "num_chains": None, "step_size": None}
# States kept of each chain, at least, for R-hat and effective sample size.
_KEPT_STATES = 50
# Samples taken from each chain unless --num-chains is given: so far apart that they are nearly independent.
_SAMPLES_PER_CHAIN = 4
# Proposals from the base in each step. Few of them are accepted where modes are narrow: R-hat of eight Gaussians was
# 1.117 with one, 1.018 with four, 1.006 with eight. They need no gradient, and cost little beside ten leapfrog steps.
_PROPOSALS = 6
_FIRST_STEPS = {"random_walk": 0.3, "langevin": 0.05}
_KERNELS = {"mala": mcmc.MALA, "nuts": mcmc.NUTS, "random_walk": mcmc.RandomWalk}


def sample(options: argparse.Namespace) -> bool:
    """Runs the command."""
    if options.num_samples is None:
        options.num_samples = 1 if options.given else 4000
    check_sampling_options(options)
    default = f"filled_{options.seed}.csv" if options.given else f"samples_{options.seed}.npy"
    given = options.out or options.run / default
    out = given.resolve()
    check_file(out, options.overwrite)
    model, columns, encoder = load_run(options.run)
    if options.given:
        save_frame(out, _filled(model, encoder, options))
        print(given)
        return True
    options.chains = out.with_name(out.name + ".chains")
    samples, _ = draw(model, kernel_for(model, options), options, options.chains)
    if encoder is None or (out.suffix.lower() == ".npy" and not _all_numbers(encoder)):
        if encoder is not None:
            note(options, "labels are written as numbers, their places among the levels; .csv keeps them.")
        save_rows(out, samples, columns or default_columns(model.event_shape))
    else:
        save_frame(out, decoded(encoder, samples))
    print(given)
    return True


def _all_numbers(encoder: TableEncoder) -> bool:
    return all(column.levels is None for column in encoder.columns)


def _filled(model: EnergyModel, encoder: TableEncoder | None, options: argparse.Namespace) -> pandas.DataFrame:
    """Returns the rows of a file with their empty cells filled, each row as often as the options specify."""
    if encoder is None or not draws_exactly(model):
        raise ValueError("`--given` needs the run of a table that was fitted with --loss nll.")
    frame = named_as(encoder, load_frame(options.given, **(options.read or {})))
    filler, x = with_gaps(encoder, frame, options.seed)
    filled = recipes.impute(model, x, num_draws=options.num_samples, seed=options.seed)
    return decoded(filler, filled.reshape(-1, x.shape[1]))


def check_sampling_options(options: argparse.Namespace) -> None:
    """Raises TypeError or ValueError if an option of sampling is out of range."""
    check_count("--num-samples", options.num_samples)
    for name in ("burnin", "thin", "num_chains"):
        if getattr(options, name) is not None:
            check_count(flag(name), getattr(options, name), minimum=0 if name == "burnin" else 1)
    if options.step_size is not None:
        check_positive("--step-size", options.step_size)
    given = [flag(name) for name in _CHAINS if getattr(options, name) is not None]
    if options.sampler == "smc" and given:
        raise ValueError(f"`{given[0]}` is for chains, and must not be given with --sampler smc.")
    if options.sampler is not None and options.sampler != "smc":
        _set_chain_options(options)


def _set_chain_options(options: argparse.Namespace) -> None:
    for name, default in _CHAINS.items():
        if getattr(options, name) is None:
            setattr(options, name, default)


def _choose_sampler(model: EnergyModel, options: argparse.Namespace) -> None:
    """Sets `options.sampler`, unless it is given: sequential Monte Carlo where it is fast, else chains of HMC."""
    if options.sampler is None:
        is_chain = any(getattr(options, name) is not None for name in _CHAINS)
        options.sampler = "smc" if suits_sequential_monte_carlo(model.base) and not is_chain else "hmc"
    if options.sampler != "smc":
        _set_chain_options(options)


def kernel_for(model: EnergyModel, options: argparse.Namespace) -> mcmc.Kernel | None:
    """Chooses the sampler, and returns the kernel of chains; that of HMC if the sampler has none.

    It begins with global moves proposed from the model's base, which carry chains between separate modes and leave the
    target distribution unchanged. An adaptive local move follows; Langevin has no global moves. None for a model that
    draws exact samples, unless a sampler is given.
    """
    if options.sampler is None and draws_exactly(model):
        return None
    _choose_sampler(model, options)
    name = "hmc" if options.sampler == "smc" else options.sampler
    step = _FIRST_STEPS.get(name, 0.1) if options.step_size is None else options.step_size
    if name == "langevin":
        return mcmc.Langevin(step)
    local = mcmc.HMC(step, num_leapfrog_steps=10) if name == "hmc" else _KERNELS[name](step)
    return mcmc.Sequential((mcmc.IndependenceMetropolis(model.base, _PROPOSALS), mcmc.Adaptive(local)))


def draw(
    model: EnergyModel, kernel: mcmc.Kernel | None, options: argparse.Namespace, backup_dir: pathlib.Path | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Draws samples and judges them: exact ones without a kernel, else by the sampler of the options.

    Args:
      backup_dir: where chains are kept, about once a minute, so that the same command continues them; None keeps none.

    Raises:
      KeyboardInterrupt: at an interrupt.

    Returns:
      Samples `[num_samples, *event]`, and the diagnostics for the report.
    """
    if kernel is None:
        samples = EnergyDistribution(model).sample(options.num_samples, seed=options.seed).numpy()
        return samples, {"sampler": "exact", "num_nonfinite": _num_nonfinite(samples)}
    if options.sampler == "smc":
        return _drawn_by_particles(model, options)
    return _drawn_by_chains(model, kernel, options, backup_dir)


def _print(options: argparse.Namespace, line: str) -> None:
    if not options.quiet:
        print(line)


def _num_nonfinite(samples: np.ndarray) -> int:
    return int((~np.isfinite(samples)).reshape(len(samples), -1).any(1).sum())


def _drawn_by_particles(model: EnergyModel, options: argparse.Namespace) -> tuple[np.ndarray, dict[str, Any]]:
    draws = EnergyDistribution(model).draw(options.num_samples, seed=options.seed)
    samples, log_z, shares = draws.states.numpy(), draws.log_normalizer, draws.shares
    fractions = ", ".join(
        f"{share:.3f} ± {error:.3f}" for share, error in zip(shares.values, shares.standard_errors, strict=True)
    )
    found = f"clusters with shares {fractions}" if len(shares.values) > 1 else "one cluster"
    normalizer = f"log Z {log_z.value:.3f} ± {log_z.standard_error:.3f}"
    _print(options, f"{normalizer}, {found}, nested R-hat {draws.rhat:.3f}")
    if draws.trouble:
        warnings.warn(
            f"the samples may not have the model's distribution. {' '.join(draws.trouble)} On the command line, a "
            "table fitted with --loss nll has exact samples.",
            stacklevel=2,
        )
    rows = zip(shares.values, shares.standard_errors, shares.ess, shares.centers.tolist(), strict=True)
    return samples, {
        "sampler": "smc",
        "log_normalizer": log_z.value,
        "log_normalizer_standard_error": log_z.standard_error,
        "clusters": [
            {"share": float(share), "standard_error": float(error), "ess": float(ess), "center": center}
            for share, error, ess, center in rows
        ],
        "trouble": list(draws.trouble),
        "num_particles": draws.num_particles,
        "num_ancestors": draws.num_ancestors,
        "inverse_temperatures": draws.inverse_temperatures.tolist(),
        "acceptance_rate": draws.acceptance_rate.tolist(),
        "rhat": draws.rhat,
        "num_nonfinite": _num_nonfinite(samples),
    }


def _drawn_by_chains(
    model: EnergyModel, kernel: mcmc.Kernel, options: argparse.Namespace, backup_dir: pathlib.Path | None
) -> tuple[np.ndarray, dict[str, Any]]:
    num_chains = options.num_chains or math.ceil(options.num_samples / _SAMPLES_PER_CHAIN)
    per_chain = math.ceil(options.num_samples / num_chains)
    num_kept = max(_KEPT_STATES, per_chain)
    p = EnergyDistribution(model, kernel=kernel, num_burnin_steps=options.burnin)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Interrupted: ")
        chains = p.sample_chains(
            num_kept,
            num_chains,
            seed=options.seed,
            num_steps_between_results=options.thin - 1,
            progress=shows_progress(options),
            backup_dir=backup_dir,
        )
    if len(chains.states) < num_kept:
        raise KeyboardInterrupt
    diagnostics = mcmc.diagnose(chains)
    ess, rhat = float(np.min(diagnostics.ess)), float(np.max(diagnostics.rhat))
    moved = f"accepted moves in {diagnostics.acceptance_rate:.0%} of the steps"
    _print(options, f"{moved}, R-hat {rhat:.3f}, effective sample size {ess:.0f}")
    if rhat > MAX_RHAT:
        warnings.warn(
            f"R-hat is {rhat:.3f}, above {MAX_RHAT}: the chains have not mixed, and the share of each mode in the "
            f"samples may still be that of their starts. {_advice(options)}",
            stacklevel=2,
        )
    taken = [math.ceil(num_kept * (i + 1) / per_chain) - 1 for i in range(per_chain)]
    samples = chains.states.numpy()[taken].reshape(-1, *model.event_shape)[: options.num_samples]
    return samples, {
        "sampler": options.sampler,
        "acceptance_rate": diagnostics.acceptance_rate,
        "step_size": np.asarray(chains.step_size).tolist(),
        "num_chains": num_chains,
        "min_ess": ess,
        "max_rhat": rhat,
        "num_nonfinite": diagnostics.num_nonfinite,
        "num_stuck": diagnostics.num_stuck,
    }


def _advice(options: argparse.Namespace) -> str:
    """What helps chains that have not mixed."""
    if options.sampler == "langevin":
        return "Any other --sampler helps: it also proposes from the base, and so crosses between modes."
    longer = f"--thin {10 * options.thin} --burnin {max(1000, 10 * options.burnin)}"
    return f"Longer chains help: `sample` with {longer}."
