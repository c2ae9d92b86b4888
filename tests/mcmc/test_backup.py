"""Chains that are interrupted and continued by the same call have the same bits as those that are not."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import mcmc
from tfp_ebm.mcmc.running import backup, stretches


def target(x):
    return -0.5 * tf.reduce_sum(tf.square(x), -1)


START = tf.constant(np.random.default_rng(0).normal(size=(3, 2)), tf.float32)
KERNELS = {
    "adaptive": mcmc.Adaptive(mcmc.MALA(0.5)),
    "sequential": mcmc.Sequential((mcmc.RandomWalk(0.5), mcmc.Adaptive(mcmc.HMC(0.5, 2)))),
    "of TFP": functools.partial(tfp.mcmc.HamiltonianMonteCarlo, step_size=0.3, num_leapfrog_steps=2),
    "replicas": mcmc.ReplicaExchange(mcmc.MALA(0.5), [1.0, 0.5]),
}


@pytest.fixture
def in_steps(monkeypatch):
    """Many short stretches, and a backup after each."""
    monkeypatch.setattr(stretches, "_SECONDS", 1e-9)
    monkeypatch.setattr(backup, "_SECONDS", 0.0)


def sample(kernel, seed=1, **options):
    return mcmc.sample(
        target, START, kernel, num_results=8, num_burnin_steps=4, seed=seed, jit_compile=False, **options
    )


def interrupted_at(number, error, monkeypatch):
    usual, calls = backup.RunBackup.reach, []

    def reach(self, draws):
        usual(self, draws)
        calls.append(len(draws))
        if len(calls) == number:
            raise error

    monkeypatch.setattr(backup.RunBackup, "reach", reach)


@pytest.mark.parametrize("name", KERNELS)
def test_continued_chains_have_the_same_bits(name, in_steps, tmp_path, monkeypatch):
    kernel, folder = KERNELS[name], tmp_path / "chains"
    whole = sample(kernel)
    with monkeypatch.context() as patch:
        interrupted_at(3, KeyboardInterrupt, patch)  # in the burn-in
        with pytest.raises(KeyboardInterrupt):
            sample(kernel, backup_dir=folder)
    with monkeypatch.context() as patch:
        interrupted_at(5, KeyboardInterrupt, patch)
        with pytest.warns(UserWarning, match="Interrupted: 4 of 8"):
            assert sample(kernel, backup_dir=folder).states.shape[0] == 4
    with monkeypatch.context() as patch:
        interrupted_at(2, SystemExit, patch)
        with pytest.raises(SystemExit):
            sample(kernel, backup_dir=folder)
    calls = []
    usual = backup.RunBackup.reach
    monkeypatch.setattr(backup.RunBackup, "reach", lambda self, draws: (calls.append(1), usual(self, draws)))
    again = sample(kernel, backup_dir=folder)
    assert len(calls) == 2 and not folder.exists()  # 3 + 5 + 2 of 12 steps were done
    for first, second in zip(tf.nest.flatten(whole), tf.nest.flatten(again), strict=True):
        np.testing.assert_array_equal(first, second)


def test_damaged_and_foreign_backups_are_named_and_not_used(in_steps, tmp_path, monkeypatch):
    kernel = KERNELS["adaptive"]
    whole, chains = sample(kernel), tmp_path / "chains"

    def cut():
        with monkeypatch.context() as patch:
            interrupted_at(8, SystemExit, patch)
            with pytest.raises(SystemExit):
                sample(kernel, backup_dir=chains)

    cut()
    with pytest.warns(UserWarning, match="is of another call"):
        other = sample(kernel, seed=2, backup_dir=chains)
    assert not np.array_equal(other.states, whole.states)
    last, before = (f"position_{step:012d}.npz" for step in (8, 7))

    def damage(*names):
        cut()
        assert sorted(path.name for path in chains.glob("position*")) == [before, last]
        for name in names:
            (chains / name).write_bytes((chains / name).read_bytes()[:-30])

    for names in ([last, before], ["draws_000001.npz"]):
        damage(*names)
        with pytest.warns(UserWarning, match="is damaged, and the chains start anew"):
            again = sample(kernel, backup_dir=chains)
        np.testing.assert_array_equal(again.states, whole.states)
    for name in (last, "draws_000007.npz"):
        damage(name)
        with monkeypatch.context() as patch, pytest.warns(UserWarning, match=f"{name}.* is damaged.*{before} is used"):
            interrupted_at(2, SystemExit, patch)
            with pytest.raises(SystemExit):
                sample(kernel, backup_dir=chains)
        again = sample(kernel, backup_dir=chains)  # what was damaged is not used later
        np.testing.assert_array_equal(again.states, whole.states)
    with pytest.raises(ValueError, match="`backup_dir` must be None inside"):
        tf.function(lambda: sample(kernel, backup_dir=tmp_path).states)()
