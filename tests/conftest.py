"""What all tests share: threads, the stage of each test, and where the optional shared material lies."""

import contextlib
import functools
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import threadpoolctl

from tests.helpers import short_graphs, short_latencies

gc.disable()  # until all modules are imported, which makes little garbage
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # pytest runs a process per core

STAGES = ("fast", "unit", "launch", "system")
"""Each is a marker, and every test has exactly one of them. `make test` runs `launch` beside `unit`."""
LONGEST = (
    "test_pairs_of_steps.py",
    "test_random_networks.py",
    "test_same_student.py",
    "test_faults.py",
    "test_examples.py",
    "test_backends.py",
    "test_watchdog.py",
    "test_slurm.py",
    "test_mpi.py",
    "test_dask.py",
    "test_dask_losses.py",
    "test_keras_applications.py",
)
"""Files to begin with, so that no process is left alone with one of them."""
DEPLOYED = ("test_deployment.py", "test_no_block_kept.py", "test_pipeline.py", "test_unlabelled_runs.py")
"""Files whose runs in the process of the tests measure the deployment."""
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    """Load Keras in the processes of the stage `system` as whole runs do, without packages that they do not need."""
    if hasattr(config, "workerinput") and config.option.markexpr == "system":
        from pbd.system import backend

        backend.dedicate_process()
        backend.load()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Under `-m` with any stage but `unit`, leave out modules that do not name the marker: many load Keras."""
    return is_left_out(collection_path, config.option.markexpr) or None


@functools.cache
def is_left_out(path: Path, stage: str) -> bool:
    """Return whether a run of this stage does not read a module."""
    if stage not in ("fast", "launch", "system", "jax") or path.suffix != ".py":
        return False
    return f"pytest.mark.{stage}" not in path.read_text(encoding="utf-8")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Put every test without a stage into `unit`.

    A test fails in the stage `unit` if it has several stages, by markers of its own, its class or its module, or one
    that its module does not name.
    """
    stages = [stage for stage in STAGES if item.get_closest_marker(stage)] or ["unit"]
    if len(stages) > 1:
        fault = f"a test must have one stage. Received: {', '.join(stages)}."
    elif is_left_out(item.path, stages[0]):
        fault = f"a module must name the stages of its tests. Received: {stages[0]}."
    else:
        item.add_marker(stages[0])
        return
    item.add_marker("unit")
    item.fixturenames = []  # which would load Keras for a test that only fails
    item.runtest = functools.partial(pytest.fail, fault, pytrace=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Check that modules with fast tests can be imported without TensorFlow; collect garbage from now on, but rarely.

    Tracing makes millions of small objects: looking through the modules of TensorFlow again and again took a tenth of
    the time of the stage `unit`.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    gc.enable()
    if "tensorflow" not in sys.modules:
        return
    if session.config.option.markexpr == "fast":
        raise pytest.UsageError("a module with fast tests must not load TensorFlow as it is imported.")
    _use_one_thread_for_blas()
    if session.config.option.markexpr != "system":
        short_graphs.rewrite_little()  # most whole runs, in the stage `system`, rewrite them as those of users do


def _use_one_thread_for_blas() -> None:
    """Let NumPy and SciPy compute with one thread: others wait for work, which costs CPU time beside other processes.

    On two busy cores, Cholesky factors of matrices of 145 rows took about 100 times the CPU time with two threads. The
    environment stays, since processes that tests start have threads of their own.
    """
    import scipy.linalg  # noqa: F401  brings a BLAS of its own

    threadpoolctl.threadpool_limits(1, user_api="blas")


@pytest.fixture(autouse=True)
def _fast_tests_load_no_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test of the stage `fast` that loads TensorFlow."""
    loaded_before = "tensorflow" in sys.modules
    yield
    if request.node.get_closest_marker("fast") and not loaded_before:
        assert "tensorflow" not in sys.modules, "a fast test must not load TensorFlow: mark it unit or system"


@pytest.fixture(autouse=True)
def _short_latencies(request: pytest.FixtureRequest) -> Iterator[None]:
    """Measure latencies for a moment only, and no memory, in what tests do in their own process."""
    is_unit = request.node.get_closest_marker("unit") is not None
    with short_latencies.here() if is_unit else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True)
def _not_deployed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out deployment in runs that tests make in their own process, except where it is tested."""
    if request.node.get_closest_marker("unit") and request.path.name not in DEPLOYED:
        from pbd.deploy import deployment

        monkeypatch.setattr(deployment, "measure", lambda *_, **__: deployment.Deployed((), ()))


@pytest.fixture(autouse=True, scope="session")
def _deployed_in_keras() -> Iterator[None]:
    """Measure in Keras by default, whatever is installed."""
    from pbd.deploy import targets  # loads no backend

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "default", lambda: targets.TARGETS["keras"])
        yield


@pytest.fixture(autouse=True, scope="session")
def _any_teacher() -> Iterator[None]:
    """Let runs in the process of the tests have teachers with random weights."""
    from pbd.pipeline import teacher_check  # loads no backend

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_check, "check", lambda *_: ())
        yield


@pytest.fixture(scope="module")
def no_backend() -> Iterator[None]:
    """Keep TensorFlow out of the processes that the tests of a module start.

    Workers load it to silence it, and to get the Keras settings of the process that started them.
    """
    from pbd.system.keras_state import KerasSetup

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
        patch.setattr(KerasSetup, "here", KerasSetup)
        yield


@contextlib.contextmanager
def _tracing_nothing() -> Iterator[None]:
    import keras

    if keras.backend.backend() != "tensorflow":  # JAX compiles every operation by itself then; torch traces nothing
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def eager() -> Iterator[None]:
    """Trace nothing: for tests whose trainings have a few steps, and which look at what happens between them."""
    with _tracing_nothing():
        yield


@pytest.fixture(scope="module")
def eager_module() -> Iterator[None]:
    """Trace nothing in all tests of a module, and in its fixtures."""
    with _tracing_nothing():
        yield


@pytest.fixture
def fresh_names() -> None:
    """Name layers from the beginning, and draw the same weights whatever ran before."""
    import keras

    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(3)


@pytest.fixture(scope="session")
def shared_teachers() -> Path:
    """The folder of real networks trained by others."""
    folder = SHARED / "teachers"
    if not folder.is_dir():
        pytest.skip("../shared/teachers is absent")
    return folder
