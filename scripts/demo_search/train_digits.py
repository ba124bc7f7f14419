"""Trains a small neural network on scikit-learn's handwritten digits; one evaluation of a point.

Each epoch appends a line to ``metrics.jsonl`` and replaces ``checkpoint/state.pickle``. When the
checkpoint is there at the start, training goes on from it, so being cut off by a walltime costs
at most one epoch.
"""

from __future__ import annotations

import json
import pickle  # nosec B403
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

# On a fast machine an epoch waits a little: 120 of them shall outlast an allocation of the demo
# everywhere.
LEAST_EPOCH_S = 0.2
CHECKPOINT = Path("checkpoint/state.pickle")


def make_model(point: dict) -> MLPClassifier:
    return MLPClassifier(
        hidden_layer_sizes=(int(point["hidden_units"]),),
        activation=point["activation"],
        alpha=point["alpha"],
        batch_size=int(point["batch_size"]),
        learning_rate_init=point["learning_rate"],
        random_state=1,
    )


def load_state(point: dict) -> dict:
    if CHECKPOINT.exists():
        with CHECKPOINT.open("rb") as file:
            state = pickle.load(file)  # our own, brought back by the harvester  # nosec B301
        print(f"resumed after epoch {state['epoch']}")
        return state
    return {"epoch": 0, "model": make_model(point), "seconds": 0.0}


def save_state(state: dict) -> None:
    CHECKPOINT.parent.mkdir(exist_ok=True)
    beside = CHECKPOINT.with_suffix(".part")
    with beside.open("wb") as file:
        pickle.dump(state, file)
    beside.replace(CHECKPOINT)


def main() -> None:
    point = json.loads(Path("input.json").read_text())
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16.0, labels, test_size=0.3, random_state=0, stratify=labels)
    train_x, valid_x, train_y, valid_y = split
    state = load_state(point)
    epochs, first_epoch = int(point["epochs"]), state["epoch"] + 1
    model = state["model"]
    loss = float("nan")
    for epoch in range(first_epoch, epochs + 1):
        began = time.perf_counter()
        model.partial_fit(train_x, train_y, classes=np.arange(10))
        loss = float(log_loss(valid_y, np.clip(model.predict_proba(valid_x), 1e-9, 1.0)))
        with open("metrics.jsonl", "a") as lines:
            lines.write(json.dumps({"step": epoch, "loss": loss}) + "\n")
        state.update(epoch=epoch, seconds=state["seconds"] + time.perf_counter() - began, loss=loss)
        save_state(state)
        time.sleep(max(0.0, LEAST_EPOCH_S - (time.perf_counter() - began)))
    loss = state["loss"]
    accuracy = float(accuracy_score(valid_y, model.predict(valid_x)))
    metadata = {
        "accuracy": round(accuracy, 4),
        "epochs": epochs,
        "first_epoch": first_epoch,
        "seconds": round(state["seconds"], 2),
    }
    Path("metadata.json").write_text(json.dumps(metadata))
    with tarfile.open("metrics.tgz", "w:gz") as archive:
        if Path("metrics.jsonl").exists():
            archive.add("metrics.jsonl")
    message = f"accuracy {accuracy:.3f}"
    Path("output.json").write_text(json.dumps({"status": 0, "loss": loss, "message": message}))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="Got `batch_size`")
    main()
