"""Open ONNX networks once per process, to run on one thread: each of many workers has one core."""

from functools import cache

import onnxruntime


@cache
def session(path: str) -> onnxruntime.InferenceSession:
    """Open the network at `path` on the CPU, once per process."""
    return opened(path)


def opened(network: str | bytes) -> onnxruntime.InferenceSession:
    """Open a network on the CPU, from a path or from the bytes of a file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
