"""Compress a trained model of your own, from files.

    python examples/own_model.py model.keras data.npz runs/own_model
    mpirun -n 4 python examples/own_model.py model.keras data.npz runs/own_model

The `.npz` file holds x_train, y_train and, if there are any, x_test, y_test, and x_val, y_val: images on which the
model was not trained. Without x_val, validation_from="test" validates on half of the test images.
"""

import sys

import pbd


def main(model_file: str, data_file: str, run_dir: str) -> None:
    """Replace layers of the model, fine-tune the student, and print the report."""
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
