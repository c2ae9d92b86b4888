"""`networks.autoregressive(condition_shape=...)`: normalised for every condition, trained by `fit(x, c)`."""

import keras
import numpy as np
import pytest

import tfp_ebm as ebm

RNG = np.random.default_rng(0)


@pytest.mark.slow
def test_fit_learns_a_conditional_density():
    """x | c ~ N(c, .3² + .09c²) with two signs of c: held-out log-likelihood within .1 nat of the truth; draws."""
    c = RNG.uniform(-1.0, 1.0, size=(4000, 1)).astype("float32")
    sd = 0.2 + 0.3 * np.abs(c)
    x = (np.sin(3.0 * c) + sd * RNG.normal(size=c.shape)).astype("float32")
    model = ebm.EnergyModel(ebm.networks.autoregressive([1], [32], condition_shape=[1], num_components=2, seed=0))
    model.adapt(x)
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 320)
    model.compile(keras.optimizers.Adam(schedule), "negative_log_likelihood", steps_per_execution=16)
    model.fit(x[:3200], c[:3200], batch_size=200, epochs=20, verbose=0)
    z = (x - np.sin(3.0 * c)) / sd
    truth = np.mean(-0.5 * z**2 - np.log(sd) - 0.5 * np.log(2 * np.pi), where=np.arange(4000)[:, None] >= 3200)
    found = -np.mean(model.energy(x[3200:], c[3200:]))
    assert truth - 0.1 < found < truth + 0.1
    p = model.given([[0.0], [0.5]])
    grid = np.linspace(-3.0, 3.0, 601, dtype="float32")
    np.testing.assert_allclose(np.exp(p.log_prob(grid[:, None, None])).sum(0) * 0.01, [1.0, 1.0], atol=0.01)
    drawn = np.asarray(p.sample(4000, seed=1))[..., 0]
    assert np.abs(drawn.mean(0) - np.sin([0.0, 1.5])).max() < 0.15
    shuffled = -np.mean(model.energy(x[3200:], np.roll(c[3200:], 1, 0)))
    assert shuffled < truth - 0.5  # control


BAD = {
    "order": ({"order": [1, 0]}, "`order` must not be given"),
    "dropout": ({"dropout": 0.1}, "`dropout` must not be given"),
    "image": ({"condition_shape": [4, 4, 1]}, "`event_shape` and `condition_shape` must be those of vectors"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        ebm.networks.autoregressive([2], **{"condition_shape": [3], **options})
