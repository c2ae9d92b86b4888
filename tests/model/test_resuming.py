"""A training that is cut and resumed ends with the same bits, for every loss, by every way to save it."""

import functools
import json
import pathlib
import shutil

import every_loss
import keras
import numpy as np
import pytest
import tensorflow as tf
from every_loss import CASES, fit, make
from laws import assert_same

import tfp_ebm as ebm
from tfp_ebm.callbacks import Backup
from tfp_ebm.model import backups

KerasBackup = functools.partial(keras.callbacks.BackupAndRestore, delete_checkpoint=False)


def values(model):
    return [variable.numpy() for variable in [*model.weights, *model.optimizer.variables]]


def scramble(model):
    """Gives all weights other values, so that only what is restored can be right."""
    for variable in [*model.weights, *model.optimizer.variables]:
        variable.assign(variable + tf.cast(3, variable.dtype))


class SaveInTheMiddle(keras.callbacks.Callback):
    """Saves at the end of the second epoch in all ways, and copies the backups of that moment."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            self.model.save(self.folder / "epoch2.keras")
            self.model.save_weights(self.folder / "epoch2.weights.h5")
            tf.train.Checkpoint(model=self.model).write(str(self.folder / "checkpoint"))
            for name in ("backup", "keras"):
                shutil.copytree(self.folder / "now" / name, self.folder / name)


def resume(route, model, name, folder):
    """Restores a model in one of the ways, and trains it to the fourth epoch."""
    callbacks = []
    if route == "checkpoint":
        tf.train.Checkpoint(model=model).read(str(folder / "checkpoint")).assert_existing_objects_matched()
    elif route == "weights":
        model.load_weights(folder / "epoch2.weights.h5")
    else:
        callbacks = [{"backup": Backup, "keras": KerasBackup}[route](folder / route)]
    fit(model, name, 4, initial_epoch=0 if callbacks else 2, callbacks=callbacks)


# These run in every check, the others before a release.
OFTEN = ("conditional", "denoising", "noise contrastive", "persistent")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "jit_compile"),
    [
        *(pytest.param(name, False, marks=() if name in OFTEN else pytest.mark.long) for name in CASES),
        pytest.param("persistent", True, marks=pytest.mark.long),
    ],
)
def test_a_resumed_training_has_the_same_bits(name, jit_compile, tmp_path):
    """Both models are made once, since tracing takes most of the time; the second one knows the file alone."""
    whole = make(name, jit_compile=jit_compile)
    saving = [
        Backup(tmp_path / "now" / "backup", 0.0),
        KerasBackup(tmp_path / "now" / "keras"),
        SaveInTheMiddle(tmp_path),
    ]
    fit(whole, name, 4, callbacks=saving)
    truth = values(whole)

    resumed = keras.saving.load_model(tmp_path / "epoch2.keras")
    fit(resumed, name, 4, initial_epoch=2)
    assert_same(values(resumed), truth)
    for route in ("checkpoint", "weights", "backup", "keras"):
        scramble(resumed)
        resumed._initial_epoch = None
        resume(route, resumed, name, tmp_path)
        assert_same(values(resumed), truth)
    # control: without the state of the loss, or without the step if the loss has none, the bits differ
    resumed._initial_epoch = None
    resumed.load_weights(tmp_path / "epoch2.weights.h5")
    for variable in resumed.loss.non_trainable_variables or [resumed._step]:
        variable.assign(tf.zeros_like(variable))
    fit(resumed, name, 4, initial_epoch=2)
    network = [variable.numpy() for variable in resumed.network.weights]
    changed = [np.array_equal(a, b) for a, b in zip(network, (v.numpy() for v in whole.network.weights), strict=True)]
    assert not all(changed)


# --- Keras's backups: weights and epoch are two files -----------------------------------------------------------------


class Stop(Exception):
    """Ends a training."""


def at_epoch(number):
    """A callback that ends the training after that epoch."""

    def stop(epoch, logs):
        if epoch + 1 == number:
            raise Stop

    return keras.callbacks.LambdaCallback(on_epoch_end=stop)


def metadata(epoch):
    return json.dumps({"epoch": epoch, "batch": 0})


@pytest.fixture(scope="module")
def truth():
    model = make("denoising")
    fit(model, "denoising", 4)
    return values(model)


# between weights and epoch, within the second file, and before the first one was complete
@pytest.mark.parametrize("left", [metadata(1), '{"epo', None])
@pytest.mark.parametrize("knows_its_epoch", [True, False])
def test_the_epoch_of_keras_backup_is_that_of_its_weights(left, knows_its_epoch, truth, tmp_path):
    """The process was killed after the weights; without their own epoch, the bits differ or Keras cannot read."""
    model = make("denoising")
    with pytest.raises(Stop):
        fit(model, "denoising", 4, callbacks=[KerasBackup(tmp_path), at_epoch(2)])
    record = tmp_path / "training_metadata.json"
    assert record.read_text() == metadata(2)
    record.unlink()
    if left is not None:
        record.write_text(left)
    if not knows_its_epoch:
        model.save_weights(tmp_path / "latest.weights.h5")  # after `fit`
    scramble(model)
    if not knows_its_epoch and left == '{"epo':
        with pytest.raises(json.JSONDecodeError):
            fit(model, "denoising", 4, callbacks=[KerasBackup(tmp_path)])
        return
    fit(model, "denoising", 4, callbacks=[KerasBackup(tmp_path)])
    same = [np.array_equal(a, b) for a, b in zip(values(model), truth, strict=True)]
    assert all(same) == knows_its_epoch


def test_an_epoch_without_weights_is_no_backup(truth, tmp_path):
    """The process was killed while Keras removed the backup of a training that was complete."""
    (tmp_path / "training_metadata.json").write_text(metadata(4))
    model = make("denoising")
    fit(model, "denoising", 4, callbacks=[KerasBackup(tmp_path)])
    assert_same(values(model), truth)


# --- backups ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def model():
    return make("denoising")


def saved(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def test_the_last_two_backups_are_kept_and_one_comes_at_the_end(model, tmp_path):
    fit(model, "denoising", 3, callbacks=[Backup(tmp_path / "each", 0.0)])
    assert saved(tmp_path / "each") == [4, 6]
    fit(model, "denoising", 2, callbacks=[Backup(tmp_path / "minute")])
    assert saved(tmp_path / "minute") == [10]
    history = fit(model, "denoising", 2, callbacks=[Backup(tmp_path / "minute")])
    assert history.epoch == [] and len(fit(model, "denoising", 1).epoch) == 1  # `_initial_epoch` does not stay


@pytest.mark.parametrize("damage", ["truncated weights", "changed weights", "no position", "other position"])
def test_a_damaged_backup_is_named_and_the_one_before_it_used(damage, model, tmp_path):
    fit(model, "denoising", 2, callbacks=[Backup(tmp_path, 0.0)])
    weights, position = (tmp_path / f"{4:012d}" / name for name in ("state.weights.h5", "position.json"))
    whole = weights.read_bytes()
    if damage == "truncated weights":
        weights.write_bytes(whole[: len(whole) // 2])
    elif damage == "changed weights":
        weights.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    elif damage == "no position":
        position.write_text("{")
    else:
        position.write_text(position.read_text().replace('"epoch": 2', '"epoch": 1'))
    with pytest.warns(UserWarning, match=f"{4:012d} is damaged.*{2:012d} is used instead"):
        assert backups.load(model, tmp_path) == {"epoch": 1}
    assert int(model._step.numpy()) == 2
    for path in tmp_path.rglob("*.json"):
        path.write_text("")
    with pytest.raises(ValueError, match=r"no backup can be read: .*0002 is damaged"):
        fit(model, "denoising", 4, callbacks=[Backup(tmp_path)])


def test_a_backup_of_another_model_is_refused(model, tmp_path):
    fit(model, "denoising", 1, callbacks=[Backup(tmp_path)])
    other = ebm.EnergyModel(ebm.networks.mlp([2], units=[5], seed=0))
    other.compile("adam", "denoising_score_matching")
    with pytest.raises(ValueError, match="does not fit the model"):
        other.fit(every_loss.X, verbose=0, callbacks=[Backup(tmp_path)])


def test_a_full_disk_is_warned_of_and_training_goes_on(model, tmp_path, monkeypatch):
    fit(model, "denoising", 1, callbacks=[Backup(tmp_path, 0.0)])
    save = ebm.EnergyModel.save_weights

    def full(self, path, *args, **kwargs):
        pathlib.Path(path).write_bytes(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ebm.EnergyModel, "save_weights", full)
    with pytest.warns(UserWarning, match="no backup could be written to .*No space left"):
        fit(model, "denoising", 3, callbacks=[Backup(tmp_path, 0.0)])
    assert saved(tmp_path) == [2] and int(model._step.numpy()) == 6
    monkeypatch.setattr(ebm.EnergyModel, "save_weights", save)
    assert backups.load(model, tmp_path) == {"epoch": 1} and list(tmp_path.iterdir()) == [tmp_path / f"{2:012d}"]


def test_minutes_and_unbuilt_models_are_checked(tmp_path):
    with pytest.raises(ValueError, match="`minutes`"):
        Backup(tmp_path, -1.0)
