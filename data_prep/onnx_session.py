"""Open ONNX networks for the CPU. Each runs on one thread, because many worker processes have one core each."""

from functools import cache

import onnxruntime


@cache
def session(path: str) -> onnxruntime.InferenceSession:
    """Return the session of the ONNX file at `path`. It is opened once per process; later calls share it."""
    return opened(path)


def opened(network: str | bytes) -> onnxruntime.InferenceSession:
    """Open an ONNX network on the CPU, with one thread. `network` is a path or the bytes of an ONNX file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
