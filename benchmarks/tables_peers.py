"""The contestants of `tables.py`: each fits a density to rows and returns its log density as a function of rows.

All get the rows in units in which they have mean 0 and standard deviation 1. The flows hold out a tenth of the rows,
are judged on it every hundred steps, keep the best weights, and stop after fifteen judgements without a better one.
"""

import math
import warnings

import numpy as np

NUM_STEPS, BATCH_SIZE, JUDGE_EVERY, PATIENCE = 5000, 256, 100, 15
UNITS = (128, 128)


def tfp_ebm(x, seed):
    """`fit_density` with all defaults."""
    import tfp_ebm as ebm

    p = ebm.EnergyDistribution(ebm.fit_density(x, seed=seed))
    return lambda rows: p.log_prob(rows.astype("float32")).numpy()


def gaussian(x, seed):
    """One Gaussian with the moments of the rows."""
    import scipy.stats

    p = scipy.stats.multivariate_normal(x.mean(0), np.cov(x.T) + 1e-6 * np.eye(x.shape[1]))
    return p.logpdf


def gaussian_mixture(x, seed):
    """scikit-learn's mixture with full covariances; the number of components, up to 32, by BIC."""
    from sklearn.mixture import GaussianMixture

    best, worse = None, 0
    for number in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32):
        if number > len(x) // 2:
            break
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mixture = GaussianMixture(number, random_state=seed, n_init=2).fit(x)
        if best is None or mixture.bic(x) < best.bic(x):
            best, worse = mixture, 0
        else:
            worse += 1
            if worse == 3:
                break
    return best.score_samples


def kernel_density(x, seed):
    """scikit-learn's kernel density; the bandwidth by five-fold cross-validation on at most 5000 rows."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KernelDensity

    rows = np.random.default_rng(seed).permutation(x)[:5000]
    search = GridSearchCV(KernelDensity(), {"bandwidth": np.geomspace(0.03, 1.5, 15)}, cv=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bandwidth = search.fit(rows).best_params_["bandwidth"]
    # The best bandwidth shrinks with the number of rows (Scott 1992).
    bandwidth *= (len(rows) / len(x)) ** (1.0 / (x.shape[1] + 4))
    return KernelDensity(bandwidth=bandwidth).fit(x).score_samples


def spline_flow(x, seed):
    """zuko's autoregressive neural spline flow: three transforms, networks of 2 × 128."""
    import torch
    import zuko

    torch.manual_seed(seed)
    rows = torch.tensor(np.random.default_rng(seed).permutation(x), dtype=torch.float32)
    held_out, rows = rows[: max(10, len(rows) // 10)], rows[max(10, len(rows) // 10) :]
    flow = zuko.flows.NSF(features=x.shape[1], transforms=3, bins=8, hidden_features=UNITS)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)
    best, state, waited = math.inf, None, 0
    for step in range(1, NUM_STEPS + 1):
        loss = -flow().log_prob(rows[torch.randint(len(rows), (BATCH_SIZE,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if step % JUDGE_EVERY == 0:
            with torch.no_grad():
                value = -float(flow().log_prob(held_out).mean())
            if value < best:
                best, state, waited = value, {k: v.clone() for k, v in flow.state_dict().items()}, 0
            else:
                waited += 1
                if waited == PATIENCE:
                    break
    flow.load_state_dict(state)

    def log_prob(values):
        with torch.no_grad():
            blocks = np.split(values.astype("float32"), range(4096, len(values), 4096))
            return np.concatenate([flow().log_prob(torch.tensor(block)).numpy() for block in blocks])

    return log_prob


def coupling_flow(x, seed):
    """BayesFlow's coupling flow of rational-quadratic splines in Keras, six layers of 2 × 128."""
    import keras
    import tensorflow as tf
    from bayesflow.networks import CouplingFlow

    keras.utils.set_random_seed(seed)
    rows = np.random.default_rng(seed).permutation(x).astype("float32")
    held_out, rows = rows[: max(10, len(rows) // 10)], rows[max(10, len(rows) // 10) :]
    flow = CouplingFlow(depth=6, transform="spline", subnet_kwargs={"widths": UNITS})
    flow.build((None, x.shape[1]), None)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, NUM_STEPS), global_clipnorm=10.0)
    log_prob = tf.function(flow.log_prob, reduce_retracing=True)

    @tf.function
    def train(batch):
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(flow.log_prob(batch, training=True))
        optimizer.apply(tape.gradient(loss, flow.trainable_variables), flow.trainable_variables)

    rng = np.random.default_rng(seed)
    best, weights, waited = math.inf, flow.get_weights(), 0
    for step in range(1, NUM_STEPS + 1):
        train(tf.constant(rows[rng.integers(len(rows), size=BATCH_SIZE)]))
        if step % JUDGE_EVERY == 0:
            value = -float(np.mean(log_prob(held_out)))
            if value < best:
                best, weights, waited = value, flow.get_weights(), 0
            else:
                waited += 1
                if waited == PATIENCE:
                    break
    flow.set_weights(weights)
    return lambda values: np.asarray(log_prob(tf.constant(values.astype("float32"))))


CONTESTANTS = {f.__name__: f for f in (tfp_ebm, gaussian, gaussian_mixture, kernel_density, spline_flow, coupling_flow)}
