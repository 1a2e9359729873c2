"""`python -m crisp_attention.bench gpu`: all that is measured on a GPU, from the source tree alone."""

import sys

from crisp_attention.bench.gpu.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
