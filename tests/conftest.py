"""Settings shared by all tests."""

import contextlib
import ctypes
import gc
import os
import random

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "Agg")


# A collection walks millions of objects, for seconds: it runs after a test that has taken so many bytes of memory.
_MEMORY_STEP = 2 * 2**30
gc.set_threshold(50_000, 20, 50)
_last = {"bytes": 0}


def _bytes_in_use():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True)
def memory():
    """Frees the graphs of tests and returns their memory to the system: they would add up to 10 GB."""
    yield
    with contextlib.suppress(OSError, AttributeError, ValueError):  # where there is no /proc, nothing is freed early
        if _bytes_in_use() > _last["bytes"] + _MEMORY_STEP:
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            _last["bytes"] = _bytes_in_use()


# A process never frees the programs that XLA compiled, some 10 MB a test, and 100 MB a slow one: after so many tests
# another one goes on.
_TESTS_PER_PROCESS, _SLOW_TESTS_PER_PROCESS = 700, 25


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Runs the tests of a file in one process, which makes its fixtures and compiles its functions once."""
    from xdist.scheduler import LoadFileScheduling

    most = _SLOW_TESTS_PER_PROCESS if config.option.markexpr.startswith(("slow", "long")) else _TESTS_PER_PROCESS

    class Scheduling(LoadFileScheduling):
        """Replaces a process at the end of a file once it has run many tests."""

        def _reschedule(self, node):
            if node not in self.registered_collections:  # it has only begun
                return
            units = self.assigned_work.get(node, {})
            done = sum(sum(unit.values()) for unit in units.values())
            if self.workqueue and not node.shutting_down and done > most and self._pending_of(units) <= 2:
                node.shutdown()  # it still runs what it was given
                config.pluginmanager.getplugin("dsession")._clone_node(node)
                return
            super()._reschedule(node)

    # In the order of their names the files that take longest, of the command line, come early. Else those with the most
    # tests would, and one process would wait at the end.
    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Ends a process that has done its tests; it would wait for the others, and keep its memory."""
    node.gateway.exit()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Every test begins at the same seed, also the fixtures made for it, in whatever order and process it runs.

    Keras takes its default seeds from Python's generator. `keras.utils.set_random_seed` would empty TensorFlow's caches
    too, and made the tests an eighth slower.
    """
    random.seed(0)


@pytest.fixture(scope="session", autouse=True)
def particles_in_graph_mode():
    """Lets the particle sampler choose graph mode, which is there in a third of the time XLA takes to compile.

    `jit_compile=True` and the command line's own processes still have XLA, and so has one test of the default.
    """
    from tfp_ebm.mcmc import particle_sampler  # where TensorFlow is set up

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(particle_sampler, "_XLA_MAX_EVENT_SIZE", -1)
        yield
