"""The peers of `quality.py`, trained as their users would: PyTorch's initial weights, Adam at a constant 1e-3.

The network is the contest's, two layers of SiLU units; the data are in the units of the target, as in the peers' own
examples, and Langevin's step 0.01 (ε²/2) and the buffer of 8192 chains are those of ebmkit's. Where a default would
lose for no good reason, the better choice is taken: ebmkit's noise contrastive estimation gets the Gaussian fitted to
the data, or a wide one, at four draws per row, its persistent chains the energy penalty of its own benchmark, and
torchebm's denoising the noise of the others instead of its 0.01.

Each trainer is `(x, units, num_steps, batch_size, sigma) -> energy`, `energy` a function of arrays `[rows, 2]`.
"""

import functools

import numpy as np

LEARNING_RATE = 1e-3
STEP_SIZE, KERNEL_STEPS, CAPACITY = 0.01, 20, 8192
NOISE_RATIO = 4
_BLOCK = 16_384


def layers(units):
    """The network, with PyTorch's own initial weights."""
    import torch

    modules, size = [], 2
    for width in units:
        modules += [torch.nn.Linear(size, width), torch.nn.SiLU()]
        size = width
    return torch.nn.Sequential(*modules, torch.nn.Linear(size, 1))


def energies_of(module):
    """`module` as a function of arrays."""
    import torch

    def energy(x):
        with torch.no_grad():
            blocks = np.split(np.asarray(x, "float32"), range(_BLOCK, len(x), _BLOCK))
            return np.concatenate([module(torch.tensor(block)).reshape(-1).numpy() for block in blocks])

    return energy


def ebmkit(x, units, num_steps, batch_size, sigma, method):
    """ebmkit, by its own trainer."""
    import ebm
    import torch

    def noise():
        if method == "NCE wide":
            return torch.distributions.MultivariateNormal(torch.zeros(2), 4 * torch.eye(2))
        return torch.distributions.MultivariateNormal(rows.mean(0), torch.cov(rows.T))

    rows = torch.tensor(x)
    loss = {
        "PCD": lambda: ebm.ContrastiveDivergence(
            ebm.LangevinDynamics(STEP_SIZE, KERNEL_STEPS), ebm.ReplayBuffer(CAPACITY, (2,)), energy_reg=0.1
        ),
        "NCE": lambda: ebm.NoiseContrastiveEstimation(noise(), NOISE_RATIO),
        "NCE wide": lambda: ebm.NoiseContrastiveEstimation(noise(), NOISE_RATIO),
        "SM": ebm.ExactScoreMatching,
        "SSM": ebm.SlicedScoreMatching,
        "DSM": lambda: ebm.DenoisingScoreMatching(sigma),
    }[method]()
    network = ebm.EnergyModel(layers(units))
    trainer = ebm.Trainer(network, loss, lr=LEARNING_RATE, device="cpu")
    trainer.fit(rows, steps=num_steps, batch_size=batch_size, verbose=False)
    return energies_of(network)


def torchebm(x, units, num_steps, batch_size, sigma, method):
    """torchebm, by the loop of its documentation."""
    import torch
    import torchebm.core
    import torchebm.losses
    import torchebm.samplers

    class Energy(torchebm.core.BaseModel):
        def __init__(self):
            super().__init__()
            self.network = layers(units)

        def forward(self, x):
            return self.network(x).squeeze(-1)

    network = Energy()
    loss = {
        "PCD": lambda: torchebm.losses.ContrastiveDivergence(
            network,
            torchebm.samplers.LangevinDynamics(network, step_size=STEP_SIZE),
            k_steps=KERNEL_STEPS,
            persistent=True,
            buffer_size=CAPACITY,
        ),
        "SM": lambda: torchebm.losses.ScoreMatching(network),
        "SSM": lambda: torchebm.losses.SlicedScoreMatching(network, n_projections=1),
        "DSM": lambda: torchebm.losses.DenoisingScoreMatching(network, noise_scale=sigma),
    }[method]()
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    rows = torch.tensor(x)
    for _ in range(num_steps):
        output = loss(rows[torch.randint(len(rows), (batch_size,))])
        value = output[0] if isinstance(output, tuple) else output
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return energies_of(network)


METHODS = {"ebmkit": ("PCD", "NCE", "NCE wide", "SM", "SSM", "DSM"), "torchebm": ("PCD", "SM", "SSM", "DSM")}
TRAINERS = {
    (peer.__name__, method): functools.partial(peer, method=method)
    for peer in (ebmkit, torchebm)
    for method in METHODS[peer.__name__]
}
