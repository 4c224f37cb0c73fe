"""Compress a trained model of your own, from files.

    python examples/own_model.py model.keras data.npz runs/own_model
    mpirun -n 4 python examples/own_model.py model.keras data.npz runs/own_model

The `.npz` file holds x_train, y_train and, if there are test images, x_test and y_test.
"""

import sys

import pbd


def main(model_file: str, data_file: str, run_dir: str) -> None:
    """Replace the model's convolutions, fine-tune the student, and print what came out."""
    result = pbd.distill(
        teacher=model_file,
        dataset=data_file,
        augment="flip",
        fine_tune_epochs=4,
        run_dir=run_dir,
    )
    print(result.table())


if __name__ == "__main__":
    main(*sys.argv[1:])
