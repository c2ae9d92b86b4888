"""Networks, data and the peers' training steps of `score_matching.py`: the same function and numbers in their code.

All contestants start from the same weights and see the same batches. A step is loss, parameter gradient and Adam; a
builder returns `run(num_steps) -> last loss`, which blocks until the last step is done. ebmkit and torchebm are used as
their users would, with PyTorch's fused Adam; for JAX the step is written by hand and compiled as a whole.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np

LEARNING_RATE = 1e-3
SIGMA = 0.1


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and a batch: strided 3×3 convolutions (first stride 1) if there are filters, then dense layers."""

    name: str
    event_shape: tuple[int, ...]
    batch: int
    units: tuple[int, ...]
    filters: tuple[int, ...] = ()
    chunk_size: int | None = None

    @property
    def dimension(self):
        """Numbers in one x."""
        return math.prod(self.event_shape)

    def layers(self):
        """Kernel shape (Keras's layout) of every layer, and the number of places that it is applied at."""
        layers, shape = [], self.event_shape
        for i, channels in enumerate(self.filters):
            side = shape[0] if i == 0 else -(-shape[0] // 2)
            layers.append(((3, 3, shape[-1], channels), side**2))
            shape = (side, side, channels)
        widths = [math.prod(shape), *self.units, 1]
        return layers + [((m, n), 1) for m, n in itertools.pairwise(widths)]

    def weights(self):
        """Kernels and biases by layer, uniform on ±1/√fan_in; the last layer has no bias."""
        rng, arrays = np.random.default_rng(0), []
        for kernel, _ in self.layers():
            limit = 1 / math.sqrt(math.prod(kernel[:-1]))
            arrays += [rng.uniform(-limit, limit, shape).astype("float32") for shape in (kernel, kernel[-1:])]
        return arrays[:-1]

    def batches(self, count=64):
        """Standard normal rows, `[count, batch, *event]`."""
        return np.random.default_rng(1).standard_normal((count, self.batch, *self.event_shape), "float32")

    def dataset(self):
        """`batches` over and over for Keras's `fit`, which at its end may wait for TensorFlow's tuning of a dataset."""
        import tensorflow as tf

        untuned = tf.data.Options()
        untuned.autotune.enabled = False
        return tf.data.Dataset.from_tensor_slices(self.batches()).repeat().with_options(untuned)

    def flops(self, objective):
        """Floating-point operations that a step cannot do without, those of matrix products alone.

        Energy and score pass every kernel once forwards and once backwards, and the parameter gradient of each such
        product is two more: 6 passes. A direction is carried forwards only, and not through the last layer: 3 passes;
        unit vectors pass the first layer at no cost. Recomputation, where a contestant does any, is not counted.
        "product" is the first layer's matrix product alone.
        """
        passes = [math.prod(kernel) * places for kernel, places in self.layers()]
        first, middle = passes[0], sum(passes[1:-1])
        if objective == "product":
            return 2 * self.batch * first
        directions = {"sliced": first + middle, "exact": self.dimension * middle, "chunked": self.dimension * middle}
        return 2 * self.batch * (6 * sum(passes) + 3 * directions.get(objective, 0))


@dataclasses.dataclass(frozen=True)
class Contestant:
    """What is imported before the clock starts; `build(case, objective) -> run`; steps come in multiples of `unit`."""

    modules: tuple[str, ...]
    build: Callable
    unit: int = 1


def repeated(step, batches):
    """`run` of a step that takes a batch and returns its loss: every call goes on with the next batch."""
    batches = itertools.cycle(batches)

    def run(num_steps):
        for batch in itertools.islice(batches, num_steps):
            loss = step(batch)
        return float(loss)

    return run


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def torch_network(case):
    """The network as a module of flat rows.

    PyTorch pads strided convolutions on the other side than Keras, so it gets mirrored kernels for mirrored images.
    """
    import torch

    arrays = iter(case.weights())
    modules, side = [], case.event_shape[0]
    if case.filters:
        modules.append(torch.nn.Unflatten(1, (case.event_shape[-1], side, side)))
    for i, (shape, places) in enumerate(case.layers()):
        kernel, bias = next(arrays), next(arrays, None)
        if len(shape) == 4:
            layer = torch.nn.Conv2d(*shape[2:], 3, stride=1 if i == 0 else 2, padding=1)
            kernel, side = kernel[::-1, ::-1].transpose(3, 2, 0, 1), math.isqrt(places)
        else:
            if i and i == len(case.filters):
                modules.append(torch.nn.Flatten())
                kernel = kernel.reshape(side, side, -1, shape[1])[::-1, ::-1].transpose(2, 0, 1, 3).reshape(shape)
            layer = torch.nn.Linear(*shape, bias=bias is not None)
            kernel = kernel.T
        layer.weight.data = torch.tensor(kernel.copy())
        if bias is not None:
            layer.bias.data = torch.tensor(bias)
        modules += [layer, torch.nn.SiLU()]
    return torch.nn.Sequential(*modules[:-1])


def torch_run(case, network, loss):
    """`run` of a loss of flat rows, with the optimizer step."""
    import torch

    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, fused=True)
    batches = case.batches()
    if case.filters:
        batches = batches[:, :, ::-1, ::-1].transpose(0, 1, 4, 2, 3)

    def step(x):
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        optimizer.step()
        return value.detach()

    return repeated(step, torch.tensor(batches.reshape(len(batches), case.batch, -1).copy()))


def ebmkit(case, objective):
    """ebmkit: a loss takes a callable energy."""
    import ebm

    network = ebm.EnergyModel(torch_network(case))
    loss = {
        "denoising": lambda: ebm.DenoisingScoreMatching(SIGMA),
        "sliced": ebm.SlicedScoreMatching,
        "exact": ebm.ExactScoreMatching,
    }[objective]()
    return torch_run(case, network, lambda x: loss(network, x).loss)


def torchebm(case, objective):
    """torchebm: a loss holds its model."""
    import torchebm.core
    import torchebm.losses

    class Energy(torchebm.core.BaseModel):
        def __init__(self):
            super().__init__()
            self.network = torch_network(case)

        def forward(self, x):
            return self.network(x).squeeze(-1)

    network = Energy()
    loss = {
        "denoising": lambda: torchebm.losses.DenoisingScoreMatching(network, noise_scale=SIGMA),
        "sliced": lambda: torchebm.losses.SlicedScoreMatching(network, n_projections=1),
        "exact": lambda: torchebm.losses.ScoreMatching(network, hessian_method="exact"),
    }[objective]()
    return torch_run(case, network, loss)


# --- JAX -------------------------------------------------------------------------------------------------------------


def jax_total_energy(case, weights, x):
    """Σ E over flat rows; also the energy of a single x."""
    import jax

    layers = case.layers()
    x = x.reshape(-1, *case.event_shape)
    for i, (shape, _) in enumerate(layers):
        kernel = weights[2 * i]
        if len(shape) == 4:
            stride = 1 if i == 0 else 2
            x = jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        else:
            x = x.reshape(-1, shape[0]) @ kernel
        if i < len(layers) - 1:
            x = jax.nn.silu(x + weights[2 * i + 1])
    return x.sum()


def jax_denoising(energy, x, key):
    """½‖s + ε/σ‖²."""
    import jax

    noise = jax.random.normal(key, x.shape)
    return 0.5 * ((noise / SIGMA - jax.grad(energy)(x + SIGMA * noise)) ** 2).sum(-1)


def jax_sliced(energy, x, key):
    """½‖s‖² − vᵀ∇²E v, forward over reverse."""
    import jax

    v = jax.random.rademacher(key, x.shape, x.dtype)
    gradient, product = jax.jvp(jax.grad(energy), (x,), (v,))
    return 0.5 * (gradient**2).sum(-1) - (v * product).sum(-1)


def jax_exact(energy, x, key, trace):
    """½‖s‖² − tr ∇²E, gradient and trace row by row."""
    import jax

    gradient, laplacian = jax.vmap(functools.partial(trace, energy))(x)
    return 0.5 * (gradient**2).sum(-1) - laplacian


def jax_folx_trace(energy, x):
    """folx's forward Laplacian."""
    import folx

    laplacian, gradient = folx.ForwardLaplacianOperator(0)(energy)(x)
    return gradient.reshape(x.shape), laplacian


def jax_hessian_trace(energy, x):
    """JAX's own hessian."""
    import jax
    import jax.numpy as jnp

    return jax.grad(energy)(x), jnp.trace(jax.hessian(energy)(x))


def jax_jet_trace(energy, x):
    """JAX's own Taylor mode: the second coefficient along every unit vector."""
    import jax
    import jax.numpy as jnp
    from jax.experimental.jet import jet

    def second(v):
        _, (slope, bend) = jet(energy, (x,), ((v, jnp.zeros_like(v)),))
        return slope, bend

    gradient, seconds = jax.vmap(second)(jnp.eye(x.size, dtype=x.dtype))
    return gradient, seconds.sum()


def jax_run(case, objective, trace=None):
    """`run` of a loss, compiled together with optax's Adam; state is donated."""
    import jax
    import optax

    loss = {"denoising": jax_denoising, "sliced": jax_sliced, "exact": functools.partial(jax_exact, trace=trace)}
    optimizer = optax.adam(LEARNING_RATE)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state, x):
        weights, moments, count = state
        key = jax.random.fold_in(jax.random.key(0), count)

        def mean_loss(weights):
            return loss[objective](functools.partial(jax_total_energy, case, weights), x, key).mean()

        value, gradients = jax.value_and_grad(mean_loss)(weights)
        updates, moments = optimizer.update(gradients, moments)
        return (optax.apply_updates(weights, updates), moments, count + 1), value

    weights = [jax.numpy.asarray(array) for array in case.weights()]
    state = weights, optimizer.init(weights), jax.numpy.zeros((), "int32")

    def step(x):
        nonlocal state
        state, value = update(state, x)
        return value

    return repeated(step, [jax.numpy.asarray(x) for x in case.batches().reshape(-1, case.batch, case.dimension)])


# --- matrix products alone -------------------------------------------------------------------------------------------


def tensorflow_product(case, objective):
    """One product of the case's batch with its only kernel, by TensorFlow."""
    import tensorflow as tf

    kernel = tf.constant(case.weights()[0])
    product = tf.function(lambda x: tf.linalg.matmul(x, kernel))
    return repeated(lambda x: product(x)[0, 0], [tf.constant(x) for x in case.batches(2)])


def torch_product(case, objective):
    """One product of the case's batch with its only kernel, by PyTorch."""
    import torch

    kernel = torch.tensor(case.weights()[0])
    return repeated(lambda x: torch.matmul(x, kernel)[0, 0], torch.tensor(case.batches(2)))


PEERS = {
    "ebmkit": Contestant(("torch", "ebm"), ebmkit),
    "torchebm": Contestant(("torch", "torchebm.losses"), torchebm),
    "JAX": Contestant(("jax", "optax"), jax_run),
    "JAX folx": Contestant(("jax", "optax", "folx"), functools.partial(jax_run, trace=jax_folx_trace)),
    "JAX hessian": Contestant(("jax", "optax"), functools.partial(jax_run, trace=jax_hessian_trace)),
    "JAX jet": Contestant(("jax", "optax"), functools.partial(jax_run, trace=jax_jet_trace)),
}
PRODUCTS = {
    "TensorFlow": Contestant(("tensorflow",), tensorflow_product),
    "PyTorch": Contestant(("torch",), torch_product),
}
