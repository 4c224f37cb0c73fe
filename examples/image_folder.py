"""Compress a model with a folder of images: one folder per class, under train/ and test/ or directly in it.

If there are images on which the model was not trained, add them as validation/: validation_fraction is then not used.

python examples/image_folder.py model.keras images/ runs/image_folder
"""

import sys

import pbd


def main(model_file: str, folder: str, run_dir: str) -> None:
    """Validate on a tenth of the training images; restore layers until the student loses at most two points there."""
    data = pbd.Data.load(folder, validation_fraction=0.1, batch_size=32, augment="flip_crop")
    result = pbd.distill(
        teacher=model_file, data=data, epochs=2, fine_tune_epochs=3, target_accuracy_drop=0.02, run_dir=run_dir
    )
    for row in result.report.blocks:
        print(f"{row.layer}: {row.status} ({row.reason})")


if __name__ == "__main__":
    main(*sys.argv[1:])
