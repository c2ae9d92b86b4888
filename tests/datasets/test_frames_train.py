"""Data frames are data: models and base distributions take them as they take their numbers."""

import keras
import numpy as np
import pandas as pd
import pytest

import tfp_ebm as ebm
from tfp_ebm.arguments import check_data


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal([5.0, -1.0], [2.0, 0.1], size=(96, 2)).astype("float32")


def compiled(x):
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[4], seed=0))
    model.adapt(x)
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="denoising_score_matching")
    return model


@pytest.mark.slow
def test_a_frame_trains_as_its_numbers_do(x):
    """To the last bit; a column called "dataset", which a data set of Keras has too, makes no difference."""
    frame = pd.DataFrame(x, columns=["a", "dataset"])
    losses, evaluated = [], []
    for data in (x, frame, frame.astype("Float32")):
        model = compiled(data)
        fit = model.fit(data, batch_size=32, epochs=1, shuffle=False, verbose=0, validation_data=frame)
        losses.append(fit.history["loss"] + fit.history["val_loss"])
        evaluated.append(model.evaluate(data, verbose=0))
        np.testing.assert_array_equal(ebm.fit_base(data).mean(), ebm.fit_base(x).mean())
    assert losses[0] == losses[1] == losses[2] and len(set(evaluated)) == 1


def test_frames_of_anything_else_are_refused_by_column():
    frame = pd.DataFrame({"a": [1.0, 2.0], "when": pd.to_datetime(["2024-01-01", "2024-01-02"]), "kind": ["x", "y"]})
    with pytest.raises(TypeError, match="`x` must hold real numbers, but its columns 'when', 'kind' do not"):
        check_data("x", frame)
    with pytest.raises(ValueError, match=r"1 of its 2 numbers are NaN or infinite, the first at index \(1, 0\)"):
        check_data("x", pd.DataFrame({"a": pd.array([1, None], "Int64")}))
    np.testing.assert_array_equal(check_data("x", pd.DataFrame({"a": [1, 2], "b": [0.5, 1]})), [[1, 0.5], [2, 1]])
