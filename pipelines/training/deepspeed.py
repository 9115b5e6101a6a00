"""DeepSpeed for a training run: its import, its configuration, and an engine around a module.

Why `import_deepspeed` exists (DeepSpeed 0.19.8): DeepSpeed imports MLflow for its autotuner, compiles a shared-memory
all-reduce for the CPU on first use, and decorates an optimizer that is not its own with torch.compile, which imports
all of Inductor. Each of the three takes longer than a tiny run.
"""

import logging
import os
import sys
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.training.settings import OptimizerSettings, TrainSettings
from pipelines.training.tasks.base import Trainee


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed and return the module, without the slow steps that the docstring of this file lists.

    Args:
        device: on which the rank trains. The two steps that compile are turned off only for the CPU.
    """
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        import deepspeed
        import deepspeed.ops
    finally:
        if hidden:
            del sys.modules["mlflow"]
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    return deepspeed


def configuration(settings: TrainSettings, stage: int, precision: str, device: torch.device) -> dict[str, Any]:
    """Return DeepSpeed's configuration.

    Args:
        settings: of the run.
        stage: ZeRO stage, 1 to 3.
        precision: "fp32" or "bf16".
        device: on which the rank trains.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": settings.batch.micro_batches // settings.workers.replicas,
        "gradient_clipping": settings.optimizer.clip_norm,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": device.type == "cuda",
            "stage3_param_persistence_threshold": settings.workers.persistence_threshold,
        },
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": sys.maxsize,
    }


def partitioned_init(settings: TrainSettings, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context for ZeRO-3: each parameter of a module that is built inside it is partitioned at once."""
    config = configuration(settings, 3, settings.workers.precision, device)
    return import_deepspeed(device).zero.Init(config_dict_or_path=config)


def start_engine(
    module: nn.Module,
    options: OptimizerSettings,
    *,
    stage: int,
    precision: str,
    settings: TrainSettings,
    device: torch.device,
    load_universal: bool,
) -> Any:
    """Wrap a module in a DeepSpeed engine with AdamW; every rank calls it.

    Args:
        module: its parameters that require gradients are trained. Only those with two or more dimensions have weight
            decay.
        options: of AdamW.
        stage: ZeRO stage, 1 to 3.
        precision: "fp32" or "bf16".
        settings: of the run.
        device: on which the rank trains.
        load_universal: the engine will load a checkpoint in DeepSpeed's universal format (see `reshard`).
    """
    deepspeed = import_deepspeed(device)
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices, vectors = [], []
    for p in trained:
        # The `shape` of a partitioned parameter is not its real one; `ds_shape` is.
        (matrices if len(getattr(p, "ds_shape", p.shape)) >= 2 else vectors).append(p)
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        fused=True,
    )
    if stage == 3 and isinstance(module, Trainee):
        for block in module.modules():
            if isinstance(block, module.leaf_classes):
                deepspeed.utils.set_z3_leaf_module(block, True)
                block.register_forward_pre_hook(_require_gradients)
    config = configuration(settings, stage, precision, device)
    config["checkpoint"] = {"load_universal": load_universal}
    engine, *_ = deepspeed.initialize(model=module.to(device), optimizer=optimizer, config=config)
    return engine


def _require_gradients(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Set `requires_grad` of the floating-point inputs of a leaf module, before its forward.

    DeepSpeed reduces the gradients of a leaf module when the gradients of its inputs have been computed. If no
    parameter before the module is trained (with adapters or frozen layers), its inputs have no gradients, and
    DeepSpeed would reduce nothing.
    """
    for x in inputs:
        if isinstance(x, Tensor) and x.is_floating_point() and torch.is_grad_enabled():
            x.requires_grad_()
