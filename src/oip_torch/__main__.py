"""`python -m oip_torch` is `oip`."""

import sys

from oip_torch.cli import main

if __name__ == "__main__":
    sys.exit(main())
