"""ONNX networks, opened once per process and run on one thread: a worker has one core, and many workers run."""

from functools import cache

import onnxruntime


@cache
def session(path: str) -> onnxruntime.InferenceSession:
    """The network at `path`, on the CPU."""
    return opened(path)


def opened(network: str | bytes) -> onnxruntime.InferenceSession:
    """The network in a file, or in a file's bytes, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
