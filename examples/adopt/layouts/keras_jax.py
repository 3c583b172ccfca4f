"""Keras on JAX, with the two callbacks of its guide: ModelCheckpoint and BackupAndRestore.

KERAS_BACKEND=jax python keras_jax.py --epochs 40
"""

import argparse
import time

import keras
import numpy as np


class Pace(keras.callbacks.Callback):
    """Makes a batch last as long as one of a larger model."""

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """Wait, and print the place in the training."""
        time.sleep(0.08)

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        """Print the epoch."""
        print(f"epoch {epoch}", flush=True)


def main() -> None:
    """Fit a small network, with a checkpoint each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=40)
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(512, 32)).astype("float32")
    y = (x.sum(1) > 0).astype("float32")
    layers = [keras.layers.Dense(256, activation="relu"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((32,)), *layers])
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)
    callbacks = [
        keras.callbacks.BackupAndRestore("backup"),
        keras.callbacks.ModelCheckpoint("out/model_{epoch:03d}.keras"),
        Pace(),
    ]
    model.fit(x, y, batch_size=16, epochs=args.epochs, callbacks=callbacks, verbose=0)
    print("done")


if __name__ == "__main__":
    main()
