"""The dataflows (Ray Data), the training runs (Ray Train and DeepSpeed), reports and tracking (MLflow)."""
