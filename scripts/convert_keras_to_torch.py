"""Convert a Keras CNN to ONNX and torch, and verify every layer: the same as `oip convert`.

python scripts/convert_keras_to_torch.py models/mnist_cnn.keras -o mnist_cnn.onnx
"""

import sys

from oip_torch.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "convert")
    sys.exit(main())
