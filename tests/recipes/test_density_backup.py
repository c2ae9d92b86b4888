"""`fit_density(backup_dir=)`: finished trainings are read, and those after them have the same bits."""

import functools
import math

import numpy as np
import pytest
from laws import assert_same

import tfp_ebm as ebm
from tfp_ebm.recipes import density_training
from tfp_ebm.recipes.density_backup import Trainings

X = np.random.default_rng(0).normal(size=(128, 2)).astype("float32")


@functools.cache
def compiled_trainer():
    """The trainer of all calls, whose step XLA compiles once."""
    network = ebm.networks.autoregressive([2], units=[8], dropout=0.3, seed=0)
    settings = density_training.settings_for_rows(128, 2)._replace(num_steps=12)
    return density_training.Trainer(network, settings, 0)


def results(folder, numbers=(0, 1)):
    """Trainings of a new trainer, one after the other, of which some may be known."""
    trainer = compiled_trainer()
    trainer._model._step.assign(0)
    trainings = Trainings(folder, X, {"seed": 0})
    train = [functools.partial(trainer.train, X, X, math.inf, number, 2) for number in range(2)]
    return [trainings.result(f"network_{number}", trainer, train[number])[0] for number in numbers]


def assert_equal(first, second):
    assert_same(first.weights, second.weights)
    assert first.held_out_losses == second.held_out_losses and first.snapshots.keys() == second.snapshots.keys()
    for epoch, weights in first.snapshots.items():
        assert_same(weights, second.snapshots[epoch])


@pytest.mark.slow
def test_trainings_after_one_that_is_read_have_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(density_training, "NUM_JUDGEMENTS", 4)
    whole = results(None)
    (first,) = results(tmp_path, (0,))
    assert_equal(first, whole[0])
    with monkeypatch.context() as patch:  # control: the noise of a training depends on the steps before it
        patch.setattr(density_training.Trainer, "step", property(lambda self: 0, lambda self, value: None))
        assert results(tmp_path)[1].held_out_losses != whole[1].held_out_losses
    (tmp_path / "network_1.npz").unlink()
    for mine, theirs in zip(results(tmp_path), whole, strict=True):
        assert_equal(mine, theirs)
    path = tmp_path / "network_0.npz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.warns(UserWarning, match=r"network_0.npz is damaged, and the training is repeated"):
        assert_equal(results(tmp_path, (0,))[0], whole[0])


@pytest.mark.slow
def test_a_directory_of_another_call_is_refused(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 1))
    fit = functools.partial(ebm.fit_density, verbose=0, backup_dir=tmp_path)
    np.testing.assert_array_equal(fit(x).energy(x.astype("float32")), fit(x).energy(x.astype("float32")))
    for call in (lambda: fit(x + 1.0), lambda: fit(x, seed=1)):
        with pytest.raises(ValueError, match=r"`backup_dir` .* holds trainings of other rows"):
            call()
    (tmp_path / "call.json").write_text("{")
    with pytest.raises(ValueError, match=r"`backup_dir`: .*call.json cannot be read"):
        fit(x)
