"""Keep the log output of Ray and MLflow off the terminal, and switch off their usage reports.

The user learns about a run from verdicts, summaries and exceptions.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def quiet_ray() -> None:
    """Switch off Ray's hints, progress bars and usage report. Call it before `import ray`."""
    _set_defaults(
        {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
            # The C++ core writes warnings about Ray Data's actors to stderr. Errors are raised as exceptions.
            "RAY_BACKEND_LOG_LEVEL": "fatal",
        }
    )
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"ray\..*")


def quiet_mlflow() -> None:
    """Switch off MLflow's telemetry, and the log output of MLflow, of its database migrations and of its requests."""
    _set_defaults(
        {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "MLFLOW_LOGGING_LEVEL": "ERROR",
            "GIT_PYTHON_REFRESH": "quiet",
        }
    )
    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3.connectionpool", "git"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="The ``noload`` loader strategy")  # from a migration of MLflow 3.17


@contextmanager
def stderr_discarded() -> Iterator[None]:
    """Discard what the process writes to stderr, also from C++ code, which does not use Python's `sys.stderr`."""
    stderr = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(null)
        os.close(stderr)


def _set_defaults(environment: Mapping[str, str]) -> None:
    """Set environment variables that are not set yet."""
    for key, value in environment.items():
        os.environ.setdefault(key, value)
