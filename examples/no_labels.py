"""Compress a model with images that have no labels; every choice is made by agreement with the teacher.

python examples/no_labels.py model.keras images.npy runs/no_labels
"""

import sys

import numpy as np

import pbd


def main(model_file: str, images_file: str, run_dir: str) -> None:
    """Distill with unlabelled images and print how often the student gives the teacher's answer."""
    data = pbd.Data(train=np.load(images_file), batch_size=32)
    result = pbd.distill(teacher=model_file, data=data, fine_tune_epochs=3, run_dir=run_dir)
    print(f"the student agrees with the teacher on {result.report.student.test_agreement:.1%} of the test images")


if __name__ == "__main__":
    main(*sys.argv[1:])
