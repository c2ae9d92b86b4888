"""The reference from which a model is sampled is in its file: a fresh process draws the same bits."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import tfp_ebm as ebm

SCRIPT = """
import sys
import keras
import numpy as np
import tfp_ebm as ebm

for path in sys.argv[1:]:
    model = keras.saving.load_model(path)
    draws = ebm.EnergyDistribution(model).draw(50, seed=3, jit_compile=False, num_last_moves=2)
    base = model.base.log_prob(np.ones([4, 2], "f"))
    np.savez(path + ".npz", states=draws.states, log_z=draws.log_normalizer.value, base=base)
"""


@pytest.mark.long
def test_loaded_models_draw_the_same_bits_in_a_fresh_process(tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(400, 2)) + np.where(np.arange(400)[:, None] % 10 < 7, 4.0, -4.0)).astype("float32")
    mixture = ebm.fit_base(x, kind="gaussian_mixture", num_components=2, broad_share=0.1)
    inputs = keras.Input((2,))
    squares = keras.Model(inputs, keras.layers.Dot(axes=1)([inputs, inputs]))  # a density without a tilt
    models = {
        "mixture": ebm.EnergyModel(ebm.networks.mlp([2], units=[8]), base_measure=mixture),
        "fitted Gaussian": ebm.EnergyModel(squares, event_shape=(2,)),
    }
    draws, paths = {}, {}
    for name, model in models.items():
        model.adapt(x)
        paths[name] = str(tmp_path / f"{name}.keras")
        model.save(paths[name])
        draws[name] = ebm.EnergyDistribution(model).draw(50, seed=3, jit_compile=False, num_last_moves=2)
    done = subprocess.run([sys.executable, "-c", SCRIPT, *paths.values()], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name, model in models.items():
        loaded = np.load(paths[name] + ".npz")
        np.testing.assert_array_equal(loaded["states"], draws[name].states)
        assert loaded["log_z"] == draws[name].log_normalizer.value
        np.testing.assert_array_equal(loaded["base"], model.base.log_prob(np.ones([4, 2], "f")))
        assert type(keras.saving.load_model(paths[name]).base) is type(model.base)
    # the negative control: another reference gives other draws
    other = ebm.EnergyDistribution(models["fitted Gaussian"], base=ebm.fit_base(x, width=1.5))
    again = other.draw(50, seed=3, jit_compile=False, num_last_moves=2)
    assert not np.array_equal(again.states, draws["fitted Gaussian"].states)
